"""Making one rung: trained or prompted, from the ladder to an artifact; a finished one is taken as it is."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from burnish import artifact as artifacts
from burnish import kinds, store
from burnish.artifact import Artifact
from burnish.climb.ladder import Ladder, cost
from burnish.climb.search import searched, variant
from burnish.errors import BurnishError, Interrupted
from burnish.evaluate import cost as costs
from burnish.evaluate import predict as predicting
from burnish.evaluate.curve import FEWEST, SHARES
from burnish.models.model import Model
from burnish.prompting._world import World
from burnish.records import Event, Example, RungResult, Say
from burnish.task import parts
from burnish.train.distributed import Ranks
from burnish.train.job import Job
from burnish.train.tune import tune


def job_of(ladder: Ladder, rung: str) -> Job:
    """What training a rung needs to know."""
    task, contract, adapter = ladder.task, ladder.trained, kinds.load("adapters", rung)
    if hasattr(adapter, "fitted"):  # a soft prompt takes room, and starts from the task's words
        contract, own = adapter.fitted(contract, ladder.base.kind, task.rung_settings.get(rung, {}))
        task = replace(task, rung_settings={**task.rung_settings, rung: own})
    return Job(
        task,
        rung,
        ladder.base,
        contract,
        ladder.method,
        {key: value for key, value in ladder.task.method.items() if key != "kind"},
        ladder.prepared.folder,
        ladder.rung_folder(rung),
        {"run": ladder.folder.name, "rung": rung, "torch": torch.__version__},
        ladder.prepared.columns,
    )


def make_trained(
    ladder: Ladder, rung: str, again: bool, say: Say, seeds: int = 1, search: int = 0, ranks: Ranks | None = None
) -> RungResult:
    """Train one rung, or take the finished one of an earlier sitting.

    seeds: train it from so many seeds; the first makes the artifact.  search: try so many settings on validation rows.
    ranks: the processes that train it together, each of which calls this; this one alone where none are given.
    """
    folder, ranks = ladder.rung_folder(rung), ranks or Ranks()
    if again and ranks.main:
        _forget(folder)
    ranks.tell("ready")
    with store.locked(folder) if ranks.main else nullcontext():
        job, result = replace(job_of(ladder, rung), ranks=ranks), finished(folder)
        if search and (result is None or len(result.search) < search):
            result = searched(job, search, lambda one, watch: finished(one.folder) or train(one, say, watch))
        elif result is None:
            result = train(job, say)
        else:
            say(rung, Event("phase", 0, 0.0, {"text": f"{rung}: already made"}))
        assert result is not None
        more = [_reseeded(job, result, number, say) for number in range(1, seeds)]
        return replace(result, seeds=tuple(more))


def _reseeded(job: Job, first: RungResult, number: int, say: Say) -> dict[str, Any]:
    """The same rung and settings from another seed; what tells it from the first."""
    rate, epochs = (first.settings[name] for name in ("learning_rate", "epochs"))
    seed = job.task.train.seed + number
    other = variant(job, f"seeds/{seed}", seed=seed, learning_rate=rate, epochs=epochs)
    made = finished(other.folder) or train(other, say)
    assert made is not None
    return {"seed": seed, "artifact": made.artifact}


def make_points(ladder: Ladder, first: RungResult, say: Say) -> list[tuple[int, str]]:
    """The rung trained on an eighth, a quarter and a half of its rows: (rows, artifact) of each.

    The shares lie inside each other and keep the balance of the labels; the settings are the rung's own.
    """
    job, rows = job_of(ladder, first.rung), ladder.rows("train")
    if len(rows) < FEWEST:
        return []
    own = {name: first.settings[name] for name in ("learning_rate", "epochs")}
    told = []
    for share in SHARES:
        part = nested(rows, share)
        place = f"curve/{100 * share:g}"
        data = job.folder / place / "data"
        store.write_jsonl(data / "train.jsonl", (row.to_json() for row in part))
        store.write_jsonl(data / "validation.jsonl", (row.to_json() for row in ladder.rows("validation")))
        one = variant(job, place, data, **own)
        with store.locked(one.folder):
            made = finished(one.folder) or train(one, say)
        assert made is not None
        told.append((len(part), made.artifact))
    return told


def nested(rows: Sequence[Example], share: float) -> list[Example]:
    """A share of the rows of each label, in their order; a smaller share lies inside a larger one."""
    by_label: dict[str, list[Example]] = {}
    for row in rows:
        by_label.setdefault("" if isinstance(row.label, float) else str(row.label), []).append(row)
    drawn = {
        row.id
        for own in by_label.values()
        for row in sorted(own, key=lambda row: row.id)[: math.ceil(share * len(own))]  # ids are hashes: a fair draw
    }
    return [row for row in rows if row.id in drawn]


def train(job: Job, say: Say, watch: Callable[[Event], bool] = lambda event: False) -> RungResult | None:
    """Train one job to its end and write its result; None where `watch`, which sees every event, ended it early."""
    started: Mapping[str, Any] = {}
    with costs.peak() as peak:
        for event in tune(job):
            say(job.rung, event)
            if event.kind == "started":
                started = event.numbers
            if event.kind == "stopped":
                at = f"Stopped after step {event.step}; saved"
                raise Interrupted(at, str(job.folder), "give the same command again to go on")
            if watch(event):
                return None
    facts = artifacts.load(job.folder / "artifact").facts
    result = RungResult(
        job.rung,
        seconds=facts["seconds"],
        trained=facts["trained"],
        artifact=str(job.folder / "artifact"),
        settings={key: facts[key] for key in ("method", "learning_rate", "steps", "best_step", "stopped")}
        | {"epochs": job.task.train.epochs, "tokens": started.get("tokens", {}).get("tokens_trained", 0)},
        curve=tuple(_curve(job.folder / "events.jsonl")),
        cost={"making": {"seconds": facts["seconds"], "tokens": facts["tokens"], "memory": peak.bytes}},
    )
    if job.ranks.main:
        store.write_json(job.folder / "result.json", result.to_json())
    job.ranks.tell("written")  # a watcher on another machine reads it when its own ranks have ended
    return result


def unfit(ladder: Ladder, rung: str) -> str:
    """Why a rung that asks makes no sense for this task, or cannot begin; '' when it can."""
    asks, trains = parts(rung)
    module = kinds.load("prompting", asks)
    reason = module.unfit(ladder.base.kind, ladder.task.goal.task, ladder.prepared.shape)
    likely = kinds.constants("metrics", ladder.metric)["NEEDS"] == "nll"
    if not reason and likely and not getattr(module, "LIKELIHOODS", True):
        reason = f"it gives no likelihoods, by which {ladder.metric} is reckoned"
    if not reason and hasattr(module, "lacks"):
        reason = module.lacks(ladder.task.rung_settings[asks])
    if not reason and trains and ladder.trained.head != "language":
        return f"method {ladder.method} trains {trains} a head that reads no prompt; set method.kind: sft"
    return str(reason)


def make_prompted(
    ladder: Ladder,
    rung: str,
    again: bool,
    say: Say,
    model: Callable[[], Model],
    trained: Callable[[str], RungResult],
) -> RungResult:
    """Choose one prompting (or frozen-feature) rung's recipe on validation rows; takes a finished one as it is.

    model: the base.  trained: makes the rung whose model a stacked one asks; it is made anew when that one was.
    """
    folder, (asks, trains) = ladder.rung_folder(rung), parts(rung)
    if reason := unfit(ladder, rung):
        return RungResult(rung, skipped=reason)
    under, empty, on = RungResult(rung), Artifact(rung, ladder.base, ladder.asked), ""
    if trains:
        under = trained(trains)
        empty = replace(artifacts.load(under.artifact), rung=rung)
        on = hashlib.sha256((Path(under.artifact) / "artifact.json").read_bytes()).hexdigest()
    if again:
        _forget(folder)
    with store.locked(folder):
        if kept := _still_good(ladder, asks, folder, on):
            say(rung, Event("phase", 0, 0.0, {"text": f"{rung}: already made"}))
            return kept
        say(rung, Event("phase", 0, 0.0, {"text": "choosing"}))
        base = empty.model() if trains else model()  # the base is loaded once for all, so it is in the cost of none
        clock = time.monotonic()
        world = _world(ladder, rung, empty, base, say)
        with costs.peak() as peak:
            chosen = kinds.load("prompting", asks).choose(world)
        making = {"seconds": round(under.seconds + time.monotonic() - clock, 2), "tokens": 0, "memory": peak.bytes}
        if trains:
            before = under.cost["making"]
            making |= {"tokens": before["tokens"], "memory": max(peak.bytes, before["memory"])}
        facts = {**empty.facts, **({"on": on} if on else {}), "columns": ladder.prepared.columns, **chosen.shown}
        facts |= {"seconds": making["seconds"], "max_new_tokens": ladder.task.evaluate.max_new_tokens}
        made_artifact = replace(empty, recipe=chosen.recipe, facts=facts, tensors=chosen.tensors)
        artifacts.save(made_artifact, None, folder / "artifact")
        result = RungResult(
            rung,
            seconds=making["seconds"],
            trained=under.trained,
            artifact=str(folder / "artifact"),
            settings={**under.settings, **chosen.shown},
            cost={"making": making},
        )
        store.write_json(folder / "result.json", result.to_json())
        return result


def _still_good(ladder: Ladder, asks: str, folder: Path, on: str) -> RungResult | None:
    """A finished asking rung, unless it was chosen by another metric, over another model, or its files have changed.

    on: a hash of the artifact whose model it asks; '' for the base.
    """
    kept, module = finished(folder), kinds.load("prompting", asks)
    if kept is None or kept.settings.get("metric", ladder.metric) != ladder.metric:
        return None
    artifact, own = artifacts.load(kept.artifact), ladder.task.rung_settings.get(asks, {})
    stale = hasattr(module, "stale") and module.stale(artifact.recipe, own, ladder.task.folder)
    return None if stale or artifact.facts.get("on", "") != on else kept


def _world(ladder: Ladder, rung: str, empty: Artifact, base: Model, say: Say) -> World:
    """What an asking rung chooses from: rows that are not the test's, and the model that it asks."""
    folder, clock = ladder.rung_folder(rung), time.monotonic()

    def tell(text: str) -> None:
        if store.stop_requested():
            raise Interrupted("Stopped; finished rungs are kept", str(folder), "give the same command again")
        say(rung, Event("phase", 0, time.monotonic() - clock, {"text": text}))

    return World(
        predicting.answerer(empty, ladder.task.evaluate, base),
        ladder.rows("train"),
        ladder.rows("validation"),
        ladder.metric,
        ladder.task.rung_settings.get(parts(rung)[0], {}),
        ladder.task.data.seed,
        tell,
        ladder.task.folder,
        folder,
    )


def _forget(folder: Path) -> None:
    import shutil

    for name in ("checkpoints", "artifact", "predictions", "search", "seeds", "curve"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("result.json", "events.jsonl", "search.jsonl"):
        (folder / name).unlink(missing_ok=True)


def finished(folder: Path) -> RungResult | None:
    """A rung's result if it was made and its artifact still verifies."""
    try:
        told = store.read_json(folder / "result.json")
        artifact = artifacts.load(folder / "artifact").folder  # not as it was written: a home may be moved
    except (OSError, BurnishError):
        return None
    if not told:
        return None
    return RungResult(
        told["rung"],
        seconds=told["seconds"],
        trained=told["trained"],
        artifact=str(artifact),
        settings=told["settings"],
        curve=tuple(told["curve"]),
        cost=told.get("cost", {}),
        search=tuple(told.get("search", ())),
    )


def _curve(path: Path) -> Iterator[dict[str, float]]:
    """Training loss averaged over at most 200 stretches, and every validation loss."""
    steps = [row for row in store.read_jsonl(path) if row["kind"] == "step"]
    width = max(len(steps) // 200, 1)
    for start in range(0, len(steps), width):
        part = steps[start : start + width]
        yield {
            "step": part[-1]["step"],
            "train_loss": float(np.mean([row["loss"] for row in part])),
            "learning_rate": part[-1]["learning_rate"],
        }
    for row in store.read_jsonl(path):
        if row["kind"] == "validated":
            yield {"step": row["step"], "valid_loss": row["valid_loss"]}


def made(run: Path) -> list[RungResult]:
    """The finished rungs of a run, cheapest first."""
    found = [replace(item, seeds=_seeds(path)) for path in (run / "rungs").glob("*") if (item := finished(path))]
    return sorted(found, key=lambda item: cost(item.rung))


def _seeds(folder: Path) -> tuple[dict[str, Any], ...]:
    """The finished trainings of a rung from further seeds."""
    told = {int(path.name): finished(path) for path in (folder / "seeds").glob("*")}
    return tuple({"seed": seed, "artifact": made.artifact} for seed, made in sorted(told.items()) if made)
