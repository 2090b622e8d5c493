"""Attention of a pack's documents by a GPU's kernels: variable-length flash attention, else flex attention.

In: queries, keys and values of a pack on CUDA, and its Spans.  Out: what attention.py's larger steps give.  A kernel is
taken when it can be had here and has shown, on a few documents of that type and head size, that it computes the same;
where none is (float32, dropout, a learned bias, wide heads), attention.py does the work in its larger steps.
"""

from __future__ import annotations

import inspect as signatures
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from burnish.models.layout import Spans
from burnish.models.liger import trying
from burnish.tokens.batch import sent

Attention = Callable[[Tensor, Tensor, Tensor, Spans, bool, int | None, float], Tensor]
HALVES = (torch.bfloat16, torch.float16)
WIDEST = 256  # numbers of a head
ROOM = 2e-2  # of the largest value: three bits of bfloat16


def chosen(q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None, scale: float) -> Attention | None:
    """The kernel for queries (T, H, D), keys and values (S, Hkv, D), or None where none suits."""
    depth = q.shape[2]
    alike = q.dtype == k.dtype == v.dtype and depth == k.shape[2] == v.shape[2]
    if not q.is_cuda or not alike or q.dtype not in HALVES or depth % 8 or depth > WIDEST:
        return None
    found = found_for(q.device, q.dtype, depth, q.shape[1] // k.shape[1], causal, window is not None, _usual(scale, q))
    return found and found[1]


@cache
def found_for(
    device: torch.device, dtype: torch.dtype, depth: int, repeats: int, causal: bool, windowed: bool, usual: bool
) -> tuple[str, Attention] | None:
    """The first of WAYS that can be had and proves itself, and its name.

    repeats: query heads that share a key.  usual: scores are divided by the root of the head size.
    """
    for name, make in WAYS:
        try:
            way = make()
            told = device, dtype, depth, repeats, causal, windowed, usual
            if all(_proves(way, own, seen, *told) for own, seen in TRIALS):
                return name, way
        except Exception:  # not installed, or not for this device, type or shape: the next one
            continue
    return None


def plain(
    q: Tensor, k: Tensor, v: Tensor, spans: Spans, causal: bool, window: int | None, scale: float, **_: Any
) -> Tensor:
    """Document by document, by PyTorch's own attention under a mask: what the kernels are held against."""
    parts = []
    for (a, b), (c, d) in zip(pairwise(spans.queries), pairwise(spans.keys), strict=True):
        place = torch.arange(d - c - (b - a), d - c, device=q.device)[:, None]
        steps = torch.arange(d - c, device=q.device)
        seen = torch.ones(b - a, d - c, dtype=torch.bool, device=q.device)
        if causal:
            seen &= steps <= place
        if window is not None:
            seen &= steps > place - window
        rows = (part.transpose(0, 1)[None] for part in (q[a:b], k[c:d], v[c:d]))
        told = nn.functional.scaled_dot_product_attention(*rows, attn_mask=seen, scale=scale, enable_gqa=True)
        parts.append(told[0].transpose(0, 1))
    return torch.cat(parts)


TRIALS: tuple[
    tuple[tuple[int, ...], tuple[int, ...]], ...
] = (  # queries and keys of documents; the second: shared ones
    ((3, 70, 20, 1), (3, 70, 20, 1)),
    ((5, 40), (17, 60)),
)


def _proves(
    way: Attention,
    own: tuple[int, ...],
    seen: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
    depth: int,
    repeats: int,
    causal: bool,
    windowed: bool,
    usual: bool,
) -> bool:
    """Whether value and gradients are `plain`'s in float32, but for rounding."""
    ends = [[0, *torch.tensor(part).cumsum(0).tolist()] for part in (own, seen)]
    spans, draw = Spans(ends[0], ends[1], device), torch.Generator().manual_seed(0)
    shapes = (ends[0][-1], 2 * repeats, depth), *[(ends[1][-1], 2, depth)] * 2
    values = [torch.randn(shape, generator=draw).to(device, dtype) for shape in shapes]
    back = torch.randn(shapes[0], generator=draw).to(device)
    rest = causal, 7 if windowed else None, depth**-0.5 * (1 if usual else 0.7)
    told = []
    with trying():
        for work, exact in ((way, dtype), (plain, torch.float32)):
            q, k, v = (value.detach().to(exact).requires_grad_() for value in values)
            out = work(q, k, v, spans, *rest)
            told.append([out.detach(), *torch.autograd.grad(out, (q, k, v), back.to(exact))])
    return all(bool((a.float() - b).abs().max() <= ROOM * b.abs().max()) for a, b in zip(*told, strict=True))


def _usual(scale: float, q: Tensor) -> bool:
    return bool(abs(scale - q.shape[2] ** -0.5) < 1e-6)


def _torch() -> Attention:
    """PyTorch's own: 2.10 knows neither window nor scale, and grouped heads come with 2.12."""
    from torch.nn.attention.varlen import varlen_attn

    return partial(by_torch, varlen_attn, frozenset(signatures.signature(varlen_attn).parameters))


def by_torch(
    kernel: Any,
    knows: frozenset[str],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spans: Spans,
    causal: bool,
    window: int | None,
    scale: float,
) -> Tensor:
    """kernel: torch.nn.attention.varlen.varlen_attn.  knows: the names of its parameters."""
    told: dict[str, Any] = {}
    if "window_size" in knows:
        told["window_size"] = _sides(causal, window)
    elif window is None:
        told["is_causal"] = causal
    else:
        raise NotImplementedError("this PyTorch has no window")
    if "scale" in knows:
        told["scale"] = scale
    elif not _usual(scale, q):
        raise NotImplementedError("this PyTorch has no scale")
    repeats = q.shape[1] // k.shape[1]
    if repeats > 1 and "enable_gqa" in knows:
        told["enable_gqa"] = True
    elif repeats > 1:
        k, v = (part.repeat_interleave(repeats, 1) for part in (k, v))
    out: Tensor = kernel(q.contiguous(), k.contiguous(), v.contiguous(), *spans.sums, *spans.most, **told)
    return out


def _dao() -> Attention:
    from flash_attn import flash_attn_varlen_func

    return partial(by_dao, flash_attn_varlen_func)


def by_dao(
    kernel: Any, q: Tensor, k: Tensor, v: Tensor, spans: Spans, causal: bool, window: int | None, scale: float
) -> Tensor:
    """kernel: flash_attn.flash_attn_varlen_func, 2.3 or newer."""
    sides = _sides(causal, window)
    out: Tensor = kernel(q, k, v, *spans.sums, *spans.most, softmax_scale=scale, causal=causal, window_size=sides)
    return out


def _sides(causal: bool, window: int | None) -> tuple[int, int]:
    """How many keys before and behind its own place a query sees; -1: all."""
    return -1 if window is None else window - 1, 0 if causal else -1


def _flex() -> Attention:
    from torch.nn.attention.flex_attention import flex_attention

    return partial(by_flex, torch.compile(flex_attention, dynamic=True))  # as it comes it makes all scores


def by_flex(
    kernel: Any, q: Tensor, k: Tensor, v: Tensor, spans: Spans, causal: bool, window: int | None, scale: float
) -> Tensor:
    """kernel: torch.nn.attention.flex_attention.flex_attention, compiled."""
    key = "flex", causal, window
    if key not in spans.masks:
        spans.masks[key] = _blocks(spans, causal, window)
    rows = (part.transpose(0, 1)[None] for part in (q, k, v))
    out: Tensor = kernel(*rows, block_mask=spans.masks[key], scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return out[0].transpose(0, 1)


def _blocks(spans: Spans, causal: bool, window: int | None) -> Any:
    """Which blocks of queries see which of keys, for all layers; documents end anywhere in a block."""
    from torch.nn.attention.flex_attention import create_block_mask

    queries, keys = (torch.tensor(list(part)) for part in (spans.queries, spans.keys))
    sizes = [part.diff() for part in (queries, keys)]
    own, other = (torch.arange(len(size)).repeat_interleave(size) for size in sizes)
    steps = torch.arange(len(other)) - keys[other]
    places = torch.arange(len(own)) - queries[own] + (sizes[1] - sizes[0])[own]
    own, other, steps, places = (sent(part, spans.device) for part in (own, other, steps, places))

    def seen(_batch: Tensor, _head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        told = own[i] == other[j]
        if causal:
            told = told & (steps[j] <= places[i])
        if window is not None:
            told = told & (steps[j] > places[i] - window)
        return told

    return create_block_mask(seen, None, None, len(own), len(other), device=spans.device)


WAYS: tuple[tuple[str, Callable[[], Attention]], ...] = (
    ("PyTorch's variable-length flash attention", _torch),
    ("flash-attn's variable-length attention", _dao),
    ("flex attention", _flex),
)
