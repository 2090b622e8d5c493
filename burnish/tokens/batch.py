"""Rows become tensors: which rows a step holds is a pure function of (seed, step), and how they are cut is free.

In: Tokens.  Out: for any step, its micro-batches; the same rows whatever was run before, so a resumed run needs no
memory of the order.  Rows are packed one after the other without padding; for a model that cannot keep packed documents
apart they are padded, which is marked by document 0 and changes nothing.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from burnish.tokens.rows import Tokens


@dataclass(frozen=True)
class Batch:
    """B rows of up to T tokens, or one pack (B = 1) of several documents, one after the other.

    ids, positions, document: (B, T) int64; document is 0 at padding, 1 at real tokens, 1.. in a pack.
    weights: (B, T) float32, how much each id counts as a target.  targets: (B, T) what to predict where it is not ids.
    segments: (B, T) which of two texts an id belongs to.
    states: (1, T, H) what enters the first trained layer of a model whose layers below are frozen, where that is kept.
    source, source_document: (B, S) for encoder-decoders.  label: (B,) or (B, C).
    where: each row's place in the user's file.  extras: what single methods add.
    ends, source_ends: of a pack, where its documents end, a running sum that begins with 0; else empty.
    each: documents of every row: 1; 2 answers of a preference pair; 3, their common beginning and two ends of it.
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
    ends: tuple[int, ...] = ()
    source_ends: tuple[int, ...] = ()
    states: Tensor | None = None
    each: int = 1

    @property
    def rows(self) -> int:
        """How many rows of the data it holds."""
        return len(self.where)

    @property
    def tokens(self) -> int:
        """How many real tokens are read, padding not counted."""
        source = 0 if self.source_document is None else int((self.source_document > 0).sum())
        return int((self.document > 0).sum()) + source

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        moved = {
            item.name: sent(getattr(self, item.name), device)
            for item in fields(self)
            if isinstance(getattr(self, item.name), Tensor)
        }
        return replace(self, **moved, extras={name: sent(value, device) for name, value in self.extras.items()})

    @property
    def padded(self) -> bool:
        """Whether any position is padding."""
        return bool((self.document == 0).any())


def sent(value: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on a device; from pinned memory, so that nobody waits for a GPU to be done with what came before."""
    if torch.device(device).type == "cuda" and not value.is_cuda:
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


def collate(rows: Sequence[Tokens], pad: int, left: bool = False) -> Batch:
    """Rows side by side, of a pair one below the other; padding stands right, or left where generation goes on."""
    given, rows = rows, [document for row in rows for document in row.documents()]
    ids, document, positions = _padded([row.ids for row in rows], pad, left)
    source = source_document = None
    if rows[0].source is not None:
        source, source_document, _ = _padded(_each(rows, "source"), pad, left=False)
    weights = torch.zeros(ids.shape, dtype=torch.float32)
    weights[document > 0] = torch.from_numpy(np.concatenate(_each(rows, "weights")))
    return Batch(
        ids,
        weights,
        positions,
        document,
        tuple(row.where for row in given),
        tuple(row.example for row in given),
        targets=None if rows[0].targets is None else _padded(_each(rows, "targets"), pad, left)[0],
        segments=None if rows[0].segments is None else _padded(_each(rows, "segments"), 0, left)[0],
        source=source,
        source_document=source_document,
        label=_labels(rows),
        extras=_extras(given),
        each=len(rows) // len(given),
    )


def join(rows: Sequence[Tokens], shared: bool = False) -> Batch:
    """One pack: the rows one after the other, each a document with positions of its own.

    shared: what the two answers of a pair begin with stands once, and both go on from there.
    """
    given, rows = rows, [document for row in rows for document in row.documents(shared)]
    each = len(rows) // len(given)
    ids, document, positions, ends = _joined(_each(rows, "ids"))
    if each == 3:
        starts = np.array([[0, len(row.ids), len(row.ids)] for row in rows[::3]]).flatten()
        positions = positions + torch.from_numpy(starts)[document - 1]
    source = source_document = None
    source_ends: tuple[int, ...] = ()
    if rows[0].source is not None:
        source, source_document, _, source_ends = _joined(_each(rows, "source"))
    return Batch(
        ids,
        torch.from_numpy(np.concatenate(_each(rows, "weights")))[None],
        positions,
        document,
        tuple(row.where for row in given),
        tuple(row.example for row in given),
        targets=None if rows[0].targets is None else _joined(_each(rows, "targets"))[0],
        segments=None if rows[0].segments is None else _joined(_each(rows, "segments"))[0],
        source=source,
        source_document=source_document,
        label=_labels(rows),
        extras=_extras(given),
        ends=ends,
        source_ends=source_ends,
        states=_states(rows),
        each=each,
    )


def filled(pack: Batch, size: int, source: int = 0) -> Batch:
    """A pack with padding at its end up to `size` tokens (and `source`): one more document, 0, that weighs nothing."""
    names = {"ids": size, "weights": size, "positions": size, "document": size, "targets": size, "segments": size}
    names |= {"source": source, "source_document": source}
    longer: dict[str, Any] = {
        name: torch.nn.functional.pad(value, (0, wanted - value.shape[1]))
        for name, wanted in names.items()
        if (value := getattr(pack, name)) is not None
    }
    if source:
        longer["source_ends"] = (*pack.source_ends, source)
    if pack.states is not None:
        longer["states"] = torch.nn.functional.pad(pack.states, (0, 0, 0, size - pack.states.shape[1]))
    return replace(pack, **longer, ends=(*pack.ends, size))


def _each(rows: Sequence[Tokens], name: str) -> list[np.ndarray]:
    return [getattr(row, name) for row in rows]


def _labels(rows: Sequence[Tokens]) -> Tensor | None:
    if rows[0].label is None:
        return None
    label = torch.from_numpy(np.asarray([row.label for row in rows]))
    return label.float() if label.is_floating_point() else label.long()


def _states(rows: Sequence[Tokens]) -> Tensor | None:
    parts = [row.states() for row in rows if row.states is not None]
    if not parts:
        return None
    whole = torch.from_numpy(np.concatenate(parts))[None]
    return whole.view(torch.bfloat16) if whole.dtype == torch.int16 else whole


def _extras(rows: Sequence[Tokens]) -> dict[str, Tensor]:
    known = [row.reference for row in rows if row.reference is not None]
    return {"reference": torch.from_numpy(np.stack(known))} if known else {}


def _joined(rows: Sequence[np.ndarray]) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
    sizes = [len(row) for row in rows]
    ids = np.concatenate(rows).astype(np.int64)
    document = np.repeat(np.arange(1, len(rows) + 1), sizes)
    positions = np.concatenate([np.arange(size) for size in sizes])
    ids, document, positions = (torch.from_numpy(part)[None] for part in (ids, document, positions))
    return ids, document, positions, tuple(np.cumsum([0, *sizes]).tolist())


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


def pack(rows: Sequence[Tokens], budget: int) -> list[list[int]]:
    """Indices of rows in packs of at most `budget` tokens, longest row first into the fullest pack with room for it.

    Best-fit decreasing; a row longer than the budget is a pack of its own.
    """
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, pack), in order
    for i in sorted(range(len(rows)), key=lambda i: -rows[i].length):
        at = bisect.bisect_left(room, (rows[i].length, 0))
        if at == len(room):
            packs.append([])
            left, number = budget, len(packs) - 1
        else:
            left, number = room.pop(at)
        packs[number].append(i)
        if left - rows[i].length > 0:
            bisect.insort(room, (left - rows[i].length, number))
    return packs


Corrupt = Callable[[Tokens, np.random.Generator], Tokens]


@dataclass(frozen=True)
class Batches:
    """The training rows, step after step: `batches(start)` goes on from any step.

    rows are drawn without replacement within an epoch, in an order that depends on (seed, epoch) alone; the last
    step of an epoch may be smaller.  corrupt: noise for masked and span objectives, from (seed, epoch, row).
    packed: whether rows stand one after the other in packs of `micro_tokens`, or side by side with padding.
    shared: whether in a pack the two answers of a pair share what they begin with.
    rank, ranks: of so many processes that share every step's rows, this is the one at work.
    """

    rows: Sequence[Tokens]
    batch_size: int
    micro_tokens: int
    seed: int
    pad: int
    corrupt: Corrupt | None = None
    packed: bool = False
    rank: int = 0
    ranks: int = 1
    shared: bool = False

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
        rows = [self._row(epoch, i) for epoch, i in self._shared(self.drawn(step))]
        return list(self._cut(rows))

    def __call__(self, start: int = 1) -> Iterator[list[Batch]]:
        """Steps from `start` on, for ever."""
        while True:
            yield self.step(start)
            start += 1

    def once(self) -> Iterator[Batch]:
        """Every row once, in file order of like lengths, with the noise of epoch 0: for validation."""
        rows = [self._row(epoch, i) for epoch, i in self._shared([(0, i) for i in range(len(self.rows))])]
        yield from self._cut(rows)

    def spare(self) -> Batch:
        """The shortest row alone: what a rank without rows runs where it must keep others company."""
        shortest = min(range(len(self.rows)), key=lambda i: self.rows[i].length)
        return next(self._cut([self._row(0, shortest)]))

    def _shared(self, drawn: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """This rank's rows: longest first, each to the rank with the fewest tokens so far."""
        if self.ranks == 1:
            return drawn
        mine = []
        loads = [(0, rank) for rank in range(self.ranks)]
        for place in sorted(range(len(drawn)), key=lambda place: -self.rows[drawn[place][1]].length):
            tokens, rank = loads[0]
            heapq.heapreplace(loads, (tokens + self.rows[drawn[place][1]].length, rank))
            if rank == self.rank:
                mine.append(place)
        return [drawn[place] for place in sorted(mine)]

    def _cut(self, rows: Sequence[Tokens]) -> Iterator[Batch]:
        cut = pack if self.packed else by_budget
        for group in cut(rows, self.micro_tokens):
            chosen = [rows[i] for i in group]
            yield join(chosen, self.shared) if self.packed else collate(chosen, self.pad)

    def _row(self, epoch: int, i: int) -> Tokens:
        if self.corrupt is None:
            return self.rows[i]
        return self.corrupt(self.rows[i], np.random.default_rng([self.seed, 2, epoch, i]))
