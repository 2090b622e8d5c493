"""Attention of rows that begin alike and of trees behind them, by branch.cpp: any row reads the one copy of the prefix.

In: queries, keys and values of a pack, and Branches, which say what each place sees.  Out: what each row alone, with
the prefix before it, would give.  There is no mask of places by places: what sixteen queries see is a stretch and a few
single keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from burnish.models import kernels

WIDE = 16  # queries in a block, a bit each


@dataclass(frozen=True)
class Branches:
    """Which place of a pack sees what besides the prefix, for a forward pass without gradient.

    prefix: each layer's keys and values (1, Hkv, P, D), or nothing.
    blocks: (B, 4) first place, how many (at most 16), and the stretch [from, to) of the pack that all of them see.
    ends: (B + 1,) where the keys of each block begin.  keys: (K,) places.  masks: (K,) a bit for each place of the
    block that sees the key.  Places past the last block give zeros.
    """

    prefix: Sequence[tuple[Tensor, Tensor]]
    blocks: Tensor
    ends: Tensor
    keys: Tensor
    masks: Tensor

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """(1, T, H, D) of query (1, H, T, D), key and value (1, Hkv, T, D); NotImplementedError for other shapes."""
        if query.shape[-1] != value.shape[-1] or query.dtype not in kernels.ENDINGS or query.dtype != value.dtype:
            raise NotImplementedError("branches know heads of one width, in float32 or bfloat16")
        query, key, value = (part if part.stride(3) == 1 else part.contiguous() for part in (query, key, value))
        before = self.prefix[module.layer_idx] if self.prefix else (None, None)
        told = [None if part is None else part.contiguous() for part in before]
        _, heads, tokens, depth = query.shape
        out = torch.empty(1, tokens, heads, depth, dtype=query.dtype)
        out[:, int(self.blocks[-1, :2].sum()) :] = 0
        sizes = len(self.blocks), heads, key.shape[1], depth, 0 if told[0] is None else told[0].shape[2]
        strides = [part.stride(axis) for part in (query, key, value) for axis in (2, 1)]
        lists = self.blocks, self.ends, self.keys, self.masks
        kernels.call("branch", query, key, value, out, *told, *lists, *sizes, *strides, float(scale))
        return out
