"""Answering the locked test set with every rung, once; scores, comparisons, the verdict and its page.

Which pair of rungs the verdict speaks of is decided on validation rows, before the test set is opened.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from burnish import store
from burnish.climb import openings
from burnish.climb.answers import Asker, kept_with
from burnish.climb.ladder import Ladder, environment
from burnish.climb.rungs import made
from burnish.evaluate import card, report, scores, verdict
from burnish.evaluate import cost as costs
from burnish.evaluate import predict as predicting
from burnish.evaluate.advice import next_steps
from burnish.evaluate.compare import Sides
from burnish.evaluate.cost import Prices
from burnish.evaluate.curve import Learning, learning
from burnish.models import base as models
from burnish.models.model import Model
from burnish.records import Comparison, Event, Example, Prediction, Report, RungResult, Say, Verdict
from burnish.task import trains
from burnish.tokens.ask import readable
from burnish.tokens.encode import encode_all

CHOOSING = 500  # validation rows by which the pair of the verdict's claim is chosen


def judge(
    ladder: Ladder,
    results: Sequence[RungResult],
    rows: Sequence[Example],
    suite: str,
    verb: str,
    say: Say,
    model: Callable[[], Model] | None = None,
    points: Sequence[Point] = (),
) -> Report:
    """Answer `rows` with every rung and seed, score, compare pairwise, and decide.

    suite: under which name the predictions are kept.  points: smaller trainings of one rung, for its learning curve.
    Opening the test set is written to the ledger once, and only if a rung has to answer: predictions of an artifact
    that has not changed are not made again, and a judging that was killed goes on under the opening it began.
    """
    task = ladder.task
    ran = [result for result in results if not result.skipped]
    table = costs.prices(task.folder)
    claim = claimed(ladder, ran, say, model)  # before any of these rows is read
    extra = [str(seed["artifact"]) for result in ran for seed in result.seeds]
    every = [*(result.artifact for result in ran), *extra, *(point.artifact for point in points)]
    asker = Asker(ladder, rows, suite, say, model)
    waiting = [artifact for artifact in every if not asker.answered(artifact)]
    if waiting:
        openings.open(ladder.folder, rows, suite, verb, [asker.made_by(artifact) for artifact in every])
    predictions = {result.rung: asker.ask(result.rung, result.artifact) for result in ran}
    seeds = {
        result.rung: [asker.ask(f"{result.rung}, seed {seed['seed']}", str(seed["artifact"])) for seed in result.seeds]
        for result in ran
    }
    smaller = [asker.ask(f"{point.rung} on {point.rows} rows", point.artifact) for point in points]
    if waiting:
        openings.done(ladder.folder, suite)
    scored = [
        _scored(ladder, result, rows, predictions[result.rung], seeds[result.rung], suite, table)
        if result.rung in predictions
        else result
        for result in results
    ]
    comparisons: tuple[Comparison, ...] = ()
    if len(predictions) > 1:
        say("verdict", Event("phase", 0, 0.0, {"text": "comparing rungs"}))
        comparisons = ladder.scoring(rows).compare(predictions, seeds, claim)
    goal = {"task": task.goal.task, "metric": ladder.metric, "target": task.goal.target}
    readings = openings.readings(rows)
    decided = verdict.decide(goal, scored, comparisons, len(rows), openings=max(len(readings), 1))
    decided = replace(decided, notes=(*decided.notes, *_unlearned(ladder, ran), *_shortened(ladder, rows)))
    learned = _learning(ladder, points, smaller, predictions, seeds, rows)
    found = _report(ladder, ladder.folder.name, goal, scored, comparisons, decided, readings, table)
    return replace(found, learning=learned.to_json() if learned else {})


def _report(
    ladder: Ladder,
    name: str,
    goal: Mapping[str, Any],
    rungs: Sequence[RungResult],
    comparisons: Sequence[Comparison],
    decided: Verdict,
    readings: Sequence[Mapping[str, Any]],
    table: Prices,
) -> Report:
    """What was found, with the base, the data and the machine it was found on."""
    base = ladder.base
    return Report(
        name,
        goal,
        {
            "name": base.name,
            "kind": base.kind,
            "folder": str(base.folder),
            "fingerprint": base.fingerprint,
            "context": base.context,
            "vocabulary": base.vocabulary,
            "license": models.license_of(base.folder),
        },
        tuple(rungs),
        tuple(comparisons),
        decided,
        ladder.prepared.card,
        tuple(readings),
        {**environment(), "prices": table.to_json()},
        str(ladder.folder),
    )


Side = tuple[Ladder, Path, Sequence[Prediction]]  # a run, one of its artifacts, and what that said


def publish_pair(told: Sides, sides: tuple[Side, Side], rows: Sequence[Example], suite: str) -> Path:
    """Write the page of two artifacts on the same rows, whatever runs they come from; returns where it lies."""
    ladder = sides[0][0]
    table = costs.prices(ladder.task.folder)
    rungs, names = [], (told.a, told.b)
    for name, (its, folder, said) in zip(names, sides, strict=True):
        found = next((item for item in made(its.folder) if Path(item.artifact).resolve() == folder.resolve()), None)
        own = replace(found or RungResult("", artifact=str(folder)), seeds=())
        rungs.append(replace(_scored(its, own, rows, said, (), suite, table), rung=name))
    goal = {"task": ladder.task.goal.task, "metric": ladder.metric}
    decided = Verdict(told.better, "best" if told.better else "too few rows", told.sentence)
    page = store.home() / "comparisons" / f"{store.slug(told.a)}--{store.slug(told.b)}-{suite}.html"
    name = f"{told.b} against {told.a}"
    whole = _report(ladder, name, goal, rungs, (told.comparison,), decided, openings.readings(rows), table)
    both = {name: said for name, (_, _, said) in zip(names, sides, strict=True)}
    store.write_text(page, report.html(whole, rows, both, ladder.rows("train")))
    return page


def claimed(
    ladder: Ladder, results: Sequence[RungResult], say: Say, model: Callable[[], Model] | None = None
) -> tuple[str, ...]:
    """The rung that trains and the one that does not whose difference is the verdict's one claim.

    Where a side has several rungs, the one that does best on (at most CHOOSING of) the validation rows; () where a
    side has none.
    """
    tuned = [item for item in results if trains(item.rung)]
    asked = [item for item in results if not trains(item.rung) and item.rung != "baseline"]
    rows = ladder.rows("validation") if len(tuned) > 1 or len(asked) > 1 else []
    if not tuned or not asked or (not rows and len(tuned) + len(asked) > 2):
        return ()
    if len(rows) > CHOOSING:  # any choice is fair that knows nothing of the test rows; a dear prompt is asked them all
        rows = [rows[i] for i in sorted(random.Random(0).sample(range(len(rows)), CHOOSING))]
    asker, scoring = Asker(ladder, rows, "validation", say, model), ladder.scoring(rows)

    def value(item: RungResult) -> float:
        found = scoring.value(asker.ask(item.rung, item.artifact))
        return -math.inf if math.isnan(found) else found if scoring.module.HIGHER else -found

    return tuple(side[0].rung if len(side) == 1 else max(side, key=value).rung for side in (asked, tuned))


@dataclass(frozen=True)
class Point:
    """A rung trained on a share of the rows."""

    rung: str
    rows: int
    artifact: str


def _learning(
    ladder: Ladder,
    points: Sequence[Point],
    smaller: Sequence[Sequence[Prediction]],
    predictions: Mapping[str, Sequence[Prediction]],
    seeds: Mapping[str, Sequence[Sequence[Prediction]]],
    rows: Sequence[Example],
) -> Learning | None:
    """The learning curve through the smaller trainings and the rung itself with all its seeds."""
    if not points:
        return None
    rung, scoring = points[0].rung, ladder.scoring(rows)
    trained = [*([said] for said in smaller), [predictions[rung], *seeds[rung]]]
    sizes = [*(point.rows for point in points), len(ladder.rows("train"))]
    return learning(rung, scoring, sizes, [scoring.seeded(own) for own in trained])


def publish(told: Report, folder: Path, rows: Sequence[Example], suite: str, train: Sequence[Example] = ()) -> Report:
    """Write report.json, report.html, and a model card into every artifact; returns the report with its page."""
    predictions = {rung.rung: predicting.stored(Path(rung.predictions)) for rung in told.rungs if rung.predictions}
    name = "report" if suite == "test" else f"report-{suite}"
    told = replace(told, page=str(folder / f"{name}.html"), advice=next_steps(told))
    store.write_json(folder / f"{name}.json", told.to_json())
    store.write_text(folder / f"{name}.html", report.html(told, rows, predictions, train))
    for rung in told.rungs:
        if rung.artifact and suite == "test":
            files = store.read_json(Path(rung.artifact) / "artifact.json")["files"]
            facts = replace(card.facts_of(told, rung), files=files)
            store.write_text(Path(rung.artifact) / "README.md", card.card(told, rung, facts))
    return told


def _unlearned(ladder: Ladder, results: Sequence[RungResult]) -> list[str]:
    """A note on training rows that a trained rung did without: a verdict on tuning rests on the others."""
    rungs: dict[int, list[str]] = {}
    for result in results:
        path = Path(result.artifact).parent / "dropped.jsonl"
        if path.exists() and (many := sum(row["split"] == "train" for row in store.read_jsonl(path))):
            rungs.setdefault(many, []).append(result.rung)
    total = len(ladder.rows("train")) if rungs else 0
    why = "the others do not fit the base, dropped.jsonl beside the artifact names them"
    return [f"{' and '.join(own)} learned from {total - many} of {total} rows: {why}" for many, own in rungs.items()]


def _shortened(ladder: Ladder, rows: Sequence[Example]) -> list[str]:
    """A note on rows that are longer than the model reads: each is answered all the same, from what fits."""
    if ladder.trained.target == "document":
        return []
    encoding = ladder.trained.encoding(ladder.tokenizer, ladder.base.kind)
    long = len(encode_all(readable(rows, ladder.trained), replace(encoding, too_long="drop"))[1])
    told = f"{long} of {len(rows)} rows have more than {encoding.max_length} tokens and were answered from what fits"
    return [told] if long else []


def _scored(
    ladder: Ladder,
    result: RungResult,
    rows: Sequence[Example],
    said: Sequence[Prediction],
    seeds: Sequence[Sequence[Prediction]],
    suite: str,
    table: Prices,
) -> RungResult:
    scoring = ladder.scoring(rows)
    names = [ladder.metric, *(n for n in scores.applicable(ladder.task.goal.task, rows, said) if n != ladder.metric)]
    told = tuple(replace(scoring, metric=name).score(said, seeds) for name in names)
    path = Path(result.artifact).parent / "predictions" / f"{suite}.jsonl"
    kept = kept_with(path)
    own = [{**seed, "value": scoring.value(answers)} for seed, answers in zip(result.seeds, seeds, strict=True)]
    first = {"seed": ladder.task.train.seed, "value": scoring.value(said)}
    made = {"seconds": result.seconds, "tokens": 0, "memory": 0, **result.cost.get("making", {})}
    cost = {"making": costs.making(**made, table=table), "running": costs.running(said, kept["memory"], table)}
    return replace(
        result,
        scores=told,
        predictions=str(path),
        samples=tuple(kept["samples"]),
        seeds=tuple([first, *own] if own else ()),
        search=result.search or _searched(Path(result.artifact).parent),
        prompt=str(kept.get("prompt", "")),
        cost=cost,
    )


def _searched(folder: Path) -> tuple[dict[str, Any], ...]:
    """The trace of a prompt's search, without the demonstrations themselves, which are in search.jsonl."""
    path = folder / "search.jsonl"
    rows = store.read_jsonl(path) if path.exists() else ()
    return tuple({key: value for key, value in row.items() if key != "demonstrations"} for row in rows)
