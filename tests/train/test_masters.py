"""Float32 masters behind a bfloat16 model: no update is lost, no cut changes it, and what is saved is float32."""

from dataclasses import replace

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import nn

from burnish import kinds
from burnish.models import kernels
from burnish.models.fused import linear_cross_entropy
from burnish.train import checkpoint, loop
from burnish.train.optim import Masters, join, split

SFT = ("sft", "language", "answers")
SMALL, STEPS = 1e-6, 1_000  # relative to a weight; bfloat16 shows 4e-3 at best


def linear(dtype):
    torch.manual_seed(0)
    layer = nn.Linear(8, 4)
    with torch.no_grad():
        layer.weight.copy_(1 + torch.rand(4, 8))
    return layer, Masters(layer, dict(layer.named_parameters()), dtype)


def test_a_thousand_updates_of_a_millionth_are_not_rounded_away():
    layer, masters = linear(torch.bfloat16)
    before = masters.number("weight").clone()
    optimizer = torch.optim.SGD(masters.values.values(), lr=1.0)
    for _ in range(STEPS):
        masters.values["weight"].grad = SMALL * before  # what backward leaves there
        masters.step(optimizer)
    assert layer.weight.dtype == torch.bfloat16
    torch.testing.assert_close(
        masters.number("weight"), before * (1 - STEPS * SMALL), rtol=1e-4, atol=0
    )  # a tenth of the sum
    masters.release()
    torch.testing.assert_close(
        layer.weight.detach(), before * (1 - STEPS * SMALL), rtol=1e-4, atol=0
    )  # a tenth of the sum


def test_without_masters_they_are():
    """What the test above is for: plain bfloat16 weights stay where they are."""
    layer, _ = linear(torch.bfloat16)
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    for _ in range(STEPS):
        layer.weight.grad = SMALL * before
        optimizer.step()
    assert torch.equal(layer.weight, before)


def test_gradients_are_added_up_in_float32_and_freed():
    """A thousand parts of 1: bfloat16 would stop counting at 256."""
    layer, masters = linear(torch.bfloat16)
    for _ in range(1_000):
        layer(torch.ones(1, 8, dtype=torch.bfloat16)).sum().backward()
        assert layer.weight.grad is None
    gradient = masters.values["weight"].grad
    assert torch.equal(gradient, torch.full((4, 8), 1_000.0))
    masters.clear()
    assert masters.values["weight"].grad is None


def test_a_float32_model_is_its_own_master():
    layer, masters = linear(torch.float32)
    assert masters.values["weight"] is layer.weight
    masters.release()
    assert layer.weight.dtype == torch.float32


def test_masters_begin_at_the_weights_before_rounding():
    torch.manual_seed(0)
    layer = nn.Linear(8, 4)
    before = layer.weight.detach().clone()
    masters = Masters(layer, dict(layer.named_parameters()), torch.bfloat16)
    assert torch.equal(masters.number("weight"), before)
    assert torch.equal(layer.weight, before.bfloat16())


@pytest.mark.parametrize("compiled", [True, False])
def test_a_number_is_taken_apart_and_put_together_to_the_bit(compiled, monkeypatch):
    """Every sign and exponent, with lower halves around the point where rounding turns."""
    if not compiled:
        monkeypatch.setattr(kernels, "compiled", lambda: None)
    upper = torch.arange(0, 1 << 16, 37, dtype=torch.int64)[:, None] << 16
    near = torch.tensor([0, 1, 0x7FFE, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    bits = (upper + near).flatten()
    exact = bits.where(bits < 1 << 31, bits - (1 << 32)).to(torch.int32).view(torch.float32)
    exact = exact[exact.isfinite()]
    rounded = torch.empty_like(exact, dtype=torch.bfloat16)
    lower = split(exact, rounded)
    assert lower.dtype == torch.int16
    assert torch.equal(join(rounded, lower).view(torch.int32), exact.view(torch.int32))
    halfway = (exact.view(torch.int32) & 0xFFFF) == 0x8000  # there alone rounding away from zero is another rounding
    assert torch.equal(rounded[~halfway], exact.bfloat16()[~halfway])


def test_the_optimizer_steps_what_a_float32_model_would_be():
    """AdamW on masters that are put together for it: to the bit what it does to a float32 parameter."""
    layer, masters = linear(torch.bfloat16)
    plain = {name: nn.Parameter(value.clone()) for name, value in masters.numbers.items()}
    for step_of, values in ((masters.step, masters.values), (lambda optimizer: optimizer.step(), plain)):
        optimizer = torch.optim.AdamW(values.values(), lr=1e-2, fused=True)
        draw = torch.Generator().manual_seed(1)
        for step in range(5):
            for name, value in values.items():
                value.grad = torch.randn(value.shape, generator=draw)
                if name == "bias" and step == 2:
                    value.grad = None  # nobody used it: it is left where it is
            step_of(optimizer)
    for name, value in plain.items():
        assert torch.equal(masters.number(name), value.detach())
        assert torch.equal(dict(layer.named_parameters())[name], masters.number(name).bfloat16())


@pytest.mark.parametrize("tied", [False, True])
def test_embedding_and_head_add_to_one_sum(tied):
    """Rows of an embedding and a head's chunks go straight to float32; many small parts would be lost in bfloat16."""
    torch.manual_seed(0)
    words, head = nn.Embedding(12, 8, padding_idx=1), nn.Linear(8, 12, bias=False)
    if tied:
        head.weight = words.weight
    model = nn.ModuleList([words, head])
    exact = nn.ModuleList([nn.Embedding.from_pretrained(words.weight.detach().clone(), False, padding_idx=1), None])
    masters = Masters(model, dict(model.named_parameters()), torch.bfloat16)
    exact[0].weight.data = words.weight.detach().float()
    other = exact[0].weight if tied else nn.Parameter(head.weight.detach().float())
    targets, told = torch.tensor([3, 5, 3, 11]), torch.ones(4)
    for ids in (torch.tensor([2, 2, 1, 7]), torch.tensor([5, 2, 2, 2])):
        linear_cross_entropy(words(ids), head.weight, None, targets, told).div(3).backward()
        nn.functional.cross_entropy(exact[0](ids) @ other.T, targets, reduction="sum").div(3).backward()
    sums = {name: value.grad for name, value in masters.values.items()}
    wanted = [exact[0].weight.grad] if tied else [exact[0].weight.grad, other.grad]
    assert len(sums) == len(wanted)
    for gradient, right in zip(sums.values(), wanted, strict=True):
        assert gradient.dtype == torch.float32
        assert not gradient.is_sparse
        torch.testing.assert_close(gradient, right, rtol=0, atol=0.01 * float(right.abs().max()))
    assert all(value.grad is None for value in model.parameters())
    masters.release()
    assert not words.sparse
    assert not hasattr(head.weight, "sums")


@pytest.mark.parametrize("adapter", ["full", "lora"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "bart", "t5"])
def test_every_weight_computes_in_bf16_and_is_kept_in_float32(adapter, kind, tmp_path_factory, tmp_path):
    run = tiny.run(*SFT, kind, tmp_path_factory, tmp_path / "run", adapter=adapter, precision="bf16", save_every=2)
    seen = set()
    for event in loop.fit(run):
        if event.kind == "step":
            seen |= {value.dtype for value in run.model.hf.parameters()}
    assert seen == ({torch.bfloat16} if adapter == "full" else {torch.bfloat16, torch.float32})  # A and B are cast
    assert {value.dtype for value in run.model.trainable().values()} == {torch.float32}
    found = checkpoint.newest(tmp_path / "run")
    weights = found.tensors("weights")
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert all(not torch.equal(value, value.bfloat16().float()) for value in weights.values() if value.ndim > 1)
    (tmp_path / "artifact").mkdir()
    kinds.load("adapters", adapter).save(run.model, tmp_path / "artifact", "base")
    (file,) = (tmp_path / "artifact").glob("*.safetensors")
    assert {value.dtype for value in load_file(file).values()} == {torch.float32}


@pytest.mark.parametrize("head", ["classes", "multi", "number"])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_every_head_computes_in_bf16_about_as_in_float32(head, kind, tmp_path_factory, tmp_path):
    method = "regress" if head == "number" else "classify"
    losses = {}
    for precision in ("fp32", "bf16"):
        run = tiny.run(method, head, head, kind, tmp_path_factory, tmp_path / precision, precision=precision)
        losses[precision] = [event.numbers["loss"] for event in loop.fit(run) if event.kind == "step"]
    assert losses["bf16"][0] == pytest.approx(losses["fp32"][0], rel=0.05, abs=0.02)  # 8 bits and two layers
    assert losses["bf16"] != losses["fp32"]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_update_does_not_depend_on_the_cut(precision, packed, tmp_path_factory, tmp_path):
    """Eight rows at once, four at a time, one at a time: the same step to 1e-5 (fp32) or one rounding of bf16."""
    moved = {}
    for budget in (10_000, 70, 1):  # (8, 1); two or more; (1, 8)
        own = {"optimizer": "sgd", "betas": [0.0, 0.9], "weight_decay": 0.0, "learning_rate": 1.0, "warmup": 0}
        own |= {"schedule": "constant", "max_steps": 1, "clip": 0.0, "batch_size": 8, "micro_tokens": budget}
        run = tiny.run(*SFT, "llama", tmp_path_factory, tmp_path / str(budget), precision=precision, **own)
        run.batches = replace(run.batches, packed=packed)
        before = {name: value.detach().clone() for name, value in run.model.trainable().items()}
        cut = len(run.batches.step(1))
        list(loop.fit(run))
        moved[cut] = {name: value.detach() - before[name] for name, value in run.model.trainable().items()}
    assert {1, 8} < set(moved)
    assert len(moved) == 3
    allowed = 1e-5 if precision == "fp32" else 2e-2
    for cut in moved:
        assert tiny.distance(moved[1], moved[cut]) < allowed
