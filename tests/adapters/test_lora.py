"""What the contracts and the parity with PEFT do not hold: precision, choice of layers, refusals."""

import pytest
import tiny
import torch
from transformers.pytorch_utils import Conv1D

from burnish.adapters import _lora, lora
from burnish.errors import TaskError
from burnish.models import base, load, quicken
from burnish.train import optim


def test_zero_b_is_the_base_to_the_bit(tmp_path_factory):
    model = tiny.model("llama", "language", tmp_path_factory, "lora").eval()
    ids = torch.arange(20)[None] + 5
    with torch.no_grad():
        tuned = model.hf(input_ids=ids).logits
        with lora.disabled(model):
            assert torch.equal(model.hf(input_ids=ids).logits, tuned)


@pytest.mark.parametrize("rung", ["lora", "qlora"])
@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_what_is_not_merged_answers_by_the_bases_own_products(kind, use_dora, rung, tmp_path_factory, monkeypatch):
    """Which are quicken's while answering; the same numbers as in training, but for the rounding of a few sums."""
    model = tiny.model(kind, "classes", tmp_path_factory, rung, use_dora=use_dora).eval()
    layers, asked = _lora.layers(model), []
    for layer in layers.values():
        torch.nn.init.normal_(layer.lora_B, std=0.1)
    ids = torch.arange(20)[None] + 5
    trained = model.hf(input_ids=ids).logits.detach()
    monkeypatch.setattr(quicken, "product", lambda *given, told=quicken.product: asked.append(given[1]) or told(*given))
    with torch.no_grad(), quicken.answering(model.hf):
        answered = model.hf(input_ids=ids).logits
    assert (answered - trained).abs().max() <= 1e-6 * trained.abs().max().clamp_min(1)
    seen = {value.data_ptr() for value in asked}
    bases = [layer for layer in layers.values() if type(layer.base_layer) in (torch.nn.Linear, Conv1D)]
    for layer in bases:
        assert (layer.base_layer.weight.data_ptr() in seen) == (not use_dora or layer.bias is None)


def test_disabled_ends_also_when_its_body_fails(tmp_path_factory):
    model = tiny.model("llama", "language", tmp_path_factory, "lora")
    with pytest.raises(RuntimeError), lora.disabled(model):
        raise RuntimeError
    assert all(layer.enabled for layer in _lora.layers(model).values())


def test_a_merge_adds_in_float32(tmp_path_factory):
    """Adding a small update to bf16 weights loses most of it (correctness.md, row 13); the sum is rounded once."""
    model = tiny.model("llama", "language", tmp_path_factory, "lora")
    draw = torch.Generator().manual_seed(0)
    name, layer = next(iter(_lora.layers(model).items()))
    with torch.no_grad():
        layer.base_layer.weight.data = layer.base_layer.weight.bfloat16()
        layer.lora_B.normal_(0, 1e-3, generator=draw)
    before, update = layer.base_layer.weight.detach().clone(), layer.lora_B.float() @ layer.lora_A.float() * layer.scale
    assert layer.merged().dtype == torch.float32
    lora.merge(model)
    torch.testing.assert_close(model.hf.get_submodule(name).weight, (before.float() + update).bfloat16())


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}])
def test_in_a_bf16_model_the_update_stays_float32(settings, tmp_path_factory):
    """Its layer casts it: neither a rounded copy nor a rounded gradient (a DoRA length in bf16 is off by 0.4 %)."""
    model = tiny.model("llama", "language", tmp_path_factory, "lora", **settings)
    tuned = {name: value for name, value in model.trainable().items() if ".lora_" in name}
    masters = optim.Masters(model.hf, model.trainable(), torch.bfloat16)
    assert all(masters.values[name] is value for name, value in tuned.items())
    model.hf(input_ids=torch.arange(20)[None] + 5).logits.float().sum().backward()
    assert {value.dtype for value in tuned.values()} == {torch.float32}
    assert {value.grad.dtype for value in tuned.values()} == {torch.float32}
    assert next(iter(_lora.layers(model).values())).weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("kind", "targets", "count"),
    [
        ("llama", [], 14),  # 2 layers x (q k v o gate up down), not the output layer
        ("llama", ["q_proj", "v_proj"], 4),
        ("llama", ["layers.1.mlp.up_proj"], 1),
        ("gpt2", [], 8),  # c_attn, c_proj, c_fc, c_proj: Conv1D
        ("gpt2", ["c_proj"], 4),
        ("gpt2", ["attn.c_proj"], 2),
        ("bert", ["query"], 2),
    ],
)
def test_the_layers_that_are_meant(kind, targets, count, tmp_path_factory):
    model = tiny.model(kind, "language", tmp_path_factory, "lora", targets=targets)
    assert len(_lora.layers(model)) == count


def test_a_layer_that_peft_refuses_in_mamba_is_not_adapted(tmp_path_factory):
    model = tiny.model("bart", "language", tmp_path_factory)
    assert any(name.endswith("out_proj") for name in _lora.chosen(model, []))
    model.hf.config.model_type = "mamba"
    assert not any(name.endswith("out_proj") for name in _lora.chosen(model, []))


def test_a_name_is_no_part_of_a_name(tmp_path_factory):
    """`proj` is not `q_proj`, and a misspelt name is refused with the names there are."""
    for wrong in (["proj"], ["q_pro"], ["lm_head"], ["embed_tokens"]):
        with pytest.raises(TaskError, match="match no layer") as caught:
            tiny.model("llama", "language", tmp_path_factory, "lora", targets=wrong)
        assert "q_proj" in caught.value.do


def test_weights_from_scratch_are_refused(tmp_path_factory):
    """A reload could not find the base that the update belongs to."""
    model = load.load(base.inspect(str(tiny.folder("llama", tmp_path_factory)), random=True), tiny.HEADS["language"])
    with pytest.raises(TaskError, match="pre-trained"):
        lora.attach(model, {}, 0.0, 0)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_acts_on_the_update_alone(dropout, tmp_path_factory):
    """With B = 0 a dropped input changes nothing; with B it does, in training only."""
    made = load.load(base.inspect(str(tiny.folder("llama", tmp_path_factory))), tiny.HEADS["language"], dropout=0.0)
    lora.attach(made, {}, dropout, 0)
    ids = torch.arange(20)[None] + 5

    def twice():
        with torch.no_grad():
            return torch.equal(made.hf(input_ids=ids).logits, made.hf(input_ids=ids).logits)

    assert twice()
    with torch.no_grad():
        for layer in _lora.layers(made).values():
            layer.lora_B.normal_()
    assert twice() == (dropout == 0.0)
    made.eval()
    assert twice()


def test_the_seed_decides_the_start(tmp_path_factory):
    def start(seed):
        made = load.load(base.inspect(str(tiny.folder("gpt2", tmp_path_factory))), tiny.HEADS["language"])
        lora.attach(made, {}, 0.0, seed)
        return torch.cat([layer.lora_A.detach().flatten() for layer in _lora.layers(made).values()])

    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))
