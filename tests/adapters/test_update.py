"""LoRA's own gradient is autograd's, whatever the layer, type or use; and it keeps less."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from burnish.adapters._lora import LoraLinear, frozen

IN, OUT, RANK = 12, 10, 3


class Linear4(nn.Module):
    """What a quantised layer offers: its weight only when asked for, and counted."""

    def __init__(self):
        super().__init__()
        self.in_features, self.out_features, self.asked = IN, OUT, 0
        self.register_buffer("kept", torch.randn(OUT, IN))
        self.bias = None

    def dequantized(self, dtype):
        self.asked += 1
        return self.kept.to(dtype)

    def forward(self, x):
        return x @ self.dequantized(x.dtype).T


BASES = {
    "linear": lambda: nn.Linear(IN, OUT, bias=False),
    "bias": lambda: nn.Linear(IN, OUT),
    "conv1d": lambda: Conv1D(OUT, IN),
    "quantised": Linear4,
}
EVERY = pytest.mark.parametrize("base", BASES)


def layer(base="bias", dropout=0.0, **settings):
    """An adapted layer whose B is not 0, which would hide errors in A's gradient."""
    torch.manual_seed(0)
    made = LoraLinear(BASES[base]().requires_grad_(False), RANK, 6.0, dropout, **settings)
    with torch.no_grad():
        made.lora_B.normal_()
        if made.lora_magnitude_vector is not None:
            made.lora_magnitude_vector.mul_(torch.rand(OUT) + 0.5)
    return made


def plain(made, x, mask=1.0):
    """The same by autograd alone, from the formulas of the papers; mask: what dropout did to the update's input."""
    kind = x.dtype
    weight, a, b = frozen(made.base_layer, kind), made.lora_A.to(kind), made.lora_B.to(kind)
    out = x @ weight.T + (x * mask) @ a.T @ b.T * made.scale
    if made.use_dora:
        length = (weight + made.scale * b @ a).norm(dim=1).detach()
        out = out * made.lora_magnitude_vector / length
    return out if made.bias is None else out + made.bias.to(kind)


def gradients(out, made, x):
    """Of a loss in which every output counts differently."""
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    wanted = [value for value in (x, *made.parameters()) if value.requires_grad]
    return [out, *torch.autograd.grad((out * weights).sum(), wanted)]


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}])
@EVERY
def test_gradients_are_those_of_finite_differences_and_of_autograd(base, settings):
    made = layer(base, **settings).double()
    x = torch.randn(2, 4, IN, dtype=torch.float64, requires_grad=True)
    if not settings.get("use_dora"):  # whose length has no gradient by design
        tuned = (made.lora_A, made.lora_B)
        assert torch.autograd.gradcheck(lambda x, *_: made(x), (x, *tuned))
    for ours, wanted in zip(gradients(made(x), made, x), gradients(plain(made, x), made, x), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-10)


@EVERY
def test_no_gradient_reaches_the_frozen_weight(base):
    made = layer(base)
    made(torch.randn(4, IN)).sum().backward()  # x needs none, A and B have theirs
    assert all(value.grad is None for value in made.base_layer.parameters())
    assert all(value.grad.abs().sum() > 0 for value in (made.lora_A, made.lora_B))


@EVERY
def test_a_small_update_is_never_rounded_away(base):
    """In bf16 arithmetic A and B stay float32 and so do their gradients; off by a few roundings of 2^-9."""
    made = layer(base)
    x = torch.randn(64, IN).bfloat16().requires_grad_()
    out = made(x)
    assert out.dtype == torch.bfloat16
    exact = x.detach().double().requires_grad_()
    found = gradients(out, made, x)
    wanted = gradients(plain(made.double(), exact), made, exact)
    assert [value.dtype for value in found] == [torch.bfloat16] * 2 + [torch.float32] * 2
    for ours, value in zip(found, wanted, strict=True):
        assert (ours.double() - value).norm() < 2**-6 * value.norm()


@EVERY
def test_under_autocast_the_input_keeps_its_type(base):
    made = layer(base)
    x = torch.randn(5, IN, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = made(x)
    assert out.dtype == torch.bfloat16
    found = gradients(out, made, x)
    assert [value.dtype for value in found[1:]] == [torch.float32] * 3
    wanted = gradients(plain(made, x), made, x)
    for ours, value in zip(found, wanted, strict=True):
        assert (ours - value).norm() < 2**-6 * value.norm()


def test_dropout_hides_the_updates_input_alone():
    made = layer(dropout=0.5).double()
    x = torch.randn(50, IN, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(7)
    out = made(x)
    torch.manual_seed(7)
    mask = torch.native_dropout(torch.ones_like(x), 0.5, True)[0]
    for ours, wanted in zip(gradients(out, made, x), gradients(plain(made, x, mask), made, x), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(made.eval()(x), plain(made, x))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_changes_nothing(dropout):
    made = layer(dropout=dropout)
    x = torch.randn(6, IN, requires_grad=True)
    told = []
    for run in (made, lambda x: checkpoint(made, x, use_reentrant=False)):
        torch.manual_seed(3)
        told.append(gradients(run(x), made, x))
    assert all(torch.equal(a, b) for a, b in zip(*told, strict=True))


def test_used_twice_in_one_forward():
    torch.manual_seed(0)
    made = LoraLinear(nn.Linear(IN, IN).requires_grad_(False), RANK, 6.0).double()
    nn.init.normal_(made.lora_B)
    x = torch.randn(6, IN, dtype=torch.float64, requires_grad=True)
    told = gradients(made(made(x)), made, x), gradients(plain(made, plain(made, x)), made, x)
    for ours, wanted in zip(*told, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-10)


def test_three_layers_that_read_one_input_keep_it_once():
    """Kept for backward: x, and for each layer (N, r), A and B; never a weight, never x again."""
    made = [layer() for _ in range(3)]
    x = torch.randn(100, IN, requires_grad=True)
    kept = {}

    def keep(value):
        kept[value.data_ptr()] = value.numel()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        outs = [each(x) for each in made]
    assert sum(kept.values()) == 100 * IN + 3 * (100 * RANK + RANK * IN + OUT * RANK)
    del outs


def test_a_quantised_weight_is_made_again_in_backward():
    made = layer("quantised")
    x = torch.randn(4, IN, requires_grad=True)
    out = made(x)
    assert made.base_layer.asked == 1
    out.sum().backward()
    assert made.base_layer.asked == 2


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}])
@EVERY
def test_merged_is_one_plain_weight(base, settings):
    made = layer(base, **settings).eval()
    x = torch.randn(7, IN)
    torch.testing.assert_close(nn.functional.linear(x, made.merged(), made.bias), made(x), rtol=1e-5, atol=1e-5)


def test_dora_begins_as_the_base_and_trains_lengths():
    torch.manual_seed(0)
    base = nn.Linear(IN, OUT)
    made, x = LoraLinear(base, RANK, 6.0, use_dora=True), torch.randn(5, IN)
    torch.testing.assert_close(made(x), base(x))
    with torch.no_grad():
        made.lora_magnitude_vector.mul_(2)
    torch.testing.assert_close(made(x) - base.bias, 2 * (base(x) - base.bias))


@pytest.mark.parametrize("evaluating", [True, False])
def test_dora_notices_that_its_update_moved(evaluating):
    """The lengths are settled once while evaluating, and never stale."""
    made, x = layer(use_dora=True).train(not evaluating), torch.randn(5, IN)
    made(x)
    with torch.no_grad():
        made.lora_B.mul_(3)
    torch.testing.assert_close(made(x), plain(made, x))


def test_what_comes_out_may_be_added_to_in_place():
    """As Falcon and BLOOM do with their residual."""
    layer = LoraLinear(nn.Linear(6, 5), 2, 4.0)
    out = layer(torch.randn(2, 3, 6))
    out += 1
    out.sum().backward()
    assert layer.lora_B.grad is not None
