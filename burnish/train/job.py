"""What one trained rung works on: its task and base, its rows as tokens, and the numbers of its run.

In: a Job.  Out: the same Prepared: encoded (or found in the cache), timed, in batches; no weight is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from burnish import kinds
from burnish.data.prepare import iterate
from burnish.data.validate import BadRows
from burnish.errors import ModelError
from burnish.models.base import Base, Head
from burnish.records import Problem
from burnish.task import Task
from burnish.tokens import ask, cache
from burnish.tokens.batch import Batches
from burnish.tokens.contract import Contract
from burnish.tokens.encode import Encoding, encode_all
from burnish.tokens.rows import VIRTUAL, Count, Tokens
from burnish.tokens.tokenizer import Tokenizer
from burnish.train.distributed import Ranks
from burnish.train.timetable import Timetable, timetable


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
        return Head(self.contract.head, self.contract.labels)


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
