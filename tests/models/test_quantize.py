"""NF4: the published levels, the error and size they should have, bitsandbytes' bytes and values, and the layer."""

import math
from statistics import NormalDist

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from burnish.models import kernels, quantize
from burnish.models.quantize import NF4, Linear4, Packed


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_levels_are_the_published_ones():
    """Appendix E: eight quantiles above zero, seven below, evenly spaced in probability, divided by the largest."""
    offset, ppf = 0.9677083, NormalDist().inv_cdf
    above = [ppf(offset + (0.5 - offset) * i / 8) for i in range(8)]
    below = [-ppf(offset + (0.5 - offset) * i / 7) for i in range(7)]
    levels = sorted([*above, 0.0, *below])
    assert max(abs(a - b / levels[-1]) for a, b in zip(NF4, levels, strict=True)) < 2e-7


@pytest.mark.parametrize(("block", "error"), [(64, 0.072798), (128, 0.076831), (256, 0.080337), (4096, 0.092547)])
def test_the_error_on_normal_weights_is_the_known_one(block, error):
    """Mean absolute error of N(0, 1) as bitsandbytes' tests have it: deviation 7.4e-5 between samples, times four.

    They keep the scales in full; double quantisation adds to it less than that deviation.
    """
    weight = normal(1024, 1024)
    made = quantize.dequantize(quantize.quantize(weight, block))
    assert (made - weight).abs().mean() == pytest.approx(error, abs=3e-4)


def test_a_weight_takes_4_127_bits():
    assert round(quantize.BITS, 3) == 4.127
    assert quantize.quantize(torch.zeros(1024, 1024)).bits == pytest.approx(quantize.BITS, abs=1e-4)


SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 70))


@settings(max_examples=50, deadline=None)
@given(SHAPES, st.sampled_from([4, 64, 256, 4096]), st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e4]), st.integers(0, 9))
def test_any_shape_comes_back_within_half_a_gap(shape, block, scale, seed):
    """The widest gap between levels is .3039 of the largest value of a block; a scale's own error is under 4 %."""
    weight = normal(*shape, seed=seed) * scale
    packed = quantize.quantize(weight, block)
    made = quantize.dequantize(packed)
    assert made.shape == weight.shape
    assert packed.codes.dtype == packed.scales.dtype == torch.uint8
    assert len(packed.codes) == math.ceil(weight.numel() / 2)
    assert (made - weight).abs().max() <= (0.152 + 0.04) * weight.abs().max()
    assert torch.equal(quantize.dequantize(packed, torch.bfloat16), made.bfloat16())


@settings(max_examples=20, deadline=None)
@given(SHAPES, st.integers(0, 9))
def test_zero_stays_zero_and_signs_stay(shape, seed):
    weight = normal(*shape, seed=seed)
    weight[weight.abs() < 0.3] = 0.0
    made = quantize.dequantize(quantize.quantize(weight))
    assert (made[weight == 0] == 0).all()
    assert (made * weight >= 0).all()


def test_the_kernel_and_the_table_make_the_same(monkeypatch):
    packed = {block: quantize.quantize(normal(37, 53), block) for block in (4, 16, 64, 4096)}
    told = [[quantize.dequantize(item, kind) for item in packed.values()] for kind in (torch.float32, torch.bfloat16)]
    monkeypatch.setattr(kernels, "fits", lambda *_: False)
    again = [[quantize.dequantize(item, kind) for item in packed.values()] for kind in (torch.float32, torch.bfloat16)]
    assert all(torch.equal(a, b) for x, y in zip(told, again, strict=True) for a, b in zip(x, y, strict=True))


def test_a_large_tensor_is_cut_without_a_seam(monkeypatch):
    monkeypatch.setattr(kernels, "fits", lambda *_: False)
    weight = normal(40, 1000)
    whole = quantize.quantize(weight)
    made = quantize.dequantize(whole)
    monkeypatch.setattr(quantize, "CHUNK", 4096)
    pieces = quantize.quantize(weight)
    assert all(torch.equal(getattr(whole, name), getattr(pieces, name)) for name in ("codes", "scales", "steps"))
    assert torch.equal(quantize.dequantize(whole), made)


def test_threads_do_not_show_in_the_scales():
    """An artifact knows its 4-bit base by a hash, on a laptop and on a rank that has one thread."""
    largest = normal(150_000, seed=12).abs()  # torch.mean gives three results with 1, 2 and 3 threads
    threads = torch.get_num_threads()
    made = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        made.append(quantize.scaled(largest))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in made[1:] for a, b in zip(made[0], other, strict=True))


def test_a_number_that_is_none_shows_in_the_constants():
    for bad in (math.nan, math.inf):
        weight = normal(8, 64)
        weight[3, 5] = bad
        assert not quantize.quantize(weight).mean.isfinite()


@pytest.mark.parametrize("shape", [(576, 192), (31, 7), (3, 64), (40, 322)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_and_values_are_those_of_bitsandbytes(shape, dtype):
    """Codes and scales before double quantisation to the bit, and the same bytes mean the same values to the bit.

    The codes of the scales may differ: of each block's scale theirs picks a level within 1e-3 of the nearest (their CPU
    library looks it up in a table of coarse cells), ours the nearest, as their Python kernel does.
    """
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")
    weight = (normal(*shape) * 0.02).to(dtype)
    mine = quantize.quantize(weight)
    codes, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    assert torch.equal(mine.codes, codes.view(-1))
    assert torch.equal(mine.steps, state.state2.absmax)
    assert torch.equal(mine.mean, state.offset)
    assert torch.equal(quantize._dynamic(torch.device("cpu")), state.state2.code)
    apart = mine.scales != state.absmax
    assert apart.float().mean() <= 0.005
    assert ((mine.scales.int() - state.absmax.int()).abs() <= 1).all()
    theirs = Packed(mine.codes, state.absmax, mine.steps, mine.mean, shape)
    for kind in (torch.float32, torch.bfloat16, torch.float16):
        state.dtype = kind
        if shape[-1] % 2 == 0:  # else theirs compiles
            assert torch.equal(quantize.dequantize(theirs, kind), functional.dequantize_4bit(codes, state))


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layer_computes_with_its_dequantised_weight(conv, dtype):
    layer = Conv1D(48, 80) if conv else nn.Linear(80, 48)
    layer.to(dtype)
    small = Linear4.of(layer)
    plain = small.plain()
    assert type(plain) is type(layer)
    assert plain.weight.shape == layer.weight.shape
    assert plain.weight.dtype == dtype
    inputs = normal(5, 7, 80).to(dtype).requires_grad_()
    twin = inputs.detach().clone().requires_grad_()
    out, expected = small(inputs), plain(twin)
    torch.testing.assert_close(out, expected)  # Conv1D multiplies the transpose, in another order
    out.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(inputs.grad, twin.grad)
    assert small.bias is layer.bias
    assert (small.in_features, small.out_features, small.weight.dtype) == (80, 48, dtype)


def test_a_forward_pass_keeps_no_weight():
    """What waits for the backward pass is what the layer was built to avoid."""
    small = Linear4.of(nn.Linear(64, 96))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value.shape), lambda value: value):
        small(normal(3, 64).requires_grad_()).sum().backward()
    assert torch.Size([96, 64]) not in kept
    assert torch.Size([64, 96]) not in kept


def test_autocast_chooses_the_type():
    small = Linear4.of(nn.Linear(64, 64))
    inputs = normal(3, 64).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = small(inputs)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert inputs.grad.dtype == torch.float32


def test_converting_a_model_leaves_the_codes_alone():
    small = Linear4.of(nn.Linear(64, 64))
    before = small.dequantized(torch.float32)
    small.to(torch.bfloat16)
    assert small.weight.dtype == torch.bfloat16
    assert torch.equal(small.dequantized(torch.float32), before)
    assert small.weight.isnan().all()


def test_a_state_dict_holds_it():
    first, second = Linear4.of(nn.Linear(64, 64)), Linear4.of(nn.Linear(64, 64))
    assert quantize.digest([first]) != quantize.digest([second])
    second.load_state_dict(first.state_dict())
    assert quantize.digest([first]) == quantize.digest([second])
    assert torch.equal(first(normal(3, 64)), second(normal(3, 64)))
