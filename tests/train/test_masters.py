"""Float32 masters behind a bfloat16 model: no update is lost, no cut changes it, and what is saved is float32."""

from dataclasses import replace

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import nn

from burnish import kinds
from burnish.train import checkpoint, loop
from burnish.train.optim import Masters

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
    before = masters.copies()["weight"]
    optimizer = torch.optim.SGD(masters.values.values(), lr=1.0)
    for _ in range(STEPS):
        masters.values["weight"].grad = SMALL * before  # what backward leaves there
        optimizer.step()
        masters.round()
        masters.clear()
    assert layer.weight.dtype == torch.bfloat16
    torch.testing.assert_close(
        masters.values["weight"].detach(), before * (1 - STEPS * SMALL), rtol=1e-4, atol=0
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
    masters.round()
    masters.release()
    assert layer.weight.dtype == torch.float32


def test_masters_begin_at_the_weights_before_rounding():
    torch.manual_seed(0)
    layer = nn.Linear(8, 4)
    before = layer.weight.detach().clone()
    masters = Masters(layer, dict(layer.named_parameters()), torch.bfloat16)
    assert torch.equal(masters.values["weight"], before)
    assert torch.equal(layer.weight, before.bfloat16())


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
