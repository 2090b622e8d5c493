"""Attention inside documents: learned bias and dropout as in the plain formula, and no (T, T) table."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from burnish.models.attention import _Packed
from burnish.models.layout import Spans
from burnish.tokens.batch import join

SIZES = (3, 70, 290, 5)  # of documents: two that share a product, one over a block of queries


def parts(sizes: tuple[int, ...], heads: int = 2, shared: int = 1) -> tuple[list[Tensor], Spans]:
    draw = torch.Generator().manual_seed(0)
    ends = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    spans = Spans(ends, ends, torch.device("cpu"))
    shapes = [(ends[-1], heads, 4), *[(ends[-1], shared, 4)] * 2, (1, heads, 1, 2 * spans.longest - 1)]
    return [torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_() for shape in shapes], spans


@pytest.mark.parametrize("causal", [False, True])
def test_a_bias_of_distances_is_added_to_the_scores(causal: bool) -> None:
    (q, k, v, bias), spans = parts(SIZES)
    told = _Packed.apply(q, k, v, bias, spans, causal, None, 0.7, 0.0)
    rows = []
    for a, b in pairwise(spans.queries):
        steps = torch.arange(b - a)
        apart = steps - steps[:, None]
        scores = 0.7 * torch.einsum("qhd,kd->hqk", q[a:b], k[a:b, 0]) + bias[0, :, 0][:, apart + spans.longest - 1]
        scores = scores.masked_fill((apart > 0) & causal, -torch.inf)
        rows.append(torch.einsum("hqk,kd->qhd", scores.softmax(-1), v[a:b, 0]))
    wanted = torch.cat(rows)
    torch.testing.assert_close(told, wanted, rtol=1e-10, atol=1e-10)
    weights = torch.randn_like(wanted)
    own, other = (torch.autograd.grad((out * weights).sum(), (q, k, v, bias)) for out in (told, wanted))
    for mine, theirs in zip(own, other, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_dropout_hides_a_share_and_its_gradient_sees_the_same_share() -> None:
    (q, k, v, bias), spans = parts((3, 5), 2, 2)

    def attend(*told: Tensor) -> Tensor:
        torch.manual_seed(3)
        return _Packed.apply(*told, spans, False, None, 0.7, 0.5)

    assert torch.autograd.gradcheck(attend, (q, k, v, bias))
    told = torch.stack([_Packed.apply(q, k, v, bias, spans, False, None, 0.7, 0.5) for _ in range(4000)]).mean(0)
    whole = _Packed.apply(q, k, v, bias, spans, False, None, 0.7, 0.0)
    torch.testing.assert_close(told, whole, rtol=0, atol=0.1)  # five deviations of a mean of 4,000


class Largest(TorchDispatchMode):
    """Notes the largest result of any operation."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and func not in (torch.ops.aten.zeros.default, torch.ops.aten.detach.default):
            self.most = max(self.most, out.numel())
        return out


def test_a_pack_of_t5_makes_no_table_of_all_its_tokens(tmp_path_factory: pytest.TempPathFactory) -> None:
    model = tiny.model("t5", "language", tmp_path_factory, dropout=0.1).train()
    batch = join(tiny.rows("t5", "answers", tmp_path_factory, lengths=(20,) * 30))
    with Largest() as seen:
        model(batch).logits.sum().backward()
    assert 10 * seen.most < 4 * 600 * 600
