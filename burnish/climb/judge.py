"""Answering the locked test set with every rung, once; scores, comparisons, the verdict and its page.

Every opening of a test set is written to a ledger in BURNISH_HOME, whatever run it was for.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from burnish import artifact as artifacts
from burnish import store
from burnish.artifact import Artifact
from burnish.climb.ladder import Ladder, environment
from burnish.evaluate import card, report, scores, verdict
from burnish.evaluate import predict as predicting
from burnish.generate.engine import Sampling
from burnish.generate.pieces import continued
from burnish.models import base as models
from burnish.models.model import Model
from burnish.records import Comparison, Event, Example, Prediction, Report, RungResult
from burnish.tokens.encode import encode_all
from burnish.train.tune import readable

Say = Callable[[str, Event], None]


def judge(
    ladder: Ladder,
    results: Sequence[RungResult],
    rows: Sequence[Example],
    suite: str,
    verb: str,
    say: Say,
    model: Callable[[], Model] | None = None,
) -> Report:
    """Answer `rows` with every rung, score, compare pairwise, and decide.

    suite: under which name the predictions are kept.  Opening the test set is written to the ledger once, and only
    if a rung has to answer: predictions of an artifact that has not changed are not made again.
    """
    task, metric, settings = ladder.task, ladder.metric, ladder.task.evaluate
    predictions: dict[str, list[Prediction]] = {}
    opened = False
    for result in results:
        if result.skipped:
            continue
        artifact = artifacts.load(result.artifact)
        path = Path(result.artifact).parent / "predictions" / f"{suite}.jsonl"
        done = predicting.stored(path)
        made_by = _made_by(artifact, ladder)
        if [item.id for item in done] != [row.id for row in rows] or _maker(path) != made_by:
            if not opened:
                _open(ladder, rows, suite, verb)
                opened = True
            rung, total = result.rung, len(rows)

            def tell(count: int, rung: str = rung, total: int = total) -> None:
                say(
                    rung,
                    Event(
                        "phase",
                        0,
                        0.0,
                        {"text": f"{rung}: {count} of {total} {suite} rows", "done": count, "total": total},
                    ),
                )

            tell(0)
            base = model() if model and not artifact.adapter else None
            done = list(predicting.predict(artifact, rows, settings, base, tell))
            predicting.keep(path, done)
            samples = _samples(artifact, rows, ladder, base)
            store.write_json(path.with_suffix(".json"), {**made_by, "samples": samples})
        predictions[result.rung] = done
    scored = [_scored(ladder, result, rows, predictions.get(result.rung), suite) for result in results]
    labels = ladder.asked.labels
    comparisons: tuple[Comparison, ...] = ()
    if len(predictions) > 1:
        say("verdict", Event("phase", 0, 0.0, {"text": "comparing rungs"}))
        comparisons = scores.compare_all(predictions, metric, rows, labels, settings.confidence, settings.resamples)
    goal = {"task": task.goal.task, "metric": metric, "target": task.goal.target}
    decided = verdict.decide(goal, scored, comparisons, len(rows))
    decided = replace(decided, notes=(*decided.notes, *_shortened(ladder, rows)))
    readings = _readings(rows)
    if len(readings) > 1:
        note = f"this test set has been opened {len(readings)} times; choices made in between weaken what it proves"
        decided = replace(decided, notes=(*decided.notes, note))
    return Report(
        ladder.folder.name,
        goal,
        {
            "name": ladder.base.name,
            "kind": ladder.base.kind,
            "folder": str(ladder.base.folder),
            "fingerprint": ladder.base.fingerprint,
            "context": ladder.base.context,
            "vocabulary": ladder.base.vocabulary,
            "license": models.license_of(ladder.base.folder),
        },
        tuple(scored),
        comparisons,
        decided,
        ladder.prepared.card,
        tuple(readings),
        environment(),
        str(ladder.folder),
    )


def publish(told: Report, folder: Path, rows: Sequence[Example], suite: str) -> Report:
    """Write report.json, report.html, and a model card into every artifact; returns the report with its page."""
    predictions = {rung.rung: predicting.stored(Path(rung.predictions)) for rung in told.rungs if rung.predictions}
    name = "report" if suite == "test" else f"report-{suite}"
    told = replace(told, page=str(folder / f"{name}.html"))
    store.write_json(folder / f"{name}.json", told.to_json())
    store.write_text(folder / f"{name}.html", report.html(told, rows, predictions))
    for rung in told.rungs:
        if rung.artifact and suite == "test":
            files = json.loads((Path(rung.artifact) / "artifact.json").read_text(encoding="utf-8"))["files"]
            facts = replace(card.facts_of(told, rung), files=files)
            store.write_text(Path(rung.artifact) / "README.md", card.card(told, rung, facts))
    return told


def _made_by(artifact: Artifact, ladder: Ladder) -> dict[str, Any]:
    """What decides an artifact's answers besides the rows."""
    assert artifact.folder is not None
    settings = ladder.task.evaluate
    return {
        "artifact": hashlib.sha256((artifact.folder / "artifact.json").read_bytes()).hexdigest(),
        "max_new_tokens": settings.max_new_tokens,
        "samples_wanted": settings.samples,
    }


def _maker(predictions: Path) -> dict[str, Any]:
    """What kept predictions were made by; {} where there are none."""
    path = predictions.with_suffix(".json")
    told = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {name: value for name, value in told.items() if name != "samples"}


def _shortened(ladder: Ladder, rows: Sequence[Example]) -> list[str]:
    """A note on rows that are longer than the model reads: each is answered all the same, from what fits."""
    if ladder.trained.target == "document":
        return []
    encoding = ladder.trained.encoding(ladder.tokenizer, ladder.base.kind)
    long = len(encode_all(readable(rows, ladder.trained), replace(encoding, too_long="drop"))[1])
    told = f"{long} of {len(rows)} rows have more than {encoding.max_length} tokens and were answered from what fits"
    return [told] if long else []


def _scored(
    ladder: Ladder, result: RungResult, rows: Sequence[Example], said: Sequence[Prediction] | None, suite: str
) -> RungResult:
    if said is None:
        return result
    settings = ladder.task.evaluate
    names = [ladder.metric, *(n for n in scores.applicable(ladder.task.goal.task, rows, said) if n != ladder.metric)]
    told = tuple(
        scores.score(name, rows, said, ladder.asked.labels, settings.confidence, settings.resamples) for name in names
    )
    path = Path(result.artifact).parent / "predictions" / f"{suite}.jsonl"
    samples = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["samples"]
    return replace(result, scores=told, predictions=str(path), samples=tuple(samples))


def _samples(artifact: Artifact, rows: Sequence[Example], ladder: Ladder, model: Model | None) -> list[dict[str, str]]:
    """A few texts of a writing rung: the beginnings of held-out documents, continued."""
    settings = ladder.task.evaluate
    if artifact.contract.target != "document" or ladder.base.kind != "decoder" or not settings.samples:
        return []
    ready = predicting.answerer(artifact, settings, model)
    return [
        {"prompt": prompt, "text": "".join(continued(ready, prompt, Sampling(0.8, 0.95, 0))), "reference": rest[:600]}
        for prompt, rest in (_beginning(row.text) for row in rows[: settings.samples])
    ]


def _beginning(text: str) -> tuple[str, str]:
    words = text.split(" ")
    return " ".join(words[:12]), " ".join(words[12:])


# --- the ledger of test-set openings ---------------------------------------------------------------------------


def _test_key(rows: Sequence[Example]) -> str:
    return hashlib.sha256("\n".join(sorted(row.id for row in rows)).encode()).hexdigest()[:16]


def _open(ladder: Ladder, rows: Sequence[Example], suite: str, verb: str) -> None:
    told = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "verb": verb,
        "run": ladder.folder.name,
        "suite": suite,
        "rows": len(rows),
        "test_set": _test_key(rows),
    }
    store.append_jsonl(store.home() / "readings.jsonl", [told])


def _readings(rows: Sequence[Example]) -> list[dict[str, Any]]:
    """Every opening of this very test set in this home, by whatever run."""
    path, key = store.home() / "readings.jsonl", _test_key(rows)
    return [row for row in store.read_jsonl(path) if row["test_set"] == key] if path.exists() else []
