"""One trained rung, from examples on disk to an artifact: encode, plan, fit, save.

In: a task, a base and the prepared data.  Out: Events while it works, and an artifact folder.  Everything it says is
also in the rung's folder: events.jsonl, tokens.json, checkpoints/, artifact/.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from burnish import artifact as artifacts
from burnish import kinds, store
from burnish.artifact import Artifact
from burnish.data.prepare import iterate
from burnish.data.validate import BadRows
from burnish.errors import DataError, ModelError, TrainError
from burnish.models import load, quicken
from burnish.models.base import Base, Head
from burnish.models.bottom import Bottom
from burnish.models.model import Model
from burnish.records import Event, Problem
from burnish.task import Task
from burnish.tokens import ask, cache
from burnish.tokens.batch import Batches
from burnish.tokens.contract import Contract
from burnish.tokens.encode import Encoding, encode_all
from burnish.tokens.rows import VIRTUAL, Count, Tokens
from burnish.tokens.tokenizer import Tokenizer
from burnish.train import calibrate, checkpoint, describe, estimate, loop, memory, optim, rehearse, states
from burnish.train.distributed import Ranks
from burnish.train.estimate import Estimate
from burnish.train.rehearse import Trial
from burnish.train.run import Run
from burnish.train.terms import Machine, Work
from burnish.train.timetable import Timetable, timetable

LIGHTER = ("qlora", "lora", "full")  # rungs of one kind by what they need, least first


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
    ranks: Ranks = field(default_factory=Ranks)

    @property
    def head(self) -> Head:
        return Head(self.contract.head, self.contract.labels)  # type: ignore[arg-type]


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


@dataclass(frozen=True)
class Prepared:
    """A job before any weight is read: rows as tokens, its Timetable, and its batches (not yet cut for a machine)."""

    train: Encoded
    held: Encoded
    method: ModuleType
    settings: Any
    timetable: Timetable
    batches: Batches
    validation: Batches

    @property
    def dropped(self) -> int:
        return len(self.train.dropped) + len(self.held.dropped)


def prepare(job: Job) -> Prepared:
    """Encode the rows (or find them in the cache) and decide the run's numbers."""
    settings = job.task.train
    tokenizer = Tokenizer.load(job.base.folder)
    encoding = job.contract.encoding(tokenizer, job.base.kind)
    train, held = (encoded(job, encoding, split) for split in ("train", "validation"))
    if 0 < job.base.vocabulary < tokenizer.size:
        _known(job.base, (*train.tokens, *held.tokens))
    method = kinds.load("methods", job.method)
    own = method.Settings(**job.method_settings)
    corrupt = method.corruption(job.base.kind, tokenizer, own) if hasattr(method, "corruption") else None
    pad = tokenizer.id("pad") or 0
    pad = pad if pad < (job.base.vocabulary or pad + 1) else 0  # what is there instead of a row is not read
    batches, validation = (
        Batches(part.tokens, settings.batch_size, settings.micro_tokens, settings.seed, pad, corrupt)
        for part in (train, held)
    )
    table = timetable(settings, len(train.tokens), job.base.width, kinds.load("adapters", job.rung).RATE)
    return Prepared(train, held, method, own, table, batches, validation)


def _known(base: Base, rows: Sequence[Tokens]) -> None:
    """Refuse rows with ids that the model has no embedding for: its tokenizer is larger than its vocabulary."""
    for row in rows:
        for document in row.documents():
            ids = np.append(document.ids, document.source if document.source is not None else [])
            unknown = ids[(ids >= base.vocabulary) & (ids < VIRTUAL)]
            if len(unknown):
                what = f"The tokenizer gives the id {int(unknown[0])}, and the model knows {base.vocabulary}"
                raise ModelError(
                    what, f"{base.folder}, row {row.where}", "use the tokenizer that belongs to this model"
                )


def needs(job: Job, prepared: Prepared) -> Estimate:
    """What the run will need on this machine, and where that is too much, which rungs would need less."""

    def skeleton(rung: str) -> Model:
        return describe.skeleton(job.base, job.head, rung, job.task)

    def work(rung: str, model: Model) -> Work:
        return describe.work(
            model,
            job.task,
            prepared.timetable,
            prepared.batches,
            prepared.validation,
            job.contract.too_long == "split",
            job.ranks.device,
            describe.quantised(rung),
        )

    model = skeleton(job.rung)
    cut = job.ranks.over(model)
    own = replace(work(job.rung, model), ranks=cut, refers=prepared.method.TARGET == "pairs")
    machine = calibrate.machine(own.shape, own.element, job.ranks.device)
    machine = replace(machine, memory=machine.resident + (machine.memory - machine.resident) / job.ranks.local)
    told = estimate.estimate(own, machine)
    if job.ranks.size == 1 and told.verdict != "does not fit":
        trial = Trial(
            job.base,
            job.head,
            job.rung,
            job.task,
            prepared.method,
            prepared.settings,
            prepared.timetable,
            prepared.batches,
        )
        machine = rehearse.paced(trial, own, machine, (told.micro_tokens, told.recompute))
        told = estimate.estimate(own, machine)
    if told.verdict == "fits" or job.base.random:
        return _spared(job, prepared, model, own, machine, told)
    lighter = LIGHTER[: LIGHTER.index(job.rung)] if job.rung in LIGHTER else ()
    others = {
        rung: replace(work(rung, skeleton(rung)), ranks=cut) for rung in lighter if rung in kinds.names("adapters")
    }
    return _spared(job, prepared, model, own, machine, estimate.estimate(own, machine, others))


def _spared(job: Job, prepared: Prepared, model: Model, own: Work, machine: Machine, told: Estimate) -> Estimate:
    """The estimate, less what is saved where frozen layers run once."""
    layers, small = describe.frozen(model), describe.quantised(job.rung)
    if not layers:
        return told
    if reason := _obstacle(job, prepared, model):
        return replace(told, states=states.Saving(layers, reason=reason).to_json())
    above = replace(own, shape=describe.shape(model, small, layers))
    saved = states.saving(own, above, layers, job.base.width, machine, (told.micro_tokens, told.recompute))
    return replace(
        told,
        seconds=replace(told.seconds, value=told.seconds.value - saved.seconds),
        disk=replace(told.disk, value=told.disk.value + saved.bytes),
        phases={**told.phases, "states": -saved.seconds, "all": told.phases["all"] - saved.seconds},
        states=saved.to_json(),
    )


def _obstacle(job: Job, prepared: Prepared, model: Model) -> str:
    """Why frozen layers say something else in every pass, or cannot be left out; '' when neither."""
    dropout = job.task.train.dropout if kinds.load("adapters", job.rung).CARRIES_BASE else None
    if prepared.batches.corrupt is not None:
        return "what is hidden in a row is drawn anew in every epoch"
    if job.contract.target == "pairs":
        return "the answers of a pair share what they begin with"
    if describe.drops(model.hf.config, dropout):
        return "dropout is drawn in them (train.dropout=0 turns it off)"
    return "several processes share the run" if job.ranks.size > 1 else ""


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


@dataclass(frozen=True)
class Encoded:
    """Rows as Tokens, the statement of tokens, what was dropped as the task says, and what was amiss on disk."""

    tokens: Sequence[Tokens]
    count: Count
    dropped: list[Problem]
    warning: str


def encoded(job: Job, encoding: Encoding, split: str) -> Encoded:
    """A split's Tokens, from the cache if they are there; raises BadRows when a row has none and may not be dropped."""
    found = iterate(job.data, split)
    name = cache.key(job.data / f"{split}.jsonl", job.contract, job.base.kind, job.base.folder)
    kept = cache.rows(name, lambda: encode_all(ask.readable(found, job.contract), encoding))
    errors = [problem for problem in kept.problems if problem.severity == "error"]
    if errors and job.task.data.on_problem != "drop":
        raise BadRows(errors, len(errors))
    return Encoded(kept.rows, kept.count, kept.problems, kept.warning)


def _keep(job: Job, prepared: Prepared) -> None:
    """Write what became of every row and token; raises DataError when none is left to train on."""
    told = {"train": prepared.train, "validation": prepared.held}
    dropped = [{"split": split, **problem.to_json()} for split, part in told.items() for problem in part.dropped]
    store.write_jsonl(job.folder / "dropped.jsonl", dropped)
    store.write_json(job.folder / "tokens.json", {split: part.count.to_json() for split, part in told.items()})
    if not prepared.train.tokens:
        raise DataError("No row is left to train on", str(job.folder / "dropped.jsonl"), "see there for the reasons")


def too_much(needed: Estimate) -> str:
    """What is lacking, and the first change that mends it."""
    peak = needed.parts["peak"]
    what = f"about {peak / 1e9:.1f} GB of memory are needed, and {needed.room / 1e9:.1f} GB are free"
    if peak <= needed.room:
        what = f"{needed.disk.value / 1e9:.1f} GB of disk are needed, more than are free"
    return f"{what}; {needed.remedies[0].text if needed.remedies else 'take a smaller base'}"


def _begin(log: Path, first: Event) -> None:
    """Ready the file of events: after a kill, what followed the checkpoint that a run goes on from is cut off."""
    kept = []
    if first.kind == "resumed" and log.exists():
        kept = [row for row in store.read_jsonl(log) if row["step"] <= first.step]
    store.write_jsonl(log, kept)
