"""Rows become tensors: which rows a step holds is a pure function of (seed, step), and how they are cut is free.

In: Tokens.  Out: for any step, its micro-batches; the same rows whatever was run before, so a resumed run needs no
memory of the order.  Padding is marked by document 0 and changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor

from burnish.tokens.encode import Tokens


@dataclass(frozen=True)
class Batch:
    """B rows of up to T tokens.

    ids, positions, document: (B, T) int64; document is 0 at padding, 1.. at real tokens.
    weights: (B, T) float32, how much each id counts as a target.  targets: (B, T) what to predict where it is not ids.
    segments: (B, T) which of two texts an id belongs to.
    source, source_document: (B, S) for encoder-decoders.  label: (B,) or (B, C).
    where: each row's place in the user's file.  extras: what single methods add.
    """

    ids: Tensor
    weights: Tensor
    positions: Tensor
    document: Tensor
    where: tuple[str, ...]
    examples: tuple[str, ...]
    targets: Tensor | None = None
    segments: Tensor | None = None
    source: Tensor | None = None
    source_document: Tensor | None = None
    label: Tensor | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        moved = {
            item.name: getattr(self, item.name).to(device)
            for item in fields(self)
            if isinstance(getattr(self, item.name), Tensor)
        }
        return replace(self, **moved, extras={name: value.to(device) for name, value in self.extras.items()})

    @property
    def padded(self) -> bool:
        """Whether any position is padding."""
        return bool((self.document == 0).any())


def collate(rows: Sequence[Tokens], pad: int, left: bool = False) -> Batch:
    """One Batch; padding stands right, or left where generation goes on from the last column."""
    ids, document, positions = _padded([row.ids for row in rows], pad, left)
    weights = torch.zeros(ids.shape, dtype=torch.float32)
    weights[document > 0] = torch.from_numpy(np.concatenate([row.weights for row in rows]))
    source = source_document = None
    if rows[0].source is not None:
        source, source_document, _ = _padded([row.source for row in rows if row.source is not None], pad, left=False)
    targets = None
    if rows[0].targets is not None:
        targets, _, _ = _padded([row.targets for row in rows if row.targets is not None], pad, left)
    segments = None
    if rows[0].segments is not None:
        segments, _, _ = _padded([row.segments for row in rows if row.segments is not None], 0, left)
    label = None
    if rows[0].label is not None:
        label = torch.from_numpy(np.asarray([row.label for row in rows]))
        label = label.float() if label.is_floating_point() else label.long()
    return Batch(
        ids,
        weights,
        positions,
        document,
        tuple(row.where for row in rows),
        tuple(row.example for row in rows),
        targets=targets,
        segments=segments,
        source=source,
        source_document=source_document,
        label=label,
    )


def _padded(rows: Sequence[np.ndarray], pad: int, left: bool) -> tuple[Tensor, Tensor, Tensor]:
    longest = max(len(row) for row in rows)
    ids = np.full((len(rows), longest), pad, np.int64)
    document = np.zeros((len(rows), longest), np.int64)
    positions = np.zeros((len(rows), longest), np.int64)
    for i, row in enumerate(rows):
        place = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[i, place], document[i, place], positions[i, place] = row, 1, np.arange(len(row))
    return torch.from_numpy(ids), torch.from_numpy(document), torch.from_numpy(positions)


def by_budget(rows: Sequence[Tokens], budget: int) -> list[list[int]]:
    """Indices of rows in groups of like length; rows x longest stays within `budget` tokens (one row always fits)."""
    order = sorted(range(len(rows)), key=lambda i: -rows[i].length)
    groups: list[list[int]] = []
    room = 0
    for i in order:
        if room == 0:
            groups.append([])
            room = max(budget // max(rows[i].length, 1), 1)
        groups[-1].append(i)
        room -= 1
    return groups


Corrupt = Callable[[Tokens, np.random.Generator], Tokens]


@dataclass(frozen=True)
class Batches:
    """The training rows, step after step: `batches(start)` goes on from any step.

    rows are drawn without replacement within an epoch, in an order that depends on (seed, epoch) alone; the last
    step of an epoch may be smaller.  corrupt: noise for masked and span objectives, from (seed, epoch, row).
    """

    rows: Sequence[Tokens]
    batch_size: int
    micro_tokens: int
    seed: int
    pad: int
    corrupt: Corrupt | None = None

    @property
    def per_epoch(self) -> int:
        """Steps in one pass over the rows."""
        return math.ceil(len(self.rows) / self.batch_size)

    def drawn(self, step: int) -> list[tuple[int, int]]:
        """(epoch, row index) of every row of a step; steps count from 1."""
        epoch, within = divmod(step - 1, self.per_epoch)
        order = np.random.default_rng([self.seed, 1, epoch]).permutation(len(self.rows))
        return [(epoch, int(i)) for i in order[within * self.batch_size : (within + 1) * self.batch_size]]

    def step(self, step: int) -> list[Batch]:
        """The micro-batches of one optimizer step."""
        rows = [self._row(epoch, i) for epoch, i in self.drawn(step)]
        return [collate([rows[i] for i in group], self.pad) for group in by_budget(rows, self.micro_tokens)]

    def __call__(self, start: int = 1) -> Iterator[list[Batch]]:
        """Steps from `start` on, for ever."""
        while True:
            yield self.step(start)
            start += 1

    def once(self) -> Iterator[Batch]:
        """Every row once, in file order of like lengths, with the noise of epoch 0: for validation."""
        rows = [self._row(0, i) for i in range(len(self.rows))]
        for group in by_budget(rows, self.micro_tokens):
            yield collate([rows[i] for i in group], self.pad)

    def _row(self, epoch: int, i: int) -> Tokens:
        if self.corrupt is None:
            return self.rows[i]
        return self.corrupt(self.rows[i], np.random.default_rng([self.seed, 2, epoch, i]))
