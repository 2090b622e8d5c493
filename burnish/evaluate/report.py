"""A finding as one page that a manager reads and a sceptic checks: one file, no network, no script.

In: a Report, the test rows and what every rung said about them.  Out: HTML text.
Rows and answers are the words of strangers: everything passes `visible` and is escaped, links are never made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from burnish.evaluate import charts, plain, statistics
from burnish.evaluate.card import facts_of, usage
from burnish.evaluate.confusion import WIDEST, confusion, reliability
from burnish.evaluate.cost import break_even, money
from burnish.evaluate.listings import Said, changes, nearest_to, wrong
from burnish.records import Example, Prediction, Report, RungResult, Score
from burnish.task import trains

FIRST = 5  # rows of a list that stand open
PAIRS = 15  # pairs of rungs whose rows are listed
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


def html(
    report: Report,
    examples: Sequence[Example],
    predictions: Mapping[str, Sequence[Prediction]],
    train: Sequence[Example] = (),
) -> str:
    """The whole report as one HTML file.

    examples: the test rows.  predictions: rung -> what it said about them, joined by id; a rung may be missing.
    train: the training rows, to show which of them are most like a row that changed.
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
    goal, near = str(report.goal.get("task", "")), nearest_to(train)
    headline, rest = _sentences(report.verdict.sentence)
    metrics, alike = _metrics(ran)
    page: str = _template().render(
        report=report,
        goal=report.goal,
        verdict=report.verdict,
        ran=ran,
        chosen=chosen,
        shown=shown,
        first=FIRST,
        less=list(dict.fromkeys(score.metric for rung in ran for score in rung.scores if not score.higher)),
        metrics=metrics,
        alike=alike,
        ladder=charts.ladder(tested, target, shown, _costs(ran)) if tested else "",
        curves=[(rung, charts.losses(rung.rung, rung.curve, _best_step(rung))) for rung in report.rungs if rung.curve],
        matrices=sorted((item for item in matrices if item.counts), key=lambda item: item.rung != shown),
        scatters=_scatters(shown, examples, said),
        headline=headline,
        rest=rest,
        tradeoff=_tradeoff(ran, target, shown, _currency(report)),
        currency=_currency(report),
        money=money,
        costed=[rung for rung in ran if rung.cost.get("running") and rung.rung != BASELINE],
        break_evens=_break_evens(report, ran),
        growth=_growth(report.learning),
        searches=[rung for rung in ran if rung.search],
        found=[item for item in map(_found, ran) if item],
        prompts=[rung for rung in ran if rung.prompt],
        changes=changes(goal, _pairs(report, ran, said), examples, said, near),
        wrong=wrong(goal, shown, examples, said, near) if shown in said else [],
        reliabilities=_reliabilities(shown, examples, said),
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
    for name in ("clip", "line", "number", "cell", "signed", "chance", "percent", "seconds", "setting", "size"):
        environment.filters[name] = getattr(plain, name)
    environment.filters["when"] = _when
    environment.globals["interval"] = plain.interval
    environment.globals["trace"] = trace
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


def _sentences(told: str) -> tuple[str, str]:
    """What is claimed, for the headline, and the rest: the figures after the first colon, and further sentences."""
    found = re.search(r"[.] (?=[A-Z])|: ", told)
    if not found:
        return told, ""
    rest = told[found.end() :]
    return f"{told[: found.start()]}.", rest[:1].upper() + rest[1:]


def _metrics(ran: Sequence[RungResult]) -> tuple[list[str], list[str]]:
    """The metrics of a table, and those left out since each of their scores is that of a metric before."""
    columns: dict[str, list[float | None]] = {}
    alike = []
    for name in dict.fromkeys(score.metric for rung in ran for score in rung.scores):
        found = [next((s for s in rung.scores if s.metric == name), None) for rung in ran]
        values = [None if s is None else round(s.value, 9) for s in found]
        if values in columns.values():
            alike.append(name)
        columns.setdefault(name, values)
    return [name for name in columns if name not in alike], alike


@dataclass(frozen=True)
class Trace:
    """A search as a table: what varied among the trials, and in words what did not."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    same: str


def trace(search: Sequence[Mapping[str, Any]]) -> Trace:
    """The trials in their order; scores stand in columns of their own."""
    flat = [{own: cell for key, item in trial.items() for own, cell in _flat(str(key), item)} for trial in search]
    keys = list(dict.fromkeys(key for trial in flat for key in trial))
    heads = [key for key in keys if len(flat) == 1 or len({trial.get(key, "–") for trial in flat}) > 1]
    same = ", ".join(f"{key} {flat[0][key]}" for key in keys if key not in heads and flat[0].get(key))
    return Trace(tuple(heads), tuple(tuple(trial.get(key, "–") for key in heads) for trial in flat), same)


def _flat(key: str, item: Any) -> list[tuple[str, str]]:
    """(head, text) of one value of a trial; numbers by name become columns, switches and words one line."""
    key = key.replace("_", " ")
    if not isinstance(item, Mapping):
        return [(key, plain.number(item) if isinstance(item, float) and item % 1 else plain.setting(item))]
    if item and all(isinstance(own, float) for own in item.values()):
        return [(f"{key.removesuffix('s')}, {name}", plain.number(own)) for name, own in item.items()]
    words = [str(name) if own is True else f"{name} {str(own)!r}" for name, own in item.items() if own]
    return [(key, ", ".join(words))]


@dataclass(frozen=True)
class Found:
    """How well a rung's passages are found.  scores: (name, value, low, high).  by: how the right one is known."""

    rung: str
    told: str
    by: str
    n: int
    scores: tuple[tuple[str, float, float, float], ...]


def _found(rung: RungResult) -> Found | None:
    """What a rung that looks things up says of it; None where it does not, or no row says where its answer stands."""
    told, prefix = rung.settings, "hit_at_"
    n = int(told.get("found_rows", 0))
    if not n or "mrr_error" not in told:  # made before it was kept
        return None
    rates = {key.removeprefix(prefix): float(share) for key, share in told.items() if key.startswith(prefix)}
    scores = [(f"hit at {k}", share, *statistics.wilson(share * n, n)) for k, share in rates.items()]
    mean, reach = float(told["mrr"]), statistics.quantile(0.95) * float(told["mrr_error"])
    scores.append(("MRR", mean, max(mean - reach, 0.0), min(mean + reach, 1.0)))
    where = f"{told['documents']:,} documents, {told['passages']:,} passages of at most {told['chunk']} words"
    return Found(rung.rung, f"{where}, by {told['mode']}; {told['k']} in a prompt", told["found_by"], n, tuple(scores))


def _currency(report: Report) -> str:
    prices = report.environment.get("prices")
    return str(prices.get("currency", "")) if isinstance(prices, Mapping) else ""


def _tradeoff(ran: Sequence[RungResult], target: float | None, shown: str, currency: str) -> Markup:
    """Score against what 1,000 requests cost (seconds where the table says that nothing costs); empty without costs."""
    costed = [rung for rung in ran if rung.cost.get("running") and math.isfinite(rung.scores[0].value)]
    dots = [rung for rung in costed if rung.rung != BASELINE]
    if not dots:
        return Markup("")
    key = "price" if any(rung.cost["running"]["price"] for rung in dots) else "seconds"
    floor = next((rung.scores[0] for rung in costed if rung.rung == BASELINE), None)
    points = [(rung.rung, float(rung.cost["running"][key]), rung.scores[0]) for rung in dots]
    return charts.tradeoff(points, floor, target, shown, currency if key == "price" else "seconds")


def _break_evens(report: Report, ran: Sequence[RungResult]) -> list[str]:
    """Every trained rung against the best rung that is not, in words."""
    tuned = [rung for rung in ran if _trains(rung)]
    asked = [rung for rung in ran if not _trains(rung) and rung.rung != BASELINE]
    if not asked:
        return []
    found = [break_even(rung, best(asked)) for rung in tuned]
    return [item.sentence(_currency(report)) for item in found if item]


def _trains(rung: RungResult) -> bool:
    return trains(rung.rung.rpartition("/")[2])  # of two runs, `compare` names the run too


def _growth(learning: Mapping[str, Any]) -> Markup:
    if not learning:
        return Markup("")
    points = [(float(point["rows"]), float(point["value"])) for point in learning["points"]]
    law = [tuple(float(own) for own in point) for point in learning["curve"]]
    return charts.growth(points, law, learning["metric"])


def _pairs(report: Report, ran: Sequence[RungResult], said: Said) -> list[tuple[str, str]]:
    """Pairs of rungs to set side by side, that of the verdict first, the floor left out."""
    told = [rung for rung in ran if rung.rung in said and rung.rung != BASELINE]
    names = [rung.rung for rung in told]
    first = [(item.a, item.b) for item in report.comparisons if item.claim and {item.a, item.b} <= set(names)]
    sides = [[rung for rung in told if _trains(rung) is tuned] for tuned in (False, True)]
    first += [(best(sides[0]).rung, best(sides[1]).rung)] if not first and all(sides) else []
    return list(dict.fromkeys([*first, *combinations(names, 2)]))[:PAIRS]


def _reliabilities(shown: str, examples: Sequence[Example], said: Said) -> list[tuple[str, float, int, Markup]]:
    """(rung, calibration error, rows, picture) of each rung that states a certainty, the shown one first."""
    found = [reliability(rung, examples, said[rung]) for rung in sorted(said, key=lambda name: name != shown)]
    return [
        (
            item.rung,
            item.error,
            item.n,
            charts.reliability([(own.sure, own.right, own.n) for own in item.bins], item.rung),
        )
        for item in found
        if item and item.rung != BASELINE
    ]


def _costs(rungs: Iterable[RungResult]) -> dict[str, str]:
    return {
        rung.rung: (f"{rung.trained:,} parameters trained, " if rung.trained else "") + plain.seconds(rung.seconds)
        for rung in rungs
        if rung.seconds or rung.trained
    }


def _best_step(rung: RungResult) -> int | None:
    step = rung.settings.get("best_step")
    return step if isinstance(step, int) else None


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
        metrics += " of rungs with several seeds" if way == "rows and seeds" else ""
        told.append(f"Intervals of {metrics}: {HOW_INTERVAL.get(way, way)}, two-sided, {sure}.")
    for test in dict.fromkeys(item.test for item in report.comparisons):
        told.append(f"Comparisons: {HOW_TEST.get(test, test)}; p is two-sided.")
    if report.comparisons:
        many = len(report.comparisons)
        told.append(f"p after Holm: corrected for {many} comparison{'s' * (many > 1)} made at once.")
    if any(item.claim for item in report.comparisons):
        told.append(
            "The verdict's claim, whether tuning pays, is of one pair: the best of either side on validation rows, "
            "chosen before a test row was read. Its own p stands; of equal pairs 5 % are called different."
        )
    if any(rung.seeds for rung in report.rungs):
        told.append(
            "Scores of rungs with several seeds are the mean over them; rows, confusion and certainty are those of the "
            "first seed, whose artifact is the one to use."
        )
    told.append("Settings, prompts and the kept training step were chosen on validation rows; test rows only judged.")
    return told
