"""Settings of a trained rung tried on validation rows within a budget; the best trial becomes the rung.

In: a rung's Job and how many trials.  Out: the best trial's result with the trace of all.  Every trial is a training
in a folder of its own, so a stopped search goes on where it was.  The first trial is the task as written; up to a
grid of learning rate x epochs the trials are that grid's, beyond it optuna's (TPE, with trials pruned that lag behind).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from burnish import store
from burnish.errors import MissingExtra, TaskError
from burnish.records import Event, RungResult
from burnish.train.job import Job

GRID = ((1.0, 1.0), (3.0, 1.0), (1 / 3, 1.0), (1.0, 2.0), (3.0, 2.0), (1 / 3, 2.0))  # x learning rate, x epochs
Train = Callable[[Job, Callable[[Event], bool]], RungResult | None]


def variant(job: Job, place: str, data: Path | None = None, **settings: Any) -> Job:
    """The same job in a folder below its own, with other train settings or other rows."""
    task = replace(job.task, train=replace(job.task.train, **settings))
    told = {**job.identity, "variant": place, **settings}
    return replace(job, task=task, folder=job.folder / place, identity=told, data=data or job.data)


def searched(job: Job, trials: int, train: Train) -> RungResult:
    """Train every trial, keep the one with the lowest validation loss, and put its artifact in the rung's folder.

    train: makes a job, or takes it as it was finished; None when the watcher it is given ended it.
    """
    trace: list[dict[str, Any]] = []
    best: tuple[float, Job, RungResult] | None = None
    asking = _asks(job, trials, trace)
    for number, settings in enumerate(asking):
        one = variant(job, f"search/{number:02}", **settings)
        seen, result = _trial(one, train, _Pruner(trace) if trials > len(GRID) else None)
        loss = min((loss for _, loss in seen), default=math.inf)
        rate = result.settings["learning_rate"] if result else settings["learning_rate"]
        own = {"learning_rate": rate, "epochs": one.task.train.epochs}
        trace.append({**own, "validation_loss": loss, "pruned": result is None, "seen": seen})
        if result is None:
            continue
        if not seen:
            raise TaskError("A search needs validation rows", job.task.where("data.validation"), "set data.validation")
        if best is None or loss < best[0]:
            best = (loss, one, result)
    assert best is not None, "the first trial is never pruned"
    chosen = replace(
        best[2],
        artifact=str(job.folder / "artifact"),
        search=tuple({key: value for key, value in item.items() if key != "seen"} for item in trace),
        seconds=round(sum(_seconds(job.folder / f"search/{number:02}") for number in range(len(trace))), 2),
    )
    for name in ("artifact", "predictions"):
        shutil.rmtree(job.folder / name, ignore_errors=True)
    shutil.copytree(best[1].folder / "artifact", job.folder / ".artifact.tmp", dirs_exist_ok=True)
    (job.folder / ".artifact.tmp").replace(job.folder / "artifact")
    shutil.copyfile(best[1].folder / "events.jsonl", job.folder / "events.jsonl")
    making = {**chosen.cost["making"], "seconds": chosen.seconds}
    chosen = replace(chosen, cost={**chosen.cost, "making": making})
    store.write_json(job.folder / "result.json", chosen.to_json())
    return chosen


def _trial(one: Job, train: Train, pruner: _Pruner | None) -> tuple[list[tuple[int, float]], RungResult | None]:
    """What a trial's validations said, and its result (None: pruned, also in an earlier sitting)."""
    path = one.folder / "trial.json"
    if (told := store.read_json(path)).get("pruned"):
        return [(step, loss) for step, loss in told["seen"]], None
    result = train(one, pruner or (lambda event: False))
    shutil.rmtree(one.folder / "checkpoints", ignore_errors=True)
    rows = store.read_jsonl(one.folder / "events.jsonl")
    seen = [(row["step"], row["valid_loss"]) for row in rows if row["kind"] == "validated"]
    store.write_json(path, {"pruned": result is None, "seen": seen})
    return seen, result


def _seconds(folder: Path) -> float:
    rows = list(store.read_jsonl(folder / "events.jsonl"))
    return float(rows[-1]["seconds"]) if rows else 0.0


def _asks(job: Job, trials: int, trace: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The settings of each trial in turn; `trace` holds what the earlier ones came to."""
    epochs = job.task.train.epochs
    yield {"learning_rate": job.task.train.learning_rate, "epochs": epochs}
    rate = trace[0]["learning_rate"]  # the rung's own default, now that it is known
    if trials <= len(GRID):
        yield from ({"learning_rate": rate * x, "epochs": epochs * y} for x, y in GRID[1:trials])
        return
    try:
        import optuna
    except ImportError:
        raise MissingExtra(f"A search of more than {len(GRID)} trials", "search") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space: dict[str, Any] = {
        "learning_rate": optuna.distributions.FloatDistribution(rate / 10, rate * 10, log=True),
        "epochs": optuna.distributions.FloatDistribution(max(epochs / 2, 0.1), epochs * 3),
    }
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=job.task.train.seed))
    study.enqueue_trial({"learning_rate": rate, "epochs": epochs})
    for number in range(trials):  # a resumed search replays what was found, so it asks the same again
        trial = study.ask(space)
        if number:
            yield dict(trial.params)
        study.tell(trial, trace[number]["validation_loss"])


class _Pruner:
    """Ends a trial whose best loss so far is worse than the median of the others' at the same share of training."""

    def __init__(self, trace: list[dict[str, Any]]) -> None:
        self._others = [item["seen"] for item in trace if not item["pruned"] and item["seen"]]
        self._best, self._looks = math.inf, 0

    def __call__(self, event: Event) -> bool:
        if event.kind != "validated":
            return False
        self._looks += 1
        self._best = min(self._best, event.numbers["valid_loss"])
        if len(self._others) < 3 or self._looks < 2:
            return False
        then = sorted(min(loss for _, loss in seen[: self._looks]) for seen in self._others)
        return self._best > then[len(then) // 2]
