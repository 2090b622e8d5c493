"""How a verb's result looks: records in, words and tables out.

In: what a verb returned and what it was asked.  Out: lines on a Screen.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from burnish.cli import needs
from burnish.cli.screen import Part, Screen
from burnish.evaluate import plain
from burnish.records import Comparison, Report, RungResult

LISTED = 20  # kinds of problem shown,
PLACES = 4  # and places of each; the rest are counted
FIRST = 3  # rows shown by init
CLASSES = 10  # classes whose rows are counted one by one
VARIES = re.compile(r'"[^"]*"|\S*\d\S*')  # what differs between two problems of one kind


# --- the verbs -----------------------------------------------------------------------------------------------

Asked = Mapping[str, Any]


def init(screen: Screen, told: Mapping[str, Any], asked: Asked) -> None:
    """What was guessed from the data, and the file that says so."""
    screen.line((f"Wrote {told['task_file']}", "bold"), " from what the data looks like; change there what is wrong")
    facts = {"goal": f"{told['goal']}, measured by {told['metric']}", "rows": told["rows"], "shape": told["shape"]}
    facts["columns"] = ", ".join(f"{role} = {plain.setting(column)}" for role, column in told["columns"].items())
    _facts(screen, {**facts, "labels": _labels(told["labels"])})
    for note in told["notes"]:
        screen.line("  note     ", str(note))
    for row in told["first"][:FIRST]:
        screen.line("  row      ", _row(row))
    _next(screen, ["check", told["task_file"]], ["climb", told["task_file"]])


def check(screen: Screen, told: Mapping[str, Any], asked: Asked) -> None:
    """The data card, what is wrong, and the first rows as the model sees them."""
    if told["data"]:
        screen.line(("Data", "bold"))
        _facts(screen, _card(told["data"]))
    if told["tokens"]:
        screen.line()
        kinds = ("rows", "pieces", *(f"tokens_{kind}" for kind in ("kept", "trained", "masked", "cut", "unknown")))
        rows = [
            [split, *(f"{count[kind]:,}" for kind in (*kinds, "longest"))] for split, count in told["tokens"].items()
        ]
        screen.table(["tokens", *(kind.removeprefix("tokens_") for kind in kinds), "longest"], rows)
        screen.line()
    _problems(screen, told["problems"])
    for row in told["shown"]:
        screen.line()
        label = row.get("label")
        key: list[Part] = ["  trained part ", _trained(screen, "like this")]
        screen.line((str(row["where"]), "bold"), *(key if label is None else [f"  label {_fact(label)}"]))
        screen.line(*(_trained(screen, text) if trained else text for text, trained in row["spans"]))
    screen.line()
    if told["ok"]:
        screen.line(("Ready.", "bold green"))
        _next(screen, ["climb", asked["task"], *_set(asked)])
        return
    stops = told.get("on_problem") != "drop"
    done = "  Mend them, or go on without:" if stops else "  Mend them."
    screen.line(("Not ready: a run would stop at the errors above.", "bold red"), done)
    if stops:
        _next(screen, ["check", asked["task"], *_set(asked), "--set", "data.on_problem=drop"])


def climb(screen: Screen, told: Report, asked: Asked) -> None:
    """The verdict first, then what it rests on; also for `evaluate` and `demo`."""
    screen.line((told.verdict.sentence, "bold green" if told.verdict.met else "bold yellow"))
    for note in told.verdict.notes:
        screen.line("  note     ", note)
    screen.line()
    _rungs(screen, told.rungs)
    _comparisons(screen, told.comparisons)
    if "target" in asked:
        _measured(screen, [rung for rung in told.rungs if rung.scores])
    screen.line()
    rows = _card(told.data).get("rows")
    if rows:
        screen.line(("Data     ", "bold"), _fact(rows))
    page = Path(told.page or Path(told.folder) / "report.html")
    if page.exists():
        screen.line(("Report   ", "bold"), _path(page), whole=True)
    chosen = next((rung.artifact for rung in told.rungs if rung.rung == told.verdict.rung and rung.artifact), "")
    if chosen:
        _next(screen, *_uses(chosen, str(told.goal.get("task", ""))))
    elif "task" in asked:
        _next(screen, ["check", asked["task"], *_set(asked), "--show", "3"])
    else:
        last = [rung.artifact for rung in told.rungs if rung.artifact][-1:]
        _next(screen, *(["chat", artifact] for artifact in last), ["init", "YOUR_DATA.csv"])


def launch(screen: Screen, told: Mapping[str, Any], asked: Asked) -> None:
    """The script itself, so that it can be piped, or where it was written."""
    if told["out"]:
        then = f", to be given to {'sbatch' if told['slurm'] else 'each machine'}"
        screen.line((f"Wrote {told['out']}", "bold green"), then)
    else:
        for line in told["script"].splitlines():
            screen.line(line, whole=True)


def train(screen: Screen, told: RungResult, asked: Asked) -> None:
    """What one rung scored and where it lies."""
    if told.skipped:
        screen.line((f"{told.rung} was not run: {told.skipped}", "bold yellow"))
        return
    made = f" in {plain.seconds(told.seconds)}, {told.trained:,} parameters trained"
    screen.line((f"Trained {told.rung}", "bold green"), made)
    _scores(screen, told)
    own = dict(told.settings)
    own["tokens trained"], own["ended"] = own.pop("tokens", None), own.pop("stopped", None)
    best = min((point["valid_loss"] for point in told.curve if "valid_loss" in point), default=None)
    _facts(screen, {**own, "validation loss": best, "artifact": told.artifact})
    _next(screen, ["evaluate", told.artifact], ["climb", asked["task"], *_set(asked)])


def compare(screen: Screen, told: Mapping[str, Any], asked: Asked) -> None:
    """Which of two is better, if that can be told, and the first rows that changed."""
    screen.line((told["sentence"], "bold green" if told["better"] else "bold yellow"))
    if told["openings"] > 1:
        times = f"these rows have been opened {told['openings']} times"
        screen.line("  note     ", f"{times}: what was chosen after an earlier look may fit them by luck")
    change = told["change"]
    for name in ("fixed", "broken") if change else ():
        listing = change[name]
        screen.line()
        screen.line((listing["title"], "bold"), f"  {listing['told']}")
        for row in listing["rows"][:PLACES]:
            screen.line("  row      ", f"{plain.line(row['text'], 100)} → {plain.line(row['gold'], 40)}")
            for near in row["near"]:
                screen.line("    nearest in training  ", near)
    if change and change["still"]:
        screen.line()
        screen.line(f"{change['still']:,} rows are wrong in both.")
    screen.line()
    screen.line(("Report   ", "bold"), _path(Path(told["page"])), whole=True)


def advise(screen: Screen, told: Mapping[str, Any], asked: Asked) -> None:
    """What to do first, and every sentence with the figures it rests on."""
    screen.line((told["first"][:1].upper() + told["first"][1:], "bold green"))
    for item in told["points"]:
        screen.line(f"  {item['advice']:<17}", item["sentence"])
        known = {key: value for key, value in item["because"].items() if value is not None}
        screen.line(" " * 19, (f"because {_fact(known)}", "dim"))
    _next(screen, ["climb", asked["task"], *_set(asked)])


def predict(screen: Screen, told: Mapping[str, Any], asked: Asked) -> None:
    """How many rows were answered, and into which file."""
    before = f", {told['done_before']:,} of them by an earlier call" if told["done_before"] else ""
    screen.line((f"{told['rows']:,} rows", "bold"), f" in {told['out']} after {plain.seconds(told['seconds'])}{before}")
    problems = told["problems"]
    if isinstance(problems, Sequence) and not isinstance(problems, str):
        _problems(screen, problems)
    elif problems:
        screen.line((f"{problems} without a usable answer", "yellow"), "; their `problem` says why")


def runs(screen: Screen, told: Sequence[Mapping[str, Any]], asked: Asked) -> None:
    """One line per run, the newest first."""
    if not told:
        screen.line("No runs yet.")
        _next(screen, ["demo"], ["init", "DATA"])
        return
    rows = []
    for run in told:
        goal = run["goal"]
        wanted = [str(goal.get(key)) for key in ("task", "metric") if goal.get(key) not in (None, "auto")]
        wanted += [f"target {goal['target']:g}"] if goal.get("target") is not None else []
        words = [run["name"], run["state"], ", ".join(wanted), run["outcome"], ", ".join(run["rungs"]), run["when"]]
        rows.append([*words, plain.seconds(float(run["seconds"] or 0))])
    heads = ("name", "state", "goal", "verdict", "rungs", "when", "took")
    screen.table(heads, rows, left=6, first=(0, 1, 3, 5, 2, 4, 6))


VIEWS: dict[str, Callable[[Screen, Any, Asked], None]] = {
    "init": init,
    "check": check,
    "plan": needs.plan,
    "climb": climb,
    "train": train,
    "launch": launch,
    "evaluate": climb,
    "compare": compare,
    "advise": advise,
    "predict": predict,
    "runs": runs,
    "demo": climb,
}


# --- their parts ---------------------------------------------------------------------------------------------


def _facts(screen: Screen, facts: Mapping[str, Any]) -> None:
    wide = max((len(str(key)) for key in facts), default=0)
    for key, value in facts.items():
        if value not in (None, "", [], {}, ()):
            screen.line(f"  {str(key).replace('_', ' ').ljust(max(wide, 8))} ", plain.clip(_fact(value), 300))


def _fact(value: Any, between: str = " · ") -> str:
    if isinstance(value, Mapping):
        return between.join(f"{key} {_fact(item, ', ')}" for key, item in value.items() if item not in ({}, [], ""))
    if isinstance(value, (list, tuple)):
        return ", ".join(_fact(item, ", ") for item in value)
    if isinstance(value, float) and value.is_integer():
        return plain.number(int(value))
    return plain.setting(value) if isinstance(value, bool) or value is None else plain.number(value)


def _card(card: Mapping[str, Any]) -> dict[str, Any]:
    """What of a data card a person wants to see; --json and card.json hold all of it."""
    files = [f"{_path(Path(item['name']))} (sha256 {item['sha256'][:8]})" for item in card.get("files", ())]
    if len(files) > PLACES:
        files = [f"{len(files):,} in {_path(Path(card['files'][0]['name']).parent)}"]
    counts = {split: found for split, found in card.get("label_counts", {}).items() if found}
    if any(len(found) > CLASSES for found in counts.values()):
        counts = {split: _labels(found) for split, found in counts.items()}
    letters = {key: round(value) for key, value in card.get("letters", {}).items()}
    told = {"files": files, **{key: card.get(key) for key in ("reading", "rows", "splits")}}
    return {**told, "label counts": counts, "letters": letters}


def _labels(counts: Any) -> str:
    """Rows per class, or of many classes how many there are and how rare the rarest."""
    if not isinstance(counts, Mapping) or len(counts) <= CLASSES:
        return _fact(counts) if counts else ""
    return f"{len(counts):,} classes of {min(counts.values()):,} to {max(counts.values()):,} rows"


def _row(row: Mapping[str, Any]) -> str:
    """An example on one line: what is asked, an arrow, what is answered."""
    turns = [f"{turn['role']}: {turn['content']}" for turn in row.get("messages", ())]
    answer = row.get("label")
    if turns and row["messages"][-1]["role"] == "assistant":
        answer = turns.pop().removeprefix("assistant: ")
    asked = plain.line(" | ".join([*turns, *(row[key] for key in ("text", "pair") if row.get(key))]), 100)
    return asked if answer is None else f"{asked} → {plain.line(plain.setting(answer), 60)}"


def _path(path: Path) -> str:
    """A path as one would type it here."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (OSError, ValueError):
        return os.path.normpath(path)


def _set(asked: Asked) -> list[str]:
    """The overrides of a command, for the command that follows it."""
    return [word for override in asked.get("set", ()) for word in ("--set", override)]


def _problems(screen: Screen, problems: Sequence[Mapping[str, Any]]) -> None:
    """Errors before warnings before notes; what differs in numbers and quotations alone stands once."""
    colours = {"error": "bold red", "warning": "yellow", "note": "dim"}
    alike: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for severity in colours:
        for item in problems:
            if item["severity"] == severity:
                alike.setdefault((severity, VARIES.sub("", item["what"])), []).append(item)
    for (severity, _), found in list(alike.items())[:LISTED]:
        same = len({item["what"] for item in found}) == 1
        times = f" ({len(found):,} {'times' if same else 'like this'})" if len(found) > 1 else ""
        screen.line((f"{severity}: ", colours[severity]), found[0]["what"], times)
        where = ", ".join(item["where"] for item in found[:PLACES] if item["where"])
        more = f" and {len(found) - PLACES:,} more" if len(found) > PLACES else ""
        for key, told in (("where", where + more), ("do", found[0]["do"])):
            if told:
                screen.line(f"  {key:<6} ", told)
    if len(alike) > LISTED:
        screen.line(f"... and {len(alike) - LISTED:,} more kinds of problem; --json lists all")


def _trained(screen: Screen, text: str) -> Part:
    return (text, "bold green") if screen.coloured else f"[{text}]"


def _rungs(screen: Screen, rungs: Sequence[RungResult]) -> None:
    ran = [rung for rung in rungs if rung.scores]
    if ran:
        goal = ran[0].scores[0]
        rows = []
        for rung in ran:
            score = rung.scores[0]
            trained = f"{rung.trained:,}" if rung.trained else "–"
            around = plain.interval(score.low, score.high)
            rows.append([rung.rung, plain.number(score.value), around, plain.seconds(rung.seconds), trained])
        screen.table(["rung", goal.metric, f"{plain.percent(goal.confidence)} interval", "took", "trained"], rows)
    for rung in rungs:
        if rung.skipped:
            screen.line((f"{rung.rung} not run: ", "dim"), rung.skipped)


def _comparisons(screen: Screen, comparisons: Sequence[Comparison]) -> None:
    if not comparisons:
        return
    screen.line()
    counted = any(item.fixed or item.broken for item in comparisons)
    rows = []
    for item in comparisons:
        numbers = [plain.signed(item.difference), plain.interval(item.low, item.high, sign=True)]
        paired = item.test == "mcnemar"  # over several seeds no row is simply fixed
        numbers += [f"{count:,}" if paired else "–" for count in (item.fixed, item.broken)] if counted else []
        rows.append([f"{item.b} against {item.a}", *numbers, plain.chance(item.p_holm)])
    heads = ["difference", "interval", *(["fixed", "broke"] if counted else []), "p (Holm)"]
    tests = ", ".join(dict.fromkeys(item.test for item in comparisons))
    heads = [f"n = {comparisons[0].n:,}, {tests}", *heads]
    screen.table(heads, rows, first=(0, 1, len(heads) - 1, *range(2, len(heads) - 1)))


def _measured(screen: Screen, rungs: Sequence[RungResult]) -> None:
    """Every metric: with intervals of a single rung, side by side of several (the report holds the intervals)."""
    if len(rungs) < 2:
        for rung in rungs:
            screen.line()
            _scores(screen, rung)
        return
    names = list(dict.fromkeys(score.metric for rung in rungs for score in rung.scores))
    if len(names) < 2:
        return
    rows = []
    for rung in rungs:
        values = {score.metric: plain.number(score.value) for score in rung.scores}
        rows.append([rung.rung, *(values.get(name, "–") for name in names)])
    screen.line()
    screen.table(["rung", *names], rows)


def _scores(screen: Screen, rung: RungResult) -> None:
    if rung.scores:
        rows = [
            [score.metric, plain.number(score.value), plain.interval(score.low, score.high)] for score in rung.scores
        ]
        around = f"{plain.percent(rung.scores[0].confidence)} interval, n = {rung.scores[0].n:,}"
        screen.table([rung.rung, "value", around], rows)


def _uses(artifact: str, goal: str) -> list[list[str]]:
    """What one does with a model that meets its goal."""
    predicts = ["predict", artifact, "NEW_DATA", "--out", "answers.jsonl"]
    return [["chat", artifact], predicts] if goal in ("chat", "answer", "write") else [predicts, ["chat", artifact]]


def _next(screen: Screen, *commands: Sequence[str]) -> None:
    screen.line()
    for index, command in enumerate(commands):
        screen.line(("Next     " if not index else " " * 9, "bold"), shlex.join(["burnish", *command]), whole=True)
