"""Attention kept inside each document of a pack, registered with transformers under the name `burnish`.

In: queries, keys and values of all documents of a pack, one after the other, and the Layout that says where each
begins.  Out: what separate calls would give, without padding and without a (T, T) mask.  Where no Layout is set (padded
rows, generation with a cache) it is transformers' own SDPA.

On the CPU documents of like length are multiplied together, the scores are recomputed in the backward pass, and long
documents go block by block so that a causal one skips what lies ahead.  On CUDA it is a kernel of flash.py where one
suits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from burnish.models import flash, kernels, tiled
from burnish.models.branches import Branches
from burnish.models.layout import Group, Layout, Spans

NAME = "burnish"
CROSS = ("encoder_attn", "crossattention", "cross_attn", "EncDecAttention")


@dataclass
class Seat:
    """What every attention module of one model looks at; the model sets it before each pass.

    It stays until the next pass, because recomputation in the backward pass looks at it again.
    positions, source_positions: (T,) for models that count positions themselves (BART).
    """

    layout: Layout | Branches | None = None
    positions: Tensor | None = None
    source_positions: Tensor | None = None


def install(hf: Any, seat: Seat) -> None:
    """Make a transformers model use this attention; it says on first use, by an exception, when it cannot.

    A model that does not ask transformers' interface keeps its own: its masks are of another kind.
    """
    if hf._supports_sdpa or hf._supports_attention_backend:
        hf.set_attn_implementation(NAME)
    two_sided = bool(getattr(hf.config, "is_encoder_decoder", False))
    for name, module in hf.named_modules():
        parts = name.split(".")
        side = "source" if two_sided and "encoder" in parts and "decoder" not in parts else "own"
        module._seat = (seat, "cross" if any(part in CROSS for part in parts) else side)
        if type(module).__name__.endswith("LearnedPositionalEmbedding"):
            module.register_forward_pre_hook(_positions, with_kwargs=True)
        if hasattr(module, "compute_bias") and len(signature(module.compute_bias).parameters) > 1:  # not of blocks
            module.compute_bias = partial(_distances, module, module.compute_bias)


def _distances(module: nn.Module, plain: Callable[..., Tensor], queries: int, keys: int, **told: Any) -> Tensor:
    """T5's learned bias.  Of a pack (1, H, 1, 2N - 1): of keys N - 1 places before a query to N - 1 after it."""
    seat, side = module._seat
    if seat.layout is None:
        return plain(queries, keys, **told)
    longest = getattr(seat.layout, side).longest
    return plain(1, 2 * longest - 1, **told | {"past_seen_tokens": longest - 1})


def _positions(module: nn.Module, told: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Give a pack's positions to a module that would count through the whole pack."""
    seat, side = module._seat
    if seat.layout is not None:
        named = {**named, "position_ids": seat.source_positions if side == "source" else seat.positions}
    return told, named


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (1, H, T, D), key and value (1, Hkv, S, D); gives (1, T, H, D)."""
    seat, side = getattr(module, "_seat", (None, ""))
    if seat is None or seat.layout is None:
        cap, sinks = others.get("softcap"), others.get("s_aux")
        if cap or sinks is not None:
            return _spelled(query, key, value, attention_mask, scaling, dropout, cap, sinks), None
        told = {
            "scaling": scaling,
            "dropout": dropout,
            "is_causal": is_causal,
            "position_bias": position_bias,
            **others,
        }
        if sliding_window is not None:
            told["sliding_window"] = sliding_window
        return sdpa_attention_forward(module, query, key, value, attention_mask, **told)
    odd = [name for name in ("s_aux", "cache") if others.get(name) is not None]
    odd += ["mask of the model's own"] * (attention_mask is not None)
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal) and side != "cross"
    if odd or (sliding_window is not None and not causal):
        raise NotImplementedError(f"packed attention has no {odd or 'two-sided window'}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if isinstance(seat.layout, Branches):
        if side == "cross" or others.get("softcap") or position_bias is not None:
            raise NotImplementedError("branches know plain causal attention only")
        return seat.layout.attend(module, query, key, value, scale), None
    bias = None if side == "cross" else position_bias  # T5's is zeros between its two sides
    if bias is not None and bias.shape[2] != 1:
        raise NotImplementedError("packed attention knows a bias of distances only")
    spans = getattr(seat.layout, side)
    # under somebody's autocast rotated heads are wider than values
    q, k, v = (part.squeeze(0).transpose(0, 1).to(value.dtype) for part in (query, key, value))  # (T, heads, D)
    if spans.places is not None:
        k, v = k.index_select(0, spans.places), v.index_select(0, spans.places)
    if softcap := others.get("softcap"):
        return _softcapped(q, k, v, spans, causal, sliding_window, scale, dropout, softcap)[None], None
    if bias is None and not dropout and (kernel := flash.chosen(q, k, v, causal, sliding_window, scale)):
        return kernel(q, k, v, spans, causal, sliding_window, scale)[None], None
    if bias is None and not dropout and tiled.fits(q, k, v):
        return tiled.Tiled.apply(q, k, v, spans, causal, sliding_window, scale)[None], None
    return _Packed.apply(q, k, v, bias, spans, causal, sliding_window, scale, dropout)[None], None


def _spelled(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    dropout: float,
    cap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Padded attention with what SDPA does not have: a soft cap on the scores, sinks (H,) that take a part of each row.

    mask (B, 1, T, S) true where seen.
    """
    heads, long, wide = query.shape[1], query.shape[2], key.shape[2]
    key, value = (part.repeat_interleave(heads // part.shape[1], 1) for part in (key, value))
    told = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if cap:
        told = cap * torch.tanh(told / cap)
    if mask is None and long > 1:
        mask = torch.ones(long, wide, dtype=torch.bool, device=query.device).tril(wide - long)
    if mask is not None:
        told = told.masked_fill(~mask[..., :wide], torch.finfo(told.dtype).min)
    if sinks is not None:
        told = torch.cat([told, sinks.view(1, -1, 1, 1).expand(len(told), -1, long, 1).to(told.dtype)], -1)
    shares = nn.functional.dropout(torch.softmax(told.float(), -1)[..., :wide].to(value.dtype), dropout)
    return (shares @ value).transpose(1, 2).contiguous()


def _rows(values: Tensor, group: Group, places: Tensor, heads: int) -> Tensor:
    """(G x heads, repeats x L, D) of values (T, H, D) at places (G, L): heads that share keys stand together."""
    many, long = places.shape
    if many == 1 and group.real is None and group.lengths is None and not places.is_cuda:  # one stretch: a view
        taken = values[int(places[0, 0]) : int(places[0, -1]) + 1]
    else:
        taken = values.index_select(0, places.flatten())
    depth = values.shape[2]
    return taken.view(many, long, heads, -1, depth).permute(0, 2, 3, 1, 4).reshape(many * heads, -1, depth)


def _back(rows: Tensor, group: Group, places: Tensor, heads: int, into: Tensor, add: bool = False) -> None:
    """The inverse of `_rows`: put (or add, where stretches share keys) what is real into (T, H, D)."""
    many, long = places.shape
    flat = rows.view(many, heads, -1, long, rows.shape[-1]).permute(0, 3, 1, 2, 4)
    if many == 1 and group.real is None and group.lengths is None and not places.is_cuda:
        place = into[int(places[0, 0]) : int(places[0, -1]) + 1]
        shaped = flat.reshape(place.shape)
        place.add_(shaped) if add else place.copy_(shaped)
        return
    flat, index = flat.reshape(many * long, *into.shape[1:]), places.flatten()
    if add:
        into.index_add_(0, index, flat)  # what is masked adds 0
    elif group.real is None:
        into.index_copy_(0, index, flat)
    else:
        into.index_copy_(0, index[group.real], flat[group.real])


def _apart(bias: Tensor, group: Group) -> Tensor:
    """(H, Q, K) of a bias of distances (1, H, 1, 2N - 1)."""
    long, wide = group.query.shape[1], group.key.shape[1]
    first = bias.shape[-1] // 2 - group.offset  # of query 0 and key 0; a query later it begins one place before
    return bias[0, :, 0].unfold(1, wide, 1)[:, first - long + 1 : first + 1].flip(1)


def _apart_back(gradient: Tensor, bias: Tensor, group: Group) -> Tensor:
    """The gradient of a bias of distances, in float32 at least, from that of a group's scores (G x H, Q, K)."""
    exact = torch.promote_types(bias.dtype, torch.float32)
    summed = gradient.view(len(group.query), bias.shape[1], group.query.shape[1], -1).sum(0, dtype=exact)
    with torch.enable_grad():
        told = bias.detach().to(exact).requires_grad_()
        return torch.autograd.grad(_apart(told, group), told, summed)[0]


def _odds(
    q: Tensor,
    k: Tensor,
    bias: Tensor | None,
    spans: Spans,
    number: int,
    causal: bool,
    window: int | None,
    scale: float,
    logs: dict[int, Tensor],
) -> Tensor:
    """(N, repeats x Q, K) probabilities of queries (N, repeats x Q, D) over keys (N, K, D) of one group.

    logs: what the kernel keeps of each row by group, so that the second time costs one pass.
    """
    group = (spans.causal if causal else spans.free)[number]
    told = torch.bmm(q, k.transpose(1, 2))
    many, long, wide = len(group.query), group.query.shape[1], told.shape[2]
    heads = len(told) // many
    if bias is not None:
        told.view(many, -1, long, wide).add_(_apart(bias, group), alpha=1 / scale)
    if kernels.fits(told):
        known = number in logs
        log = logs.setdefault(number, torch.empty(told.shape[:2]))
        shape = many, heads, told.shape[1] // long, long, wide
        rest = group.lengths, group.offset, int(causal), window or 0, float(scale)
        kernels.call("softmax", told, log, int(known), *shape, *rest)
        return told
    told.mul_(scale)
    mask = spans.mask(number, causal, window, q.dtype)
    if mask is not None:
        parted = told.view(many, heads, -1, long, wide)
        parted += mask[:, None, None]
    return torch.softmax(told, -1)


def _odds_back(gradient: Tensor, odds: Tensor, scale: float) -> Tensor:
    """The gradient of the scores before scaling, from that of the probabilities; in its memory where that can be."""
    if kernels.fits(gradient, odds):
        kernels.call("softmax_back", gradient, odds, gradient.numel() // gradient.shape[-1], gradient.shape[-1], scale)
        return gradient
    return torch._softmax_backward_data(gradient, odds, -1, odds.dtype).mul_(scale)


class _Packed(torch.autograd.Function):
    """Exact attention of every group; keeps q, k, v only and computes the probabilities again on the way back.

    bias: of distances, added to the scores (T5), or None.  dropout: share of the probabilities that is hidden.
    """

    @staticmethod
    def forward(
        context: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        spans: Spans,
        causal: bool,
        window: int | None,
        scale: float,
        dropout: float,
    ) -> Tensor:
        context.save_for_backward(q, k, v, bias)
        logs: dict[int, Tensor] = {}
        shown: dict[int, Tensor] = {}
        context.told = spans, causal, window, scale, dropout, logs, shown
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        heads = k.shape[1]
        for number, group in enumerate(spans.causal if causal else spans.free):
            rows = _rows(q, group, group.query, heads), _rows(k, group, group.key, heads)
            odds = _odds(*rows, bias, spans, number, causal, window, scale, logs)
            if dropout:
                shown[number] = torch.empty_like(odds, dtype=torch.bool).bernoulli_(1 - dropout)
                odds.mul_(shown[number]).div_(1 - dropout)
            _back(torch.bmm(odds, _rows(v, group, group.key, heads)), group, group.query, heads, out)
        return out

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        q, k, v, bias = context.saved_tensors
        spans, causal, window, scale, dropout, logs, shown = context.told
        heads = k.shape[1]
        groups = spans.causal if causal else spans.free
        dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        dk, dv = (torch.zeros(k.shape, dtype=k.dtype, device=k.device) for _ in "kv")
        dbias = 0.0 if context.needs_input_grad[3] else None
        for number, group in enumerate(groups):
            rows, keys = _rows(q, group, group.query, heads), _rows(k, group, group.key, heads)
            odds = _odds(rows, keys, bias, spans, number, causal, window, scale, logs)
            back = _rows(gradient, group, group.query, heads)
            if group.real is not None:  # queries past the end teach nothing
                back = back.view(len(group.query), -1, group.query.shape[1], back.shape[-1])
                back = back * _real(group, back.dtype)
                back = back.view(len(rows), -1, back.shape[-1])
            seen = odds.mul(shown[number]).div_(1 - dropout) if dropout else odds
            _back(torch.bmm(seen.transpose(1, 2), back), group, group.key, heads, dv, add=True)
            inner = torch.bmm(back, _rows(v, group, group.key, heads).transpose(1, 2))
            if dropout:
                inner.mul_(shown[number]).div_(1 - dropout)
            inner = _odds_back(inner, odds, float(scale))
            if dbias is not None:
                dbias = dbias + _apart_back(inner, bias, group)
            _back(torch.bmm(inner, keys), group, group.query, heads, dq)
            _back(torch.bmm(inner.transpose(1, 2), rows), group, group.key, heads, dk, add=True)
        of_bias = None if dbias is None else (dbias / scale).to(bias.dtype)
        return dq, dk, dv, of_bias, None, None, None, None, None


def _real(group: Group, dtype: torch.dtype) -> Tensor:
    """(G, 1, Q, 1) 1 at real queries, 0 past a document's end."""
    assert group.real is not None
    told = torch.zeros(group.query.numel(), dtype=dtype, device=group.query.device)
    told[group.real] = 1
    return told.view(len(group.query), 1, -1, 1)


def _softcapped(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spans: Spans,
    causal: bool,
    window: int | None,
    scale: float,
    dropout: float,
    softcap: float,
) -> Tensor:
    """The same through autograd, with a soft cap on the scores (Gemma 2)."""
    parts, places = [], []
    heads = k.shape[1]
    for number, group in enumerate(spans.causal if causal else spans.free):
        mask = spans.mask(number, causal, window, q.dtype)
        rows, keys = _rows(q, group, group.query, heads), _rows(k, group, group.key, heads)
        told = softcap * torch.tanh(torch.bmm(rows, keys.transpose(1, 2)) * scale / softcap)
        many, long = group.query.shape
        if mask is not None:
            told = told.view(many, heads, -1, long, told.shape[-1]) + mask[:, None, None]
        odds = nn.functional.dropout(torch.softmax(told, -1), dropout).view(len(rows), -1, told.shape[-1])
        out = torch.bmm(odds, _rows(v, group, group.key, heads))
        out = out.view(many, heads, -1, long, out.shape[-1]).permute(0, 3, 1, 2, 4).reshape(many * long, *q.shape[1:])
        real = slice(None) if group.real is None else group.real
        parts.append(out[real])
        places.append(group.query.flatten()[real])
    return torch.zeros_like(q).index_copy(0, torch.cat(places), torch.cat(parts))


_unmasked = ContextVar("_unmasked", default=False)


@contextmanager
def unmasked() -> Iterator[None]:
    """Within it transformers builds no mask: a pack's Layout says what sees what."""
    token = _unmasked.set(True)
    try:
        yield
    finally:
        _unmasked.reset(token)


def _mask(*told: Any, **named: Any) -> Tensor | None:
    return None if _unmasked.get() else sdpa_mask(*told, **named)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, _mask)
