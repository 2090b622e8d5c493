"""Attention of a pack's documents by the tiles of attend.cpp: bfloat16 on processors with AVX-512 BF16.

In: queries, keys and values of a pack and its Spans.  Out: what attention.py's larger steps give, in less time: scores
stay in the cache, in float32, and nothing ahead of a causal query is computed.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from burnish.models import kernels
from burnish.models.layout import Spans


def fits(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the tiles can work on these (T, H, D) and (S, Hkv, D): bfloat16 on such a CPU, D a multiple of 16."""
    alike = q.shape[2] == k.shape[2] == v.shape[2] and q.shape[2] % 16 == 0
    return alike and q.dtype == k.dtype == v.dtype == torch.bfloat16 and q.device.type == "cpu" and _able()


@cache
def _able() -> bool:
    found = kernels.compiled()
    return found is not None and bool(found.attends())


class Tiled(torch.autograd.Function):
    """Exact attention; keeps q, k, v and each row's log of the sum of exponentials (Dao et al. 2022, algorithm 4)."""

    @staticmethod
    def forward(
        context: Any, q: Tensor, k: Tensor, v: Tensor, spans: Spans, causal: bool, window: int | None, scale: float
    ) -> Tensor:
        q, k, v = (part.contiguous() for part in (q, k, v))
        ends = [torch.tensor(list(part)) for part in (spans.queries, spans.keys)]
        sizes = len(ends[0]) - 1, q.shape[1], k.shape[1], q.shape[2]
        context.rest = (*ends, *sizes, int(causal), window or 0, float(scale))
        out, logs = torch.empty_like(q), torch.empty(q.shape[:2])
        kernels.call("attend", q, k, v, out, logs, *context.rest)
        context.save_for_backward(q, k, v, logs)
        return out

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        q, k, v, logs = context.saved_tensors
        back = [torch.empty_like(part) for part in (q, k, v)]
        kernels.call("attend_back", gradient.contiguous(), q, k, v, logs, *back, *context.rest)
        return *back, None, None, None, None
