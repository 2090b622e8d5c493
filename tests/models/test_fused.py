"""Fused steps are the plain formulas: value and gradient, with the compiled kernels and without them."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from burnish.models import attention, fused, kernels, quicken
from burnish.models.layout import Spans
from burnish.tokens.batch import filled, join
from burnish.train.optim import Masters

WAYS = pytest.mark.parametrize("compiled", [True, False], ids=["kernels", "pytorch"])
# float32: sums in another order.  bfloat16: 8 bits, rounded once where PyTorch rounds between its steps.
ROOM = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2}
DTYPES = pytest.mark.parametrize("dtype", list(ROOM), ids=["float64", "float32", "bfloat16"])


@pytest.fixture
def way(compiled: bool, monkeypatch: Any) -> bool:
    """With the kernels, or as on a machine without a compiler."""
    if not compiled:
        monkeypatch.setattr(kernels, "compiled", lambda: None)
    elif kernels.compiled() is None:
        pytest.skip("no C++ compiler here")
    return compiled


def close(mine: Tensor, theirs: Tensor, dtype: torch.dtype) -> None:
    most = float(theirs.detach().double().abs().max())
    torch.testing.assert_close(mine.double(), theirs.double(), rtol=0, atol=ROOM[dtype] * max(most, 1e-3))


def both(mine: Any, theirs: Any, dtype: torch.dtype, *values: Tensor) -> None:
    """The same output and the same gradient of every value, theirs in double."""
    ours = [value.to(dtype).clone().requires_grad_() for value in values]
    exact = [value.detach().double().requires_grad_() for value in ours]
    out, wanted = mine(*ours), theirs(*exact)
    close(out, wanted, dtype)
    back = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    out.backward(back.to(out.dtype))
    wanted.backward(back.double())
    for one, other in zip(ours, exact, strict=True):
        close(one.grad, other.grad, dtype)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@WAYS
@DTYPES
@pytest.mark.parametrize("shape", [(1, 3), (3, 7), (2, 5, 64), (70, 576)])
def test_rms_norm(shape: tuple[int, ...], dtype: torch.dtype, way: bool) -> None:
    both(
        lambda x, w: fused.Norm.apply(x, w, 1e-5),
        lambda x, w: nn.functional.rms_norm(x, (shape[-1],), w, 1e-5),
        dtype,
        draw(*shape),
        draw(shape[-1], seed=2),
    )


@WAYS
@DTYPES
def test_gated(dtype: torch.dtype, way: bool) -> None:
    both(fused.Gated.apply, lambda a, b: nn.functional.silu(a) * b, dtype, 5 * draw(33, 65), draw(33, 65, seed=3))


@WAYS
@DTYPES
def test_turned(dtype: torch.dtype, way: bool) -> None:
    angles = draw(11, 8, seed=4).repeat(1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)

    def plain(x: Tensor) -> Tensor:
        half = torch.cat((-x[..., 8:], x[..., :8]), -1)
        return x * cos[:, None].double() + half * sin[:, None].double()

    both(
        lambda *given: torch.cat(fused.Turned.apply(*given, cos, sin), 1),
        lambda *given: torch.cat([plain(part) for part in given], 1),
        dtype,
        *(draw(11, 3, 16), draw(11, 1, 16, seed=8)),
    )


@WAYS
@DTYPES
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_linear_cross_entropy(smoothing: float, dtype: torch.dtype, way: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr(fused, "TRAINED", 300)  # several chunks, the last one smaller
    targets, weights = torch.arange(17) * 5 % 97, draw(17, seed=5).abs()
    weights[3] = 0

    def plain(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        told = nn.functional.cross_entropy(
            nn.functional.linear(hidden, weight, bias), targets, reduction="none", label_smoothing=smoothing
        )
        return (told * weights.double()).sum()

    both(
        lambda h, w, b: fused.linear_cross_entropy(h, w, b, targets, weights, smoothing),
        plain,
        dtype,
        draw(17, 12),
        draw(97, 12, seed=6),
        draw(97, seed=7),
    )


@WAYS
def test_a_non_finite_logit_is_not_hidden(way: bool) -> None:
    for value in (float("nan"), float("inf")):
        hidden = torch.ones(2, 3)
        hidden[1, 1] = value
        loss = fused.linear_cross_entropy(hidden, torch.ones(5, 3), None, torch.tensor([0, 1]), torch.ones(2))
        assert not loss.isfinite()


def reference(
    q: Tensor, k: Tensor, v: Tensor, own: list[int], seen: list[int], causal: bool, window: int | None
) -> Tensor:
    """Attention of each document by itself, as PyTorch has it."""
    parts = []
    for a, b, c, d in zip(own, own[1:], seen, seen[1:], strict=False):
        mask = torch.ones(b - a, d - c, dtype=torch.bool)
        if causal:
            mask = mask.tril()
        if window:
            mask &= torch.ones_like(mask).triu(1 - window)
        rows = [part.transpose(0, 1)[None] for part in (q[a:b], k[c:d], v[c:d])]
        parts.append(nn.functional.scaled_dot_product_attention(*rows, attn_mask=mask, scale=0.3, enable_gqa=True))
    return torch.cat([part[0].transpose(0, 1) for part in parts])


@WAYS
@DTYPES
@pytest.mark.parametrize(
    ("own", "seen", "causal", "window"),
    [
        ([1, 4, 3, 4, 9], None, True, None),
        ([1, 4, 3, 4, 9], None, True, 3),
        ([5, 5, 5], None, False, None),
        ([2, 7, 1, 6], [3, 1, 8, 2], False, None),
        ([300, 5, 290], None, True, None),
        ([300, 5, 290], None, True, 40),
        ([300, 5], None, False, None),
    ],
    ids=str,
)
def test_packed_attention(own: list[int], seen: Any, causal: bool, window: Any, dtype: torch.dtype, way: bool) -> None:
    ends = [[0, *torch.tensor(part).cumsum(0).tolist()] for part in (own, seen or own)]
    spans = Spans(*ends, torch.device("cpu"))
    values = draw(ends[0][-1], 4, 8), draw(ends[1][-1], 2, 8, seed=1), draw(ends[1][-1], 2, 8, seed=2)
    both(
        lambda q, k, v: attention._Packed.apply(q, k, v, None, spans, causal, window, 0.3, 0.0),
        lambda q, k, v: reference(q, k, v, *ends, causal, window),
        dtype,
        *values,
    )
    capped = attention._softcapped(*values, spans, causal, window, 0.3, 0.0, 1e4)  # so wide that it caps nothing
    torch.testing.assert_close(capped, reference(*values, *ends, causal, window), rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=30), causal=st.booleans())
def test_every_query_is_answered_once(sizes: list[int], causal: bool) -> None:
    ends = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    spans = Spans(ends, ends, torch.device("cpu"))
    found = []
    for group in spans.causal if causal else spans.free:
        flat = group.query.flatten()
        found += (flat if group.real is None else flat[group.real]).tolist()
    assert sorted(found) == list(range(ends[-1]))


TAKEN = {
    "llama": {"norm": 5, "gated": 2, "gelu": 0, "attention": 2},
    "gpt2": {"norm": 0, "gated": 0, "gelu": 2, "attention": 0},
    "t5": {"norm": 12, "gated": 0, "gelu": 0, "attention": 0},
}


@pytest.mark.parametrize("kind", TAKEN)
def test_a_model_trains_by_the_fused_steps(kind: str, tmp_path_factory: Any) -> None:
    """Loss and gradients equal those of the plain modules to float32 rounding, and all its modules are taken."""
    rows = join(tiny.rows(kind, "answers", tmp_path_factory))
    plain, quick = (tiny.model(kind, "language", tmp_path_factory) for _ in "ab")
    assert quicken.install(quick.hf) == TAKEN[kind]
    theirs, mine = (tiny.gradient(model, "sft", [rows]) for model in (plain, quick))
    most = max(float(value.abs().max()) for value in theirs.values())
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=0, atol=2e-6 * most, msg=lambda m, n=name: f"{n} {m}")


def test_what_computes_otherwise_is_left_alone() -> None:
    """Gemma's norm multiplies by 1 + weight; its gated layer has another activation."""
    from transformers.models.gemma.modeling_gemma import GemmaConfig, GemmaMLP, GemmaRMSNorm

    norm = GemmaRMSNorm(8)
    nn.init.normal_(norm.weight)
    inner = GemmaMLP(GemmaConfig(hidden_size=8, intermediate_size=12, hidden_act="gelu_pytorch_tanh"))
    assert quicken.install(nn.ModuleList([norm, inner])) == {"norm": 0, "gated": 0, "gelu": 0, "attention": 0}


@pytest.mark.parametrize(
    ("kind", "head", "target"),
    [("llama", "language", "answers"), ("bart", "language", "answers"), ("bert", "classes", "classes")],
)
def test_a_filled_pack_says_the_same(kind: str, head: str, target: str, tmp_path_factory: Any) -> None:
    """Padding at the end of a pack, which bfloat16 wants for round sizes, changes nothing (float32: 1e-6)."""
    model = tiny.model(kind, head, tmp_path_factory).eval()
    pack = join(tiny.rows(kind, target, tmp_path_factory))
    more = filled(pack, pack.ends[-1] + 7, pack.source_ends[-1] + 5 if pack.source_ends else 0)
    assert (more.rows, more.tokens) == (pack.rows, pack.tokens)
    with torch.no_grad():
        torch.testing.assert_close(model(more).logits, model(pack).logits, rtol=1e-6, atol=1e-6)


def test_bfloat16_packs_come_in_round_sizes(tmp_path_factory: Any) -> None:
    model = tiny.model("llama", "language", tmp_path_factory)
    pack = join(tiny.rows("llama", "answers", tmp_path_factory))
    assert pack.ends[-1] % 64
    assert model.even(pack) is pack
    assert model.to(torch.bfloat16).even(pack).ids.shape[1] % 64 == 0


@pytest.mark.parametrize("rung", ["lora", "partial", "prompt-tuning", "qlora"])
def test_whatever_is_trained_packs_come_in_round_sizes(rung: str, tmp_path_factory: Any) -> None:
    """An adapter stays in float32 and may stand before all weights: soft prompts had every length compiled anew."""
    model = tiny.model("llama", "language", tmp_path_factory, adapter=rung)
    Masters(model.hf, model.trainable(), torch.bfloat16)
    pack = join(tiny.rows("llama", "answers", tmp_path_factory))
    assert model.even(pack).ids.shape[1] % 64 == 0
