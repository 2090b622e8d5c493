"""One trained rung, from examples on disk to an artifact: encode, plan, fit, save.

In: a task, a base and the prepared data.  Out: Events while it works, and an artifact folder.  Everything it says is
also in the rung's folder: events.jsonl, tokens.json, checkpoints/, artifact/.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish import artifact as artifacts
from burnish import kinds, store
from burnish.artifact import Artifact
from burnish.data.prepare import examples
from burnish.data.validate import BadRows
from burnish.errors import DataError, TrainError
from burnish.models import base as models
from burnish.models import load
from burnish.models.base import Base
from burnish.records import Event, Example, Problem
from burnish.task import Task
from burnish.tokens import ask
from burnish.tokens.batch import Batches
from burnish.tokens.contract import Contract
from burnish.tokens.encode import Count, Encoding, Tokens, encode_all
from burnish.tokens.tokenizer import Tokenizer
from burnish.train import checkpoint, loop, memory, optim
from burnish.train.plan import plan
from burnish.train.run import Run


@dataclass(frozen=True)
class Job:
    """What one trained rung needs.  data: folder with train.jsonl and validation.jsonl.  folder: the rung's own."""

    task: Task
    rung: str
    base: Base
    contract: Contract
    method: str
    method_settings: Mapping[str, Any]
    data: Path
    folder: Path
    identity: Mapping[str, Any]
    columns: Mapping[str, Any]


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
    settings = job.task.train
    tokenizer = Tokenizer.load(job.base.folder)
    encoding = job.contract.encoding(tokenizer, job.base.kind)
    told = _encoded(job, encoding)
    train, held = told["train"], told["validation"]
    adapter = kinds.load("adapters", job.rung)
    method = kinds.load("methods", job.method)
    own = method.Settings(**job.method_settings)
    model = load.load(
        job.base,
        models.Head(job.contract.head, job.contract.labels),  # type: ignore[arg-type]
        dropout=settings.dropout if job.rung == "full" else None,
        seed=settings.seed,
    )
    adapter.attach(model, job.task.rung_settings.get(job.rung, {}), settings.dropout or 0.0, settings.seed)
    begun = checkpoint.identity_of(job.folder / "checkpoints")  # auto on another machine goes on as it began
    precision = begun.get("precision") or optim.precision(settings.precision, model.device)
    planned = plan(settings, len(train.tokens), job.base.width, adapter.RATE)
    corrupt = method.corruption(job.base.kind, tokenizer, own) if hasattr(method, "corruption") else None
    pad = tokenizer.id("pad") or 0
    batches, validation = (
        Batches(part.tokens, settings.batch_size, settings.micro_tokens, settings.seed, pad, corrupt)
        for part in (train, held)
    )
    run = Run(
        model,
        method,
        own,
        settings,
        planned,
        batches,
        validation if held.tokens else None,
        job.folder / "checkpoints",
        {**job.identity, "precision": precision},
        optim.DTYPES[precision],
    )
    trained = load.count(model.trainable().values())
    started = {
        "phase": job.rung,
        "method": job.method,
        "parameters": load.count(model.hf.parameters()),
        "trained": trained,
        "rows": train.count.rows,
        "dropped": len(train.dropped) + len(held.dropped),
        "tokens": train.count.to_json(),
        "precision": precision,
        **planned.to_json(),
    }
    log = job.folder / "events.jsonl"
    yield Event("started", 0, 0.0, started)
    if not held.tokens:
        yield Event("warned", 0, 0.0, {"text": "no validation rows: no early stopping, and the last weights are kept"})
    first = True
    with memory.guarded():
        for event in loop.fit(run):
            if first:
                _begin(log, event)
            first = False
            with store.disk_errors(log), log.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(event.to_json()) + "\n")
            yield event
            if event.kind == "stopped":
                return
    facts = {
        "seconds": round(run.progress.seconds, 2),
        "steps": run.progress.step,
        "best_step": run.progress.best_step or run.progress.step,
        "valid_loss": run.progress.best,
        "tokens": run.progress.tokens,
        "trained": trained,
        "method": job.method,
        "rows": train.count.rows,
        "learning_rate": planned.peak,
        "stopped": run.progress.done,
        "columns": dict(job.columns),
    }
    artifacts.save(
        Artifact(job.rung, job.base, job.contract, job.rung, {}, facts), model.eval(), job.folder / "artifact"
    )


def readable(rows: Sequence[Example], contract: Contract) -> list[Example]:
    """The examples as the contract's target wants them: labelled rows become questions for a language head."""
    if contract.target in ("answers", "all"):
        return [ask.as_messages(row, contract.instruction) for row in rows]
    return list(rows)


@dataclass(frozen=True)
class Encoded:
    """Rows as Tokens, the statement of tokens, and what was dropped because the task says so."""

    tokens: list[Tokens]
    count: Count
    dropped: list[Problem]


def encode(rows: Sequence[Example], encoding: Encoding, contract: Contract, task: Task) -> Encoded:
    """Every row's Tokens; raises BadRows when a row has none and the task does not say to drop it."""
    tokens, problems, count = encode_all(readable(rows, contract), encoding)
    errors = [problem for _, problem in problems if problem.severity == "error"]
    if errors and task.data.on_problem != "drop":
        raise BadRows(errors, len(errors))
    return Encoded(tokens, count, [problem for _, problem in problems])


def _encoded(job: Job, encoding: Encoding) -> dict[str, Encoded]:
    told = {
        split: encode(examples(job.data, split), encoding, job.contract, job.task) for split in ("train", "validation")
    }
    dropped = [{"split": split, **problem.to_json()} for split, part in told.items() for problem in part.dropped]
    store.write_jsonl(job.folder / "dropped.jsonl", dropped)
    store.write_json(job.folder / "tokens.json", {split: part.count.to_json() for split, part in told.items()})
    if not told["train"].tokens:
        raise DataError("No row is left to train on", str(job.folder / "dropped.jsonl"), "see there for the reasons")
    return told


def _begin(log: Path, first: Event) -> None:
    """Ready the file of events: after a kill, what followed the checkpoint that a run goes on from is cut off."""
    kept = []
    if first.kind == "resumed" and log.exists():
        kept = [row for row in store.read_jsonl(log) if row["step"] <= first.step]
    store.write_jsonl(log, kept)
