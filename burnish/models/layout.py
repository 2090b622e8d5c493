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

BLOCK = 256  # queries taken at once from a long document: the half of the causal square ahead of a block is skipped
TOGETHER = 1 << 16  # scores per head up to which documents of like length share one product


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
    """Which stretch of queries sees which stretch of keys; `ends` are running sums beginning with 0."""

    queries: Sequence[int]
    keys: Sequence[int]
    device: torch.device
    masks: dict[Any, Tensor | None] = field(default_factory=dict)

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
        bounds = [(*own, *seen) for own, seen in zip(pairwise(self.queries), pairwise(self.keys), strict=True)]
        groups = []
        alike: list[tuple[int, int, int, int]] = []
        for bound in sorted(bounds, key=lambda item: (item[1] - item[0], item[3] - item[2])):
            long, wide = bound[1] - bound[0], bound[3] - bound[2]
            if long * wide > TOGETHER:
                groups += [self._block(bound, at, causal) for at in range(0, long, BLOCK)]
                continue
            first = alike[0] if alike else bound
            much = max(first[1] - first[0], 8) * max(first[3] - first[2], 8)
            if alike and (long * wide * (len(alike) + 1) > TOGETHER or long * wide > 1.5 * much):
                groups.append(self._together(alike))
                alike = []
            alike.append(bound)
        return groups + ([self._together(alike)] if alike else [])

    def _block(self, bound: tuple[int, int, int, int], at: int, causal: bool) -> Group:
        """Some queries of one document, with the keys that they may see."""
        first, last, start, end = bound
        stop = min(at + BLOCK, last - first)
        if causal:
            end = start + stop
        return Group(self._range(first + at, first + stop)[None], self._range(start, end)[None], at)

    def _together(self, bounds: Sequence[tuple[int, int, int, int]]) -> Group:
        long, wide = (max(item[1] - item[0] for item in bounds), max(item[3] - item[2] for item in bounds))
        query = torch.stack([self._range(a, a + long).clamp_max(b - 1) for a, b, _, _ in bounds])
        key = torch.stack([self._range(a, a + wide).clamp_max(b - 1) for _, _, a, b in bounds])
        own = torch.tensor([b - a for a, b, _, _ in bounds], device=self.device)
        keys = torch.tensor([b - a for _, _, a, b in bounds], device=self.device)
        steps = torch.arange(long, device=self.device)
        real = torch.nonzero((steps < own[:, None]).flatten())[:, 0]
        return Group(
            query,
            key,
            0,
            None if len(real) == query.numel() else real,
            None if bool((keys == wide).all()) else keys,
        )

    def _range(self, start: int, stop: int) -> Tensor:
        return torch.arange(start, stop, device=self.device)


@dataclass(frozen=True)
class Layout:
    """A pack: `own` spans of a decoder or a lone encoder; `source` of an encoder before a decoder, `cross` between."""

    own: Spans
    source: Spans | None = None
    cross: Spans | None = None
