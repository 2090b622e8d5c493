"""Attention by tiles: values and gradients of the plain formula, whatever the neighbours and the number of threads."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from burnish.models import tiled
from burnish.models.layout import Spans

pytestmark = pytest.mark.skipif(not tiled._able(), reason="no C++ compiler, or no AVX-512 BF16")
TYPE = torch.bfloat16
CASES: dict[str, dict[str, Any]] = {
    "one token": {"queries": (1,)},
    "around a tile and around sixteen": {"queries": (35, 36, 37, 15, 16, 17)},
    "a long document": {"queries": (600, 3)},
    "shared heads": {"queries": (70, 20), "heads": 6, "shared": 2, "depth": 48},
    "seen both ways": {"queries": (70, 20), "causal": False},
    "a window": {"queries": (90, 4), "window": 20},
    "another's keys": {"queries": (3, 40), "keys": (50, 7), "causal": False},
    "keys in front": {"queries": (20, 30), "keys": (60, 30)},
    "a document without a query": {"queries": (20, 0, 9), "keys": (20, 0, 9)},
    "large scores": {"queries": (50,), "large": 30.0},
}


def parts(
    queries: tuple[int, ...],
    keys: tuple[int, ...] = (),
    heads: int = 4,
    shared: int = 4,
    depth: int = 32,
    causal: bool = True,
    window: int | None = None,
    large: float = 1.0,
) -> tuple[list[Tensor], tuple[Any, ...]]:
    draw = torch.Generator().manual_seed(0)
    ends = [[0, *torch.tensor(sizes).cumsum(0).tolist()] for sizes in (queries, keys or queries)]
    shapes = (ends[0][-1], heads, depth), *[(ends[1][-1], shared, depth)] * 2
    values = [torch.randn(shape, generator=draw) for shape in shapes]
    values[0] *= large
    return [value.to(TYPE).requires_grad_() for value in values], (Spans(*ends, torch.device("cpu")), causal, window)


def plain(q: Tensor, k: Tensor, v: Tensor, spans: Spans, causal: bool, window: int | None, scale: float) -> Tensor:
    repeats, rows = q.shape[1] // k.shape[1], []
    for (a, b), (c, d) in zip(pairwise(spans.queries), pairwise(spans.keys), strict=True):
        if a == b:
            continue
        scores = scale * torch.einsum("qhd,khd->hqk", q[a:b], k[c:d].repeat_interleave(repeats, 1))
        apart = torch.arange(d - c) - torch.arange(b - a)[:, None] - (d - c - b + a) * causal
        hidden = (apart > 0) & causal
        if window:
            hidden |= apart <= -window
        odds = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        rows.append(torch.einsum("hqk,khd->qhd", odds, v[c:d].repeat_interleave(repeats, 1)))
    return torch.cat(rows)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values_and_gradients_are_those_of_the_plain_formula(case: dict[str, Any]) -> None:
    values, rest = parts(**case)
    told = tiled.Tiled.apply(*values, *rest, 0.2)
    exact = [value.detach().double().requires_grad_() for value in values]
    wanted = plain(*exact, *rest, 0.2)
    weights = torch.randn(told.shape, generator=torch.Generator().manual_seed(1)).to(TYPE)
    own = torch.autograd.grad(told, values, weights)
    theirs = torch.autograd.grad(wanted, exact, weights.double())
    for mine, other in zip((told, *own), (wanted, *theirs), strict=True):
        # bfloat16 keeps 8 bits, so a rounding is up to 2^-9; the gradients are rounded three times on their way
        mine, other = mine.detach(), other.detach()
        assert float((mine - other).norm()) <= 2**-7 * float(other.norm()) + 1e-12
        assert torch.isfinite(mine).all()


def test_a_document_is_blind_to_its_neighbours() -> None:
    values, rest = parts((40, 33, 20))
    before = tiled.Tiled.apply(*values, *rest, 0.2)
    with torch.no_grad():
        for value in values:
            value[40:73] = torch.inf
    after = tiled.Tiled.apply(*values, *rest, 0.2)
    assert torch.equal(before[:40], after[:40])
    assert torch.equal(before[73:], after[73:])


def test_any_number_of_threads_gives_the_same_bits() -> None:
    values, rest = parts((90, 12, 300), shared=2)
    told = []
    was = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            out = tiled.Tiled.apply(*values, *rest, 0.2)
            told.append((out, *torch.autograd.grad(out.sum(), values)))
    finally:
        torch.set_num_threads(was)
    assert all(torch.equal(a, b) for a, b in zip(*told, strict=True))


def test_what_it_cannot_do_is_left_to_others() -> None:
    (q, k, v), _ = parts((5,))
    assert tiled.fits(q, k, v)
    assert not tiled.fits(q.float(), k.float(), v.float())
    assert not tiled.fits(*(part[..., :24] for part in (q, k, v)))
    assert not tiled.fits(q, k, v[..., :16])
