"""One trained rung, from examples on disk to an artifact: encode, plan, fit, save.

In: a task, a base and the prepared data.  Out: Events while it works, and an artifact folder.  Everything it says is
also in the rung's folder: events.jsonl, tokens.json, checkpoints/, artifact/.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from burnish import artifact as artifacts
from burnish import kinds, store
from burnish.artifact import Artifact
from burnish.errors import DataError, TrainError
from burnish.models import load, quicken
from burnish.models.bottom import Bottom
from burnish.records import Event
from burnish.train import checkpoint, describe, loop, memory, optim, states
from burnish.train.estimate import Estimate
from burnish.train.job import Job, Prepared, prepare
from burnish.train.needs import needs, too_much
from burnish.train.run import Run


def tune(job: Job) -> Iterator[Event]:
    """Train one rung to its end; the last event is `finished` and the artifact is then in job.folder/artifact.

    A killed or stopped run goes on where its last checkpoint stands.  Raises DataError when rows cannot be encoded
    under the task's rules, TrainError when training fails.
    """
    try:
        yield from _tune(job)
    except Exception as problem:
        if not memory.ran_out(problem):
            raise
        what, do = "Out of memory for weights, gradients and optimizer", "the last checkpoint is intact"
        raise TrainError(
            what, job.rung, f"take a smaller base, the rung lora, or train.optimizer adafactor; {do}"
        ) from None


def _tune(job: Job) -> Iterator[Event]:
    prepared = prepare(job)
    if job.ranks.main:
        _keep(job, prepared)
    needed = needs(job, prepared)
    begun = checkpoint.identity_of(job.folder / "checkpoints")  # auto on another machine goes on as it began
    run = _begun(job, prepared, needed, begun)
    yield Event("started", 0, 0.0, _started(job, prepared, needed, run))
    for text in _warnings(prepared, needed, run):
        yield Event("warned", 0, 0.0, {"text": text})
    spared = begun.get("states", []) if begun else needed.states.get("splits", [])
    if spared and not (yield from _keep_states(run, spared)):
        return
    log, first = job.folder / "events.jsonl", True
    with memory.guarded():
        for event in loop.fit(run):
            if first and job.ranks.main:
                _begin(log, event)
            first = False
            if job.ranks.main:
                with store.disk_errors(log), log.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(event.to_json()) + "\n")
            yield event
            if event.kind == "stopped":
                return
    run.ranks.settle(run.model)
    made = Artifact(job.rung, job.base, job.contract, job.rung, {}, _facts(job, prepared, run))
    if job.ranks.main:
        artifacts.save(made, run.model.eval(), job.folder / "artifact")
    elif job.ranks.size > 1:
        artifacts.lend(made, run.model)
    job.ranks.tell("saved")


def _begun(job: Job, prepared: Prepared, needed: Estimate, begun: Mapping[str, Any]) -> Run:
    """The run with its model, where and as it trains.  begun: what an earlier sitting chose."""
    settings, adapter = job.task.train, kinds.load("adapters", job.rung)
    precision = begun.get("precision") or optim.precision(settings.precision, job.ranks.device)
    micro_tokens = begun.get("micro_tokens") or needed.micro_tokens
    recompute = begun.get("recompute", needed.recompute)
    own = settings.dropout if adapter.CARRIES_BASE else None  # the base's; other adapters have a place for their own
    quantised = getattr(adapter, "QUANTISED", False)
    model = load.load(job.base, job.head, dropout=own, seed=settings.seed, quantised=quantised, outlined=True)
    adapter.attach(model, job.task.rung_settings.get(job.rung, {}), settings.dropout or 0.0, settings.seed)
    quicken.install(model.hf)
    precision, micro_tokens, recompute = job.ranks.tell([precision, micro_tokens, recompute])
    batches, validation = (replace(part, micro_tokens=micro_tokens) for part in (prepared.batches, prepared.validation))
    run = Run(
        model,
        prepared.method,
        prepared.settings,
        settings,
        prepared.timetable,
        batches,
        validation if validation.rows else None,
        job.folder / "checkpoints",
        {**job.identity, "precision": precision, "micro_tokens": micro_tokens, "recompute": recompute},
        optim.DTYPES[precision],
        recompute,
        start=_start(job, quantised),
    )
    run.share(job.ranks)
    return run


def _started(job: Job, prepared: Prepared, needed: Estimate, run: Run) -> dict[str, Any]:
    """What the first event says."""
    precision = run.identity["precision"]
    return {
        "phase": job.rung,
        "method": job.method,
        "parameters": load.count_whole(run.model.hf),
        "trained": load.count(run.model.trainable().values()),
        "rows": prepared.train.count.rows,
        "dropped": prepared.dropped,
        "tokens": prepared.train.count.to_json(),
        "precision": precision,
        "kernels": quicken.said(run.model.hf, run.model.device, optim.DTYPES[precision]),
        "needs": needed.to_json(),
        **prepared.timetable.to_json(),
    }


def _warnings(prepared: Prepared, needed: Estimate, run: Run) -> Iterator[str]:
    yield from (part.warning for part in (prepared.train, prepared.held) if part.warning)
    if needed.verdict == "does not fit":
        yield f"this does not fit: {too_much(needed)}"
    if run.validation is None:
        yield "no validation rows: no early stopping, and the last weights are kept"


def _facts(job: Job, prepared: Prepared, run: Run) -> dict[str, Any]:
    """How the artifact was made."""
    return {
        "seconds": round(run.progress.seconds, 2),
        "steps": run.progress.step,
        "best_step": run.progress.best_step or run.progress.step,
        "valid_loss": run.progress.best,
        "tokens": run.progress.tokens,
        "trained": load.count(run.model.trainable().values()),
        "method": job.method,
        "rows": prepared.train.count.rows,
        "seed": job.task.train.seed,
        "learning_rate": prepared.timetable.peak,
        "stopped": run.progress.done,
        "columns": dict(job.columns),
        "max_new_tokens": job.task.evaluate.max_new_tokens,
    }


def _start(job: Job, quantised: bool) -> dict[str, Any]:
    """What decides the model before its first step."""
    own = job.task.rung_settings.get(job.rung, {})
    libraries = [f"{name} {version(name)}" for name in ("torch", "transformers")]
    base = job.base.fingerprint, job.base.random, quantised
    return {"base": base, "rung": [job.rung, dict(own)], "seed": job.task.train.seed, "libraries": libraries}


def _keep_states(run: Run, splits: Sequence[str]) -> Generator[Event, None, bool]:
    """Let rows bring what the frozen layers say of them; False when a stop was asked for meanwhile.

    Where that cannot be (a full disk, an architecture that passes more than one tensor from layer to layer) the layers
    run in every pass, and a warning says so.  What a run began with is part of its identity.
    """
    clock, kept = time.monotonic(), []
    bottom = Bottom(run.model, describe.frozen(run.model))
    if run.ranks.size > 1 or not run.model.packs or not bottom.install():
        yield Event("warned", 0, 0.0, {"text": "the frozen layers run in every pass: they cannot be told apart here"})
        splits = ()
    optim.round_frozen(run.model.hf, run.precision)
    for split in splits:
        try:
            if split == "train":
                run.batches = yield from states.keep(bottom, run.batches)
            elif run.validation is not None:
                run.validation = yield from states.keep(bottom, run.validation)
            kept.append(split)
        except states.Stopped:
            yield Event(
                "stopped", 0, time.monotonic() - clock, {"reason": "a stop was asked for before the first step"}
            )
            return False
        except (OSError, TrainError) as problem:
            yield Event("warned", 0, 0.0, {"text": f"the frozen layers run in every pass over {split}: {problem}"})
    begun = checkpoint.identity_of(run.folder)
    if begun.get("states") or (kept and not begun):
        run.identity = {**run.identity, "states": begun.get("states") or kept}
    run.progress.seconds += time.monotonic() - clock
    return True


def _keep(job: Job, prepared: Prepared) -> None:
    """Write what became of every row and token; raises DataError when none is left to train on."""
    told = {"train": prepared.train, "validation": prepared.held}
    dropped = [{"split": split, **problem.to_json()} for split, part in told.items() for problem in part.dropped]
    store.write_jsonl(job.folder / "dropped.jsonl", dropped)
    store.write_json(job.folder / "tokens.json", {split: part.count.to_json() for split, part in told.items()})
    if not prepared.train.tokens:
        raise DataError("No row is left to train on", str(job.folder / "dropped.jsonl"), "see there for the reasons")


def _begin(log: Path, first: Event) -> None:
    """Ready the file of events: after a kill, what followed the checkpoint that a run goes on from is cut off."""
    kept = []
    if first.kind == "resumed" and log.exists():
        kept = [row for row in store.read_jsonl(log) if row["step"] <= first.step]
    store.write_jsonl(log, kept)
