"""Where the documents of a pack stand, and which of them are multiplied together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from burnish.tokens.batch import Batch, sent

BLOCK = 256  # queries taken at once from a long document: the half of the causal square ahead of a block is skipped
TOGETHER = 1 << 16  # scores per head up to which documents of like length share one product


def rounded(size: int) -> int:
    """Up to a multiple of 16, from 64 on of 64."""
    step = 16 if size <= 64 else 64
    return -(-size // step) * step


@dataclass(frozen=True)
class Group:
    """G stretches of up to Q queries, each with up to K keys of its own document.

    query, key: (G, Q), (G, K) places along the pack; past a document's end they repeat its last place and are masked.
    offset: query i stands at position i + offset among the keys (causal).
    real: places of the real queries among the G x Q, or None when all are.
    lengths: (G,) real keys of each, or None when all have K.
    """

    query: Tensor
    key: Tensor
    offset: int = 0
    real: Tensor | None = None
    lengths: Tensor | None = None

    def mask(self, causal: bool, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """(1 or G, Q, K) 0 where a query sees a key, -inf elsewhere; None when every one sees all."""
        if not causal and self.lengths is None and window is None:
            return None
        steps = torch.arange(self.key.shape[1], device=self.key.device)
        seen = torch.ones(1, self.query.shape[1], len(steps), dtype=torch.bool, device=steps.device)
        place = torch.arange(self.query.shape[1], device=steps.device)[:, None] + self.offset
        if causal:
            seen = seen & (steps <= place)
        if window is not None:
            seen = seen & (steps > place - window)
        if self.lengths is not None:
            seen = seen & (steps < self.lengths[:, None, None])
            seen[..., 0] |= ~seen.any(-1)  # a query past the end: anything finite, it is thrown away
        return torch.zeros(seen.shape, dtype=dtype, device=steps.device).masked_fill_(~seen, -math.inf)


@dataclass
class Spans:
    """Which stretch of queries sees which stretch of keys; `ends` are running sums beginning with 0.

    places: where in the pack each key is taken from, where stretches share some (else None: the keys are the pack).
    A stretch of keys that is longer than its queries holds, in front, what stands before them.
    """

    queries: Sequence[int]
    keys: Sequence[int]
    device: torch.device
    places: Tensor | None = None
    masks: dict[Any, Any] = field(default_factory=dict)

    @cached_property
    def sums(self) -> tuple[Tensor, Tensor]:
        """`queries` and `keys` on the device, int32, as kernels of variable length want them."""
        made = [torch.tensor(list(part), dtype=torch.int32) for part in (self.queries, self.keys)]
        return sent(made[0], self.device), sent(made[1], self.device)

    @cached_property
    def most(self) -> tuple[int, int]:
        """The most queries and the most keys of a document."""
        most = [max(b - a for a, b in pairwise(part)) for part in (self.queries, self.keys)]
        return most[0], most[1]

    @property
    def longest(self) -> int:
        """The farthest that a query or key of a group stands from its document's begin, padding of groups counted."""
        sides = zip(pairwise(self.queries), pairwise(self.keys), strict=True)
        return max(max(rounded(b - a) + max(d - c - b + a, 0), rounded(d - c)) for (a, b), (c, d) in sides)

    @cached_property
    def causal(self) -> list[Group]:
        return self._groups(True)

    @cached_property
    def free(self) -> list[Group]:
        return self._groups(False)

    def mask(self, number: int, causal: bool, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """The mask of one group, made once for all layers."""
        key = (number, causal, window, dtype)
        if key not in self.masks:
            self.masks[key] = (self.causal if causal else self.free)[number].mask(causal, window, dtype)
        return self.masks[key]

    def _groups(self, causal: bool) -> list[Group]:
        """Documents of like size in twos, fours, eights ...; long ones block by block.

        Sizes are rounded up, so that products come in few shapes: bfloat16 kernels are compiled for each.
        """
        alike: dict[tuple[int, int, int], list[tuple[int, int, int, int]]] = {}
        groups = []
        for own, seen in zip(pairwise(self.queries), pairwise(self.keys), strict=True):
            if own[0] == own[1]:
                continue
            bound = (*own, *seen)
            before = (seen[1] - seen[0] - own[1] + own[0]) * causal
            size = rounded(own[1] - own[0]), rounded(seen[1] - seen[0])
            if size[0] * size[1] <= TOGETHER:
                alike.setdefault((*size, before), []).append(bound)
            else:
                groups += [self._block(bound, at, before, causal) for at in range(0, own[1] - own[0], BLOCK)]
        for (long, wide, before), bounds in sorted(alike.items()):
            most = 1 << ((TOGETHER // (long * wide)).bit_length() - 1)
            while bounds:
                many = min(most, 1 << (len(bounds).bit_length() - 1))
                groups.append(self._group(bounds[:many], long, wide, before))
                bounds = bounds[many:]
        return groups

    def _block(self, bound: tuple[int, int, int, int], at: int, before: int, causal: bool) -> Group:
        """Some queries of one document, with the keys that they may see; `before` stand in front of its own."""
        first, last, start, end = bound
        stop = min(at + BLOCK, last - first)
        if causal:
            end = start + before + stop
        return self._group(
            [(first + at, first + stop, start, end)], rounded(stop - at), rounded(end - start), before + at
        )

    def _group(self, bounds: Sequence[tuple[int, int, int, int]], long: int, wide: int, offset: int = 0) -> Group:
        query = torch.stack([torch.arange(a, a + long).clamp_max(b - 1) for a, b, _, _ in bounds])
        key = torch.stack([torch.arange(a, a + wide).clamp_max(b - 1) for _, _, a, b in bounds])
        own = torch.tensor([b - a for a, b, _, _ in bounds])
        keys = torch.tensor([b - a for _, _, a, b in bounds])
        real = torch.nonzero((torch.arange(long) < own[:, None]).flatten())[:, 0]
        return Group(
            sent(query, self.device),
            sent(key, self.device),
            offset,
            None if len(real) == query.numel() else sent(real, self.device),
            None if bool((keys == wide).all()) else sent(keys, self.device),
        )


@dataclass(frozen=True)
class Layout:
    """A pack: `own` spans of a decoder or a lone encoder; `source` of an encoder before a decoder, `cross` between."""

    own: Spans
    source: Spans | None = None
    cross: Spans | None = None


def layout_of(batch: Batch) -> Layout:
    """The layout of a packed batch; of pairs that share a beginning, of three documents each."""
    if batch.each == 3:
        return Layout(_shared(batch))
    own = Spans(batch.ends, batch.ends, batch.ids.device)
    if not batch.source_ends:
        return Layout(own)
    source, device = batch.source_ends, batch.ids.device
    return Layout(own, Spans(source, source, device), Spans(batch.ends, source, device))


def _shared(batch: Batch) -> Spans:
    """Two ends go on from each beginning: they see its keys before their own."""
    places, ends = [], [0]
    documents = list(pairwise(batch.ends))
    for number, (start, end) in enumerate(documents):
        own = [torch.arange(start, end)]
        if number % 3 and number < 3 * batch.rows:  # not what fills the pack up
            own.insert(0, torch.arange(*documents[number - number % 3]))
        places += own
        ends.append(ends[-1] + sum(map(len, own)))
    device = batch.ids.device
    return Spans(batch.ends, ends, device, torch.cat(places).to(device))
