"""What the contracts do not hold: what is in 4 bits, what is trained, merging, files, and the way through a run."""

import json

import peft
import pytest
import tiny
import torch
import transformers
from torch import nn

from burnish import artifact as artifacts
from burnish.adapters import _lora, qlora
from burnish.artifact import Artifact
from burnish.errors import ArtifactError
from burnish.models import base, load, quantize
from burnish.models.base import Head
from burnish.tokens.contract import Contract
from burnish.train import loop

IDS = torch.arange(20)[None] + 5


def found(kind, made, **how):
    return base.inspect(str(tiny.folder(kind, made)), **how)


def stirred(kind, made, head="language", how=None, **settings):
    """A model loaded in 4 bits whose update has moved."""
    model = load.load(how or found(kind, made), tiny.HEADS[head], dropout=0.0, quantised=True)
    qlora.attach(model, settings, 0.0, 0)
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for value in model.trainable().values():
            value.add_(torch.randn(value.shape, generator=draw) * 0.1)
    return model.eval()


def logits(hf):
    with torch.no_grad():
        return hf(input_ids=IDS).logits


@pytest.mark.parametrize(("kind", "count"), [("llama", 14), ("gpt2", 8), ("bert", 13)])
def test_every_linear_layer_but_the_output_is_in_4_bits(kind, count, tmp_path_factory):
    model = stirred(kind, tmp_path_factory)
    assert len(quantize.layers(model.hf)) == count == len(_lora.layers(model))
    assert isinstance(model.hf.get_output_embeddings(), nn.Linear)
    assert load.count_whole(model.hf) - load.count(model.trainable().values()) == load.count_whole(
        load.load(model.base, tiny.HEADS["language"]).hf
    )


def test_what_transformers_keeps_in_float32_is_not_in_4_bits(tmp_path_factory):
    """T5's `wo`: bitsandbytes leaves it whole too, so PEFT on its base says what was trained."""
    small = quantize.layers(stirred("t5", tmp_path_factory).hf)
    assert small
    assert not [name for name in small if name.endswith(".wo")]


def test_layers_that_are_no_targets_are_in_4_bits_too(tmp_path_factory):
    model = stirred("llama", tmp_path_factory, targets=["q_proj"])
    assert len(quantize.layers(model.hf)) == 14
    assert len(_lora.layers(model)) == 2
    before = logits(model.hf)
    qlora.merge(model)
    assert not quantize.layers(model.hf)
    torch.testing.assert_close(logits(model.hf), before, rtol=1e-5, atol=1e-5)  # summed in another order


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_moves_the_update_and_nothing_else(precision, tmp_path_factory, tmp_path):
    run = tiny.run("sft", "language", "answers", "llama", tmp_path_factory, tmp_path, "qlora", precision=precision)
    layers = quantize.layers(run.model.hf).values()
    before, start = quantize.digest(layers), {n: v.detach().clone() for n, v in run.model.trainable().items()}
    losses = [event.numbers["loss"] for event in loop.fit(run) if event.kind == "step"]
    assert losses[-1] < losses[0]
    assert quantize.digest(layers) == before
    assert all(".lora_" in name for name in start)
    assert all(not torch.equal(value, start[name]) for name, value in run.model.trainable().items())


def test_the_gradient_is_that_of_lora_over_the_dequantised_base(tmp_path_factory):
    """The same update on plain layers with the dequantised weights: equal to rounding."""
    first, second = stirred("llama", tmp_path_factory), stirred("llama", tmp_path_factory)
    for item in _lora.layers(second).values():
        item.base_layer = item.base_layer.plain()
    for model in (first, second):
        model.hf(input_ids=IDS).logits.logsumexp(-1).sum().backward()
    told = [{name: value.grad for name, value in model.trainable().items()} for model in (first, second)]
    assert tiny.distance(*told) < 1e-6


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_a_merge_is_onto_what_was_trained_on(kind, tmp_path_factory):
    """Not onto the base's own weights, from which the 4-bit ones differ by a tenth."""
    model = stirred(kind, tmp_path_factory)
    told = {
        name: (item.base_layer.dequantized(torch.float32), item.lora_B @ item.lora_A * item.scale)
        for name, item in _lora.layers(model).items()
        if hasattr(item.base_layer, "dequantized")  # T5's wo is whole
    }
    qlora.merge(model)
    plain = load.load(model.base, tiny.HEADS["language"])
    for name, (weight, update) in told.items():
        layer, own = model.hf.get_submodule(name), plain.hf.get_submodule(name)
        assert type(layer) is type(own)
        merged = layer.weight.T if kind == "gpt2" else layer.weight
        torch.testing.assert_close(merged, weight + update, rtol=1e-6, atol=1e-6)
        assert (layer.weight - own.weight).norm() > 0.05 * own.weight.norm()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_peft_reads_it_over_the_dequantised_base(kind, tmp_path_factory, tmp_path):
    model = stirred(kind, tmp_path_factory)
    qlora.save(model, tmp_path, str(model.base.folder))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model.base.folder, dtype=torch.float32)
    with torch.no_grad():
        for name, item in _lora.layers(model).items():
            theirs.get_submodule(name).weight.copy_(item.base_layer.plain().weight)
    theirs = peft.PeftModel.from_pretrained(theirs, str(tmp_path)).eval()
    torch.testing.assert_close(logits(theirs), logits(model.hf), rtol=1e-5, atol=1e-5)


def test_the_format_is_told_in_transformers_own_words(tmp_path_factory, tmp_path):
    qlora.save(stirred("llama", tmp_path_factory), tmp_path, "base")
    told = json.loads((tmp_path / "quantization.json").read_text())["quantization_config"]
    config = transformers.BitsAndBytesConfig(**told)
    assert (config.load_in_4bit, config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == (True, "nf4", True)


CONTRACT = Contract("write", "document", "all", "raw", "", 96, "error")


def saved(model, folder, seed=0):
    artifact = Artifact("qlora", model.base, CONTRACT, "qlora", {}, {"seed": seed})
    return artifacts.save(artifact, model, folder / "artifact")


@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_an_artifact_answers_as_the_trained_model_bit_for_bit(weights, tmp_path_factory, tmp_path):
    how = found("llama", tmp_path_factory, random=weights == "random")
    model = stirred("llama", tmp_path_factory, how=how)
    saved(model, tmp_path)
    again = artifacts.load(tmp_path / "artifact").model()
    assert torch.equal(logits(again.hf), logits(model.hf))
    assert len(quantize.layers(again.hf)) == 14


def test_another_base_is_refused(tmp_path_factory, tmp_path):
    """Here random weights of another seed stand for a base that quantises to something else."""
    model = stirred("llama", tmp_path_factory, how=found("llama", tmp_path_factory, random=True))
    saved(model, tmp_path, seed=1)
    with pytest.raises(ArtifactError, match="4-bit weights that the update was trained on"):
        artifacts.load(tmp_path / "artifact").model()


def test_dora_over_4_bits(tmp_path_factory, tmp_path):
    model = stirred("llama", tmp_path_factory, use_dora=True)
    before = logits(model.hf)
    qlora.save(model, tmp_path, "base")
    again = load.load(model.base, Head("language"), quantised=True)
    qlora.load(again, tmp_path)
    assert torch.equal(logits(again.eval().hf), before)
    qlora.merge(model)
    torch.testing.assert_close(logits(model.hf), before, rtol=1e-5, atol=1e-5)
