"""Attention by a GPU's kernels: which is taken, what it is told, and flex attention's mask for real."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pretend
import pytest
import torch
from torch import Tensor, nn

from burnish.models import flash
from burnish.models.attention import _Packed
from burnish.models.layout import Spans

OWN, BEFORE = (3, 70, 20, 1), (3, 75, 160, 2)  # queries of documents; their keys, where some stand in front
CASES = pytest.mark.parametrize(
    ("keys", "causal", "window"),
    [
        (OWN, True, None),
        (OWN, True, 7),
        (OWN, False, None),
        (BEFORE, True, None),
        (BEFORE, True, 5),
        (BEFORE, False, None),
    ],
    ids=str,
)
DEPTH = 16


def ends(sizes: tuple[int, ...]) -> list[int]:
    return [0, *torch.tensor(sizes).cumsum(0).tolist()]


def drawn(keys: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Spans]:
    """Queries of four heads, keys and values of two, and where documents end."""
    draw = torch.Generator().manual_seed(0)
    shapes = (sum(OWN), 4, DEPTH), *[(sum(keys), 2, DEPTH)] * 2
    values = [torch.randn(shape, generator=draw).to(dtype).requires_grad_() for shape in shapes]
    return values, Spans(ends(OWN), ends(keys), torch.device("cpu"))


def alike(mine: Tensor, theirs: Tensor, values: list[Tensor], room: float = 1e-5) -> None:
    """Value and gradients."""
    back = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1)).to(theirs.dtype)
    pairs = zip(*(torch.autograd.grad(out, values, back) for out in (mine, theirs)), strict=True)
    for a, b in ((mine, theirs), *pairs):
        torch.testing.assert_close(a, b, rtol=room, atol=room)


def masked(
    q: Tensor, k: Tensor, v: Tensor, sums: tuple[Tensor, Tensor], sides: tuple[int, int], scale: float
) -> Tensor:
    """What flash attention's documentation says of windows and running sums, with one (T, S) mask."""
    told = []
    for part in sums:
        assert part.dtype == torch.int32
        sizes = part.diff()
        document = torch.arange(len(sizes)).repeat_interleave(sizes)
        told.append((document, torch.arange(len(document)) - part[document], sizes[document]))
    (own, place, many), (other, step, wide) = told[0], told[1]
    places = (place - many)[:, None] + wide[None]  # the last query stands at the last key
    seen = own[:, None] == other[None]
    if sides[1] >= 0:
        seen = seen & (step[None] <= places + sides[1])
    if sides[0] >= 0:
        seen = seen & (step[None] >= places - sides[0])
    rows = (part.transpose(0, 1)[None] for part in (q, k, v))
    out = nn.functional.scaled_dot_product_attention(*rows, attn_mask=seen, scale=scale, enable_gqa=True)
    return out[0].transpose(0, 1)


def of_torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] | None = None,
    enable_gqa: bool = False,
    is_causal: bool = False,
) -> Tensor:
    """torch.nn.attention.varlen.varlen_attn of any release, on the CPU."""
    assert (max_q, max_k) == (int(cu_seq_q.diff().max()), int(cu_seq_k.diff().max()))
    assert enable_gqa or q.shape[1] == k.shape[1]
    sides = window_size or ((-1, 0) if is_causal else (-1, -1))
    return masked(q, k, v, (cu_seq_q, cu_seq_k), sides, DEPTH**-0.5 if scale is None else scale)


KNOWN = {  # the parameters that a release's varlen_attn has
    "2.10": frozenset({"is_causal"}),
    "2.11": frozenset({"scale", "window_size"}),
    "2.12": frozenset({"scale", "window_size", "enable_gqa"}),
}


@pytest.mark.parametrize("release", KNOWN)
@CASES
def test_pytorchs_kernel_is_told_the_layout(keys: Any, causal: bool, window: Any, release: str) -> None:
    values, spans = drawn(keys)
    way = partial(flash.by_torch, of_torch, KNOWN[release])
    if window is not None and release == "2.10":
        with pytest.raises(NotImplementedError):
            way(*values, spans, causal, window, DEPTH**-0.5)
        return
    alike(
        way(*values, spans, causal, window, DEPTH**-0.5),
        _Packed.apply(*values, None, spans, causal, window, DEPTH**-0.5, 0.0),
        values,
    )
    assert spans.sums is spans.sums  # once for all layers


def test_a_scale_that_the_kernel_does_not_know_is_refused() -> None:
    values, spans = drawn(OWN)
    with pytest.raises(NotImplementedError):
        flash.by_torch(of_torch, KNOWN["2.10"], *values, spans, True, None, 0.3)


@CASES
def test_flash_attns_kernel_is_told_the_layout(keys: Any, causal: bool, window: Any) -> None:
    values, spans = drawn(keys)

    def kernel(
        q: Tensor, k: Tensor, v: Tensor, *told: Any, softmax_scale: float, causal: bool, window_size: Any
    ) -> Any:
        sides = (window_size[0], 0) if causal else window_size
        assert window_size[1] == (0 if causal else -1)
        return masked(q, k, v, told[:2], sides, softmax_scale)

    alike(
        flash.by_dao(kernel, *values, spans, causal, window, 0.3),
        _Packed.apply(*values, None, spans, causal, window, 0.3, 0.0),
        values,
    )


@CASES
def test_flex_attention_sees_each_document_alone(keys: Any, causal: bool, window: Any) -> None:
    """The kernel itself, uncompiled; on a CPU it has no backward pass."""
    from torch.nn.attention.flex_attention import flex_attention

    values, spans = drawn(keys)
    values = [value.detach() for value in values]
    told = flash.by_flex(flex_attention, *values, spans, causal, window, 0.3)
    wanted = _Packed.apply(*values, None, spans, causal, window, 0.3, 0.0)
    torch.testing.assert_close(told, wanted, rtol=1e-5, atol=1e-5)
    assert ("flex", causal, window) in spans.masks  # made once for all layers


@CASES
def test_what_kernels_are_held_against(keys: Any, causal: bool, window: Any) -> None:
    values, spans = drawn(keys)
    alike(
        flash.plain(*values, spans, causal, window, 0.3),
        _Packed.apply(*values, None, spans, causal, window, 0.3, 0.0),
        values,
    )


@pytest.fixture
def gpu() -> Iterator[pretend.Gpu]:
    flash.found_for.cache_clear()
    with pretend.cuda() as made:
        yield made
    flash.found_for.cache_clear()


def named(dtype: torch.dtype = torch.bfloat16, depth: int = DEPTH, window: int | None = None) -> str | None:
    """Which way is taken on the device."""
    told = flash.found_for(pretend.DEVICE, dtype, depth, 2, True, window is not None, True)
    return told and told[0]


def absent() -> Any:
    raise ImportError("no module named flash_attn")


def test_the_first_that_proves_itself_is_taken(gpu: pretend.Gpu, monkeypatch: Any) -> None:
    def wrong(*told: Any) -> Tensor:
        return 1.1 * flash.plain(*told)

    def leaks(q: Tensor, k: Tensor, v: Tensor, spans: Spans, *rest: Any) -> Tensor:
        whole = Spans((0, spans.queries[-1]), (0, spans.keys[-1]), spans.device)
        return flash.plain(q, k, v, whole, *rest)

    def no_windows(q: Tensor, k: Tensor, v: Tensor, spans: Spans, causal: bool, window: Any, scale: float) -> Tensor:
        assert window is None
        return flash.plain(q, k, v, spans, causal, window, scale)

    ways = [("absent", absent), ("wrong", lambda: wrong), ("leaks", lambda: leaks)]
    ways += [("no windows", lambda: no_windows), ("all", lambda: flash.plain)]
    monkeypatch.setattr(flash, "WAYS", ways)
    assert (named(), named(window=3)) == ("no windows", "all")
    monkeypatch.setattr(flash, "WAYS", ways[:3])
    flash.found_for.cache_clear()
    assert named() is None


def test_only_half_types_of_known_head_sizes_go_to_a_kernel(gpu: pretend.Gpu, monkeypatch: Any) -> None:
    monkeypatch.setattr(flash, "WAYS", [("all", lambda: flash.plain)])

    def taken(dtype: torch.dtype, depth: int, of_value: int = 0, there: bool = True) -> bool:
        sizes = (depth, depth, of_value or depth)
        values = [torch.zeros(3, 2, size, dtype=dtype) for size in sizes]
        values = [value.to("cuda") for value in values] if there else values
        return flash.chosen(*values, True, None, depth**-0.5) is not None

    assert taken(torch.bfloat16, 64)
    assert taken(torch.float16, 256)
    refused = [(torch.float32, 64), (torch.bfloat16, 20), (torch.bfloat16, 264), (torch.bfloat16, 64, 32)]
    assert not any(taken(*told) for told in refused)
    assert not taken(torch.bfloat16, 64, there=False)
