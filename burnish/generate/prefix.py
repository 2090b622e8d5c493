"""What all rows begin with, found and run once.

In: the ids of rows.  Out: how many they share, and a Prefix, whose keys and values every row reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from burnish.models.model import Model

SHORTEST = 8  # ids: a prefix below this saves less than its own pass costs


class _Lent(DynamicLayer):
    """One layer's keys and values of the prefix, read by every row and not kept per row."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The prefix and then the rows' own, (B, heads, P + T, width)."""
        assert self.keys is not None
        assert self.values is not None
        pairs = ((self.keys, key_states), (self.values, value_states))
        keys, values = (torch.cat([old.expand(len(new), -1, -1, -1), new], 2) for old, new in pairs)
        return keys, values


@dataclass(frozen=True)
class Prefix:
    """ids that all rows begin with, and what each layer made of them: keys and values (1, heads, P, width)."""

    ids: tuple[int, ...] = ()
    layers: tuple[tuple[Tensor, Tensor], ...] = ()

    def lent(self) -> Cache | None:
        """A cache for one pass of any number of rows."""
        return Cache(layers=[_Lent(*layer) for layer in self.layers]) if self.ids else None

    def grown(self, rows: int) -> Cache | None:
        """A cache that `rows` rows go on from, token by token."""
        if not self.ids:
            return None
        told = DynamicCache()
        for place, (keys, values) in enumerate(self.layers):
            told.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), place)
        return told


NOTHING = Prefix()


def common(rows: Sequence[np.ndarray], ends: Sequence[int]) -> int:
    """How many ids all rows begin with, at most the least of `ends`; 0 where it does not pay."""
    if len(rows) < 2:
        return 0
    most = min(ends)
    if most < SHORTEST:
        return 0
    same = (np.stack([row[:most] for row in rows]) == rows[0][:most]).all(0)
    length = most if same.all() else int(same.argmin())
    return length if length >= SHORTEST else 0


def read(model: Model, ids: Sequence[int]) -> Prefix:
    """Run a prefix, once."""
    cache = DynamicCache()
    inputs: dict[str, Any] = {"logits_to_keep": 1} if model.takes_keep else {}
    model.hf(input_ids=torch.tensor([list(ids)], device=model.device), past_key_values=cache, use_cache=True, **inputs)
    return Prefix(tuple(ids), tuple((layer.keys, layer.values) for layer in cache.layers))
