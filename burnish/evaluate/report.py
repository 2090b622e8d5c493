"""A finding as one page that a manager reads and a sceptic checks: one file, no network, no script.

In: a Report, the test rows and what every rung said about them.  Out: HTML text.
Rows and answers are the words of strangers: everything passes `visible` and is escaped, links are never made.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from burnish import kinds
from burnish.evaluate import charts, plain, scores
from burnish.evaluate.card import facts_of, usage
from burnish.metrics import exact_match
from burnish.metrics._text import gold
from burnish.records import Example, Label, Prediction, Report, RungResult, Score

SHOWN = 20  # rows of a list; the rest are counted
WIDEST = 12  # classes of a whole confusion matrix; with more, only the most confused pairs are shown
NO_ANSWER = "no answer"
FIRST = 5  # rows of a list that stand open
RIGHT_OR_WRONG = ("classify", "extract", "answer")

BASELINE = "baseline"  # always the same answer: a floor, not a prompt

HOW_INTERVAL = {
    "rows and seeds": "variance over test rows (bootstrap) and over training seeds added, Student's t (Satterthwaite)",
    "wilson": "Wilson's interval of a proportion",
    "bootstrap": "bootstrap over test rows, percentiles widened for few rows",
}
HOW_TEST = {
    "rows and seeds": "t test on the variance over test rows and over training seeds added (Satterthwaite)",
    "mcnemar": "McNemar's test (mid-p) on the rows where two rungs differ; Newcombe's paired interval",
    "random swaps": "the difference against those after swapping the two rungs' answers row by row at random; "
    "paired bootstrap interval",
}

Said = Mapping[str, Mapping[str, Prediction]]  # rung -> example id -> prediction


def html(report: Report, examples: Sequence[Example], predictions: Mapping[str, Sequence[Prediction]]) -> str:
    """The whole report as one HTML file.

    examples: the test rows.  predictions: rung -> what it said about them, joined by id; a rung may be missing.
    """
    ran = [rung for rung in report.rungs if rung.scores and not rung.skipped]
    said = {rung: {item.id: item for item in items} for rung, items in predictions.items()}
    target = report.goal.get("target")
    real = [rung for rung in ran if rung.rung != BASELINE]
    shown = report.verdict.rung or (best(real).rung if real else "")
    tested = [(rung.rung, rung.scores[0]) for rung in ran if math.isfinite(rung.scores[0].value)]
    matrices = [confusion(rung.rung, examples, said[rung.rung]) for rung in ran if rung.rung in said]
    chosen = next((rung for rung in ran if rung.rung == shown), None)
    known, more = _data(report.data)
    page: str = _template().render(
        report=report,
        goal=report.goal,
        verdict=report.verdict,
        ran=ran,
        chosen=chosen,
        shown=shown,
        first=FIRST,
        less=list(dict.fromkeys(score.metric for rung in ran for score in rung.scores if not score.higher)),
        metrics=list(dict.fromkeys(score.metric for rung in ran for score in rung.scores)),
        ladder=charts.ladder(tested, target, shown, _costs(ran)) if tested else "",
        curves=[(rung, charts.losses(rung.rung, rung.curve, _best_step(rung))) for rung in report.rungs if rung.curve],
        matrices=sorted((item for item in matrices if item.counts), key=lambda item: item.rung != shown),
        scatters=_scatters(shown, examples, said),
        listings=listings(report, ran, shown, examples, said),
        samples=_samples(report),
        data=known,
        more=more,
        how=_how(report),
        usage=usage(report, chosen, facts_of(report, chosen)) if chosen else [],
    )
    return page.lstrip()


@cache
def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else plain.visible(str(value)),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("clip", "line", "number", "cell", "signed", "chance", "percent", "seconds", "setting"):
        environment.filters[name] = getattr(plain, name)
    environment.filters["when"] = _when
    environment.globals["interval"] = plain.interval
    environment.globals["score_of"] = lambda rung, metric: next((x for x in rung.scores if x.metric == metric), None)
    environment.tests["table"] = lambda value: _is_list(value) and all(isinstance(item, Mapping) for item in value)
    environment.tests["list"] = _is_list
    environment.tests["long"] = lambda text: len(text) > 40
    environment.globals["columns"] = _columns
    return environment.get_template("report.html.jinja")


def _columns(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Every key of some rows in the order they come, hashes last: they are wide and seldom read."""
    return sorted(dict.fromkeys(key for row in rows for key in row), key=lambda key: "sha" in key)


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple)) and bool(value)


def _when(time: object) -> str:
    if isinstance(time, (int, float)) and 0 < time < 1e11:
        return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return str(time)


# --- the rungs -----------------------------------------------------------------------------------------------


def best(rungs: Sequence[RungResult]) -> RungResult:
    """The rung with the best score of the goal's metric; the earlier (cheaper) one of equals."""
    return max(rungs, key=lambda rung: _rank(rung.scores[0]))


def _rank(score: Score) -> float:
    return -math.inf if math.isnan(score.value) else score.value if score.higher else -score.value


def _costs(rungs: Iterable[RungResult]) -> dict[str, str]:
    return {
        rung.rung: (f"{rung.trained:,} parameters trained, " if rung.trained else "") + plain.seconds(rung.seconds)
        for rung in rungs
        if rung.seconds or rung.trained
    }


def _best_step(rung: RungResult) -> int | None:
    step = rung.settings.get("best_step")
    return step if isinstance(step, int) else None


# --- what was said about each row ----------------------------------------------------------------------------


def right(task: str, example: Example, prediction: Prediction) -> bool | None:
    """Whether an answer is the gold one, texts word for word; None where the task has no right or wrong."""
    if task not in RIGHT_OR_WRONG or isinstance(example.label, (int, float)):
        return None
    if task == "classify":
        return not prediction.problem and _label(prediction.label) == _label(example.label)
    return exact_match.components(example, prediction, ()) == (1.0,) if gold(example) else None


def _label(label: Label | None) -> str:
    if isinstance(label, (tuple, list)):
        return ", ".join(sorted(label)) or "(none)"
    return NO_ANSWER if label is None else str(label)


@dataclass(frozen=True)
class Confusion:
    """How often each gold class (first) was answered as each class (second).

    pairs: the most frequent confusions as (gold, said, rows, rows of that gold class), at most 15.
    """

    rung: str
    labels: tuple[str, ...]
    counts: Mapping[tuple[str, str], int]
    pairs: tuple[tuple[str, str, int, int], ...]
    left: int

    @property
    def n(self) -> int:
        return sum(self.counts.values())

    @property
    def golds(self) -> list[str]:
        """The classes that have rows."""
        return [label for label in self.labels if self.of(label)]

    def of(self, gold: str) -> int:
        """Rows of a gold class."""
        return sum(count for (label, _), count in self.counts.items() if label == gold)

    @property
    def small(self) -> bool:
        return len(self.labels) <= WIDEST


def confusion(rung: str, examples: Sequence[Example], said: Mapping[str, Prediction]) -> Confusion:
    """Count gold against answer over the rows with one class each; empty where there are none."""
    rows = [row for row in examples if isinstance(row.label, str) and row.id in said]
    if not rows:
        return Confusion(rung, (), {}, (), 0)
    told = [said[row.id] for row in rows]
    given = [*(row.label for row in rows), *(item.label for item in told)]
    labels = sorted({label for label in given if isinstance(label, str)})
    table, answers = scores.confusion(rows, told, labels), [*labels, NO_ANSWER]
    counts = {
        (gold, answer): count
        for gold, line in zip(labels, table, strict=True)
        for answer, count in zip(answers, line, strict=True)
        if count
    }
    golds = Counter(row.label for row in rows)
    wrong = sorted(
        ((gold, answer, count, golds[gold]) for (gold, answer), count in counts.items() if gold != answer),
        key=lambda pair: (-pair[2], pair[3], pair[:2]),
    )
    used = [answer for answer in answers if answer in golds or any(answer == column for _, column in counts)]
    return Confusion(rung, tuple(used), counts, tuple(wrong[:15]), max(0, len(wrong) - 15))


@dataclass(frozen=True)
class Row:
    """One test row in a list: its text, the gold answer and what rungs answered."""

    where: str
    text: str
    gold: str
    answers: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Listing:
    """Rows worth reading, the first of `total`; `columns` are the rungs whose answers stand in each row."""

    anchor: str
    title: str
    told: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    total: int


def listings(
    report: Report, ran: Sequence[RungResult], shown: str, examples: Sequence[Example], said: Said
) -> list[Listing]:
    """What tuning fixed and broke (best tuned rung against the best that is not), and what is still wrong."""
    told = [rung for rung in ran if rung.rung in said]
    tuned = kinds.names("adapters")
    prompted = [rung for rung in told if rung.rung not in tuned and rung.rung != BASELINE]
    trained = [rung for rung in told if rung.rung in tuned]
    found = []
    if prompted and trained:
        found += _changed(report, best(prompted).rung, best(trained).rung, examples, said)
    if shown in said:
        found += _wrong(report, shown, examples, said)
    return found


def _changed(report: Report, a: str, b: str, examples: Sequence[Example], said: Said) -> list[Listing]:
    both = [row for row in examples if row.id in said[a] and row.id in said[b]]
    gains = [(_gain(report.goal.get("task", ""), row, said[a][row.id], said[b][row.id]), row) for row in both]
    if not any(gain is not None for gain, _ in gains):
        return []
    numeric = any(isinstance(row.label, (int, float)) for row in both)
    if numeric:
        lists = (("Rows brought closer", "is closer than", 1), ("Rows moved away", "is further off than", -1))
    else:
        lists = (("Rows fixed by tuning", "is right, not", 1), ("Rows broken by tuning", "is wrong, not", -1))
    made = []
    for title, verb, sign in lists:
        rows = sorted(
            ((gain * sign, row) for gain, row in gains if gain and gain * sign > 0), key=lambda pair: -pair[0]
        )
        shown = tuple(_row(row, (a, b), said) for _, row in rows[:SHOWN])
        how = ", word for word" if all(row.label is None for row in both) else ""
        told = f"{b} {verb} {a}{how}: {len(rows):,} of {len(both):,} rows."
        made.append(Listing("fixed" if sign > 0 else "broken", title, told, (a, b), shown, len(rows)))
    return made


def _gain(task: str, example: Example, before: Prediction, after: Prediction) -> float | None:
    """How much better the second answer is: 1, 0 or -1 where there is right and wrong, else the fall in error."""
    if isinstance(example.label, (int, float)):
        errors = [abs(item.number - example.label) if item.number is not None else math.inf for item in (before, after)]
        return 0.0 if errors[0] == errors[1] else errors[0] - errors[1]
    was, now = right(task, example, before), right(task, example, after)
    return None if was is None or now is None else float(now) - float(was)


def _wrong(report: Report, rung: str, examples: Sequence[Example], said: Said) -> list[Listing]:
    told = [row for row in examples if row.id in said[rung]]
    if told and isinstance(told[0].label, (int, float)):
        ranked = sorted(told, key=lambda row: -_error(row, said[rung][row.id]))
        rows, title, words = ranked, "Rows furthest off", f"{rung}, all {len(told):,} rows by their error."
    else:
        judged = [(right(report.goal.get("task", ""), row, said[rung][row.id]), row) for row in told]
        if not any(fine is not None for fine, _ in judged):
            return []
        rows = sorted((row for fine, row in judged if fine is False), key=lambda row: -_sure(said[rung][row.id]))
        title = "Rows still wrong"
        words = f"{rung} is wrong on {len(rows):,} of {len(told):,} rows"
        sure = any(said[rung][row.id].probabilities for row in rows)
        words += "; the surest answers come first." if sure else "."
    shown = tuple(_row(row, (rung,), said) for row in rows[:SHOWN])
    return [Listing("wrong", title, words, (rung,), shown, len(rows))]


def _error(example: Example, prediction: Prediction) -> float:
    if prediction.number is None or not isinstance(example.label, (int, float)):
        return math.inf
    return abs(prediction.number - example.label)


def _sure(prediction: Prediction) -> float:
    return max((prediction.probabilities or {}).values(), default=0.0)


def _row(example: Example, rungs: Sequence[str], said: Said) -> Row:
    gold = plain.setting(example.label) if isinstance(example.label, float) else _label(example.label)
    every = {_answer(items[example.id], sure=False) for items in said.values() if example.id in items}
    alike = len(every) == 1 and len(said) > 1 and gold not in every and isinstance(example.label, str)
    return Row(
        str(example.where),
        _asked(example),
        example.answer if example.label is None else gold,
        tuple(_answer(said[rung][example.id]) for rung in rungs),
        f"all {len(said)} rungs answer this: is the gold label right?" if alike else "",
    )


def _asked(example: Example) -> str:
    turns = example.prompt
    if len(turns) == 1:
        return turns[0].content
    told = "\n".join(f"{turn.role}: {turn.content}" for turn in turns) or example.text
    return told if example.pair is None else f"{told}\n\n{example.pair}"


def _answer(prediction: Prediction, sure: bool = True) -> str:
    if prediction.problem:
        return f"{NO_ANSWER}: {prediction.problem}"
    if prediction.number is not None:
        return plain.number(prediction.number)
    if prediction.label is None:
        return prediction.text or NO_ANSWER
    told = _label(prediction.label)
    return f"{told} ({_sure(prediction):.2f})" if sure and prediction.probabilities else told


def _scatters(shown: str, examples: Sequence[Example], said: Said) -> list[tuple[str, int, Markup]]:
    """True against predicted numbers per rung, the shown rung first; empty unless the labels are numbers."""
    found = []
    for rung in sorted(said, key=lambda name: name != shown):
        pairs = [
            (float(row.label), float(number))
            for row in examples
            if isinstance(row.label, (int, float)) and (number := _number(said[rung].get(row.id))) is not None
        ]
        if pairs:
            found.append((rung, len(pairs), charts.scatter(pairs, rung)))
    return found


def _number(prediction: Prediction | None) -> float | None:
    return None if prediction is None else prediction.number


def _samples(report: Report) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """(prompt, reference, [(rung, text)]) in the order prompts first appear."""
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    for rung in report.rungs:
        for sample in rung.samples:
            entry = found.setdefault(sample.get("prompt", ""), (sample.get("reference", ""), []))
            entry[1].append((rung.rung, sample.get("text", "")))
    return [(prompt, reference, texts) for prompt, (reference, texts) in found.items()]


# --- data and method -----------------------------------------------------------------------------------------


DATA = {
    "rows": "rows",
    "splits": "split",
    "label_counts": "rows per class",
    "letters": "letters per row",
    "groups": "near duplicates, never parted by the split",
    "files": "files",
    "reading": "read as",
    "warnings": "warnings",
}


def _data(card: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The data card in reading order, then the rest of it; without what says nothing."""
    told = {key: value for key, value in card.items() if value not in (None, "", (), [], {})}
    counts = told.get("label_counts")
    if isinstance(counts, Mapping) and all(isinstance(inner, Mapping) for inner in counts.values()):
        classes = dict.fromkeys(label for inner in counts.values() for label in inner)
        told["label_counts"] = {
            label: {split: inner.get(label, 0) for split, inner in counts.items()} for label in classes
        }
    known = {
        title: told.pop(key)
        for key, title in DATA.items()
        if key in told and not (key == "label_counts" and len(told[key]) > WIDEST)
    }
    return known, told


def _how(report: Report) -> list[str]:
    """Sentences on how the numbers were made, from what the records say about themselves."""
    scores = [score for rung in report.rungs for score in rung.scores]
    told = []
    for way in dict.fromkeys(score.method for score in scores):
        metrics = ", ".join(dict.fromkeys(score.metric for score in scores if score.method == way))
        sure = plain.percent(next(score.confidence for score in scores if score.method == way))
        told.append(f"Intervals of {metrics}: {HOW_INTERVAL.get(way, way)}, two-sided, {sure}.")
    for test in dict.fromkeys(item.test for item in report.comparisons):
        told.append(f"Comparisons: {HOW_TEST.get(test, test)}; p is two-sided.")
    if report.comparisons:
        many = len(report.comparisons)
        told.append(f"p after Holm: corrected for {many} comparison{'s' * (many > 1)} made at once.")
    told.append("Settings, prompts and the kept training step were chosen on validation rows; test rows only judged.")
    return told
