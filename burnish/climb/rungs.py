"""Making one rung: trained or prompted, from the ladder to an artifact; a finished one is taken as it is."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from burnish import artifact as artifacts
from burnish import kinds, store
from burnish.artifact import Artifact
from burnish.climb.ladder import Ladder, cost
from burnish.errors import BurnishError, Interrupted, TrainError
from burnish.evaluate import predict as predicting
from burnish.models.model import Model
from burnish.prompting._world import World
from burnish.records import Event, RungResult
from burnish.train.tune import Job, tune

Say = Callable[[str, Event], None]


def job_of(ladder: Ladder, rung: str) -> Job:
    """What training a rung needs to know."""
    return Job(
        ladder.task,
        rung,
        ladder.base,
        ladder.trained,
        ladder.method,
        {key: value for key, value in ladder.task.method.items() if key != "kind"},
        ladder.prepared.folder,
        ladder.rung_folder(rung),
        {"run": ladder.folder.name, "rung": rung, "torch": torch.__version__},
        ladder.prepared.columns,
    )


def make_trained(ladder: Ladder, rung: str, again: bool, say: Say) -> RungResult:
    """Train one rung, or take the finished one of an earlier sitting."""
    folder = ladder.rung_folder(rung)
    if again:
        _forget(folder)
    with store.locked(folder):
        finished = _finished(folder)
        if finished is not None:
            say(rung, Event("phase", 0, 0.0, {"text": f"{rung}: already made"}))
            return finished
        started: Mapping[str, Any] = {}
        try:
            for event in tune(job_of(ladder, rung)):
                say(rung, event)
                if event.kind == "started":
                    started = event.numbers
                if event.kind == "stopped":
                    raise Interrupted(
                        f"Stopped after step {event.step}; saved", str(folder), "give the same command again to go on"
                    )
        except MemoryError:
            raise TrainError("Out of memory", rung, "lower train.micro_tokens; the last checkpoint is intact") from None
        facts = artifacts.load(folder / "artifact").facts
        result = RungResult(
            rung,
            seconds=facts["seconds"],
            trained=facts["trained"],
            artifact=str(folder / "artifact"),
            settings={key: facts[key] for key in ("method", "learning_rate", "steps", "best_step", "stopped")}
            | {"tokens": started.get("tokens", {}).get("tokens_trained", 0)},
            curve=tuple(_curve(folder / "events.jsonl")),
        )
        store.write_json(folder / "result.json", result.to_json())
        return result


def make_prompted(ladder: Ladder, rung: str, again: bool, say: Say, model: Callable[[], Model]) -> RungResult:
    """Choose one prompting (or frozen-feature) rung's recipe on validation rows; takes a finished one as it is."""
    folder = ladder.rung_folder(rung)
    module = kinds.load("prompting", rung)
    reason = module.unfit(ladder.base.kind, ladder.task.goal.task, ladder.prepared.shape)
    if reason:
        return RungResult(rung, skipped=reason)
    if again:
        _forget(folder)
    with store.locked(folder):
        finished = _finished(folder)
        if finished is not None and finished.settings.get("metric", ladder.metric) == ladder.metric:
            say(rung, Event("phase", 0, 0.0, {"text": f"{rung}: already made"}))
            return finished
        say(rung, Event("phase", 0, 0.0, {"text": "choosing"}))
        base = model()  # loaded once for all rungs, so it is in the cost of none
        clock = time.monotonic()

        def tell(text: str) -> None:
            if store.stop_requested():
                raise Interrupted("Stopped; finished rungs are kept", str(folder), "give the same command again")
            say(rung, Event("phase", 0, time.monotonic() - clock, {"text": text}))

        empty = Artifact(rung, ladder.base, ladder.asked)
        world = World(
            predicting.answerer(empty, ladder.task.evaluate, base),
            ladder.rows("train"),
            ladder.rows("validation"),
            ladder.metric,
            ladder.task.rung_settings.get(rung, {}),
            ladder.task.data.seed,
            tell,
            ladder.task.folder,
            folder,
        )
        chosen = module.choose(world)
        seconds = round(time.monotonic() - clock, 2)
        facts = {"seconds": seconds, "columns": ladder.prepared.columns, **chosen.shown}
        made_artifact = replace(empty, recipe=chosen.recipe, facts=facts, tensors=chosen.tensors)
        artifacts.save(made_artifact, None, folder / "artifact")
        result = RungResult(rung, seconds=seconds, artifact=str(folder / "artifact"), settings=dict(chosen.shown))
        store.write_json(folder / "result.json", result.to_json())
        return result


def _forget(folder: Path) -> None:
    import shutil

    for name in ("checkpoints", "artifact", "predictions"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("result.json", "events.jsonl", "search.jsonl"):
        (folder / name).unlink(missing_ok=True)


def _finished(folder: Path) -> RungResult | None:
    """The rung's result if it was made and its artifact still verifies."""
    try:
        told = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        artifact = artifacts.load(folder / "artifact").folder  # not as it was written: a home may be moved
    except (OSError, ValueError, KeyError, BurnishError):
        return None
    return RungResult(
        told["rung"],
        seconds=told["seconds"],
        trained=told["trained"],
        artifact=str(artifact),
        settings=told["settings"],
        curve=tuple(told["curve"]),
        samples=tuple(told.get("samples", ())),
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
    found = [_finished(path) for path in (run / "rungs").glob("*")]
    return sorted((item for item in found if item is not None), key=lambda item: cost(item.rung))
