"""What a training run is made of, what it remembers, and what it gives up when memory runs out.

In: a model, a method, batches and a Timetable.  Out: the Run that the loop works with; its Progress is saved with every
checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from burnish.errors import TrainError
from burnish.models import recompute
from burnish.models.model import Model
from burnish.records import Event
from burnish.task import Train
from burnish.tokens.batch import Batch, Batches
from burnish.train.distributed import Ranks
from burnish.train.timetable import Timetable


@dataclass
class Progress:
    """All that a run remembers besides tensors; it is the state.json of a checkpoint.

    best: lowest validation loss so far, seen at best_step.  stale: validations since.  seconds: over all sittings.
    micro_tokens, recompute: what was given up when memory ran out (0, False: nothing).
    """

    step: int = 0
    best: float | None = None
    best_step: int = 0
    stale: int = 0
    seconds: float = 0.0
    tokens: int = 0
    done: str = ""
    micro_tokens: int = 0
    recompute: bool = False


@dataclass
class Run:
    """What `fit` works with.

    identity: what a checkpoint must agree on to be continued.  precision: the model's arithmetic.
    start: what decides the model before its first step; empty where that is not known.
    recompute: activations are made again in the backward pass instead of kept.  ranks: the processes that share it.
    """

    model: Model
    method: ModuleType
    method_settings: Any
    settings: Train
    timetable: Timetable
    batches: Batches
    validation: Batches | None
    folder: Path
    identity: dict[str, Any]
    precision: torch.dtype = torch.float32
    recompute: bool = False
    progress: Progress = field(default_factory=Progress)
    best: Mapping[str, Tensor] = field(default_factory=dict)
    ranks: Ranks = field(default_factory=Ranks)
    at_work: Batch | None = None
    start: dict[str, Any] = field(default_factory=dict)

    @property
    def pairs(self) -> bool:
        """Whether the method compares two answers to one prompt."""
        return getattr(self.method, "TARGET", "") == "pairs"

    def share(self, ranks: Ranks) -> None:
        """Work at it with other processes: the model goes where it trains, and each rank has its share of the rows."""
        self.ranks, self.precision = ranks.prepare(self.model, self.precision)
        shared = self.pairs and self.model.shares  # shown on the model as it is then: with its weights
        told: dict[str, Any] = {"rank": ranks.rank, "ranks": ranks.size, "packed": self.model.packs, "shared": shared}
        self.batches = replace(self.batches, **told)
        self.validation = self.validation and replace(self.validation, **told)

    def watched(self, own: Iterable[Batch], batches: Batches) -> Iterator[tuple[Batch, bool]]:
        """What to run and whether it counts (see `Ranks.passes`); the one in hand is known when memory runs out."""
        for batch, counts in self.ranks.passes(own, batches):
            self.at_work = batch
            yield batch, counts

    def smaller(self) -> Event:
        """Halve the tokens run at once, down to one row, then keep no activations; raises TrainError after that."""
        state, batch = self.progress, self.at_work
        if batch is not None and batch.rows > 1 and state.micro_tokens != 1:
            size = batch.ids.numel() + (0 if batch.source is None else batch.source.numel())
            state.micro_tokens = max(min(size, state.micro_tokens or self.batches.micro_tokens) // 2, 1)
            told = f"{state.micro_tokens:,} tokens at once from here on"
        elif not (self.recompute or state.recompute) and self.model.hf.supports_gradient_checkpointing:
            state.recompute = True
            told = "activations are made again in the backward pass from here on, not kept (slower)"
        else:
            raise TrainError(
                "Out of memory, although one row is run at a time",
                f"row {batch.where[0] if batch else 'unknown'}",
                "lower data.max_length, take the rung lora, a smaller base or train.optimizer adafactor, or free "
                "memory; the last checkpoint is intact",
            )
        self.lean()
        return Event("warned", state.step, state.seconds, {"text": f"Out of memory: {told}; the update is the same"})

    def lean(self) -> None:
        """Run the model with what is at once in memory as the progress says."""
        size = self.progress.micro_tokens
        if size:
            self.batches = replace(self.batches, micro_tokens=size)
            self.validation = self.validation and replace(self.validation, micro_tokens=size)
        hf = self.model.hf
        self.recompute = (self.recompute or self.progress.recompute) and hf.supports_gradient_checkpointing
        if self.recompute:
            recompute.recompute(hf)
