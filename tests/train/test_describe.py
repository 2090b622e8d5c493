"""What a model is to an estimate: published parameter counts without weights, and what the loaded model says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import transformers

from burnish import kinds, taskfile
from burnish.models import base as models
from burnish.models import load
from burnish.models.base import Base, Head
from burnish.train import describe, standard

OPT = transformers.OPTConfig(
    hidden_size=4096, ffn_dim=16384, num_hidden_layers=32, num_attention_heads=32, word_embed_proj_dim=4096
)
GPT3 = transformers.OPTConfig(
    hidden_size=12288, ffn_dim=49152, num_hidden_layers=96, num_attention_heads=96, word_embed_proj_dim=12288
)
LLAMA3 = transformers.LlamaConfig(vocab_size=128256, intermediate_size=14336, num_key_value_heads=8)
ROBERTA = transformers.RobertaConfig(
    hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, vocab_size=50265
)
DEBERTA = transformers.DebertaV2Config(
    hidden_size=1536, num_hidden_layers=48, num_attention_heads=24, intermediate_size=6144, vocab_size=128100
)


@pytest.mark.parametrize(
    ("config", "kind", "rank", "targets", "trained"),
    [
        (transformers.LlamaConfig(), "decoder", 8, ["q_proj", "v_proj"], 4_194_304),
        (transformers.LlamaConfig(), "decoder", 16, [], 39_976_960),
        (transformers.LlamaConfig(), "decoder", 64, [], 159_907_840),
        (LLAMA3, "decoder", 16, [], 41_943_040),
        (OPT, "decoder", 16, ["q_proj", "v_proj"], 8_388_608),
        (ROBERTA, "encoder", 8, ["query", "value"], 786_432),
        (DEBERTA, "encoder", 16, ["query_proj", "value_proj"], 4_718_592),
        (GPT3, "decoder", 1, ["q_proj", "v_proj"], 4_718_592),
        (GPT3, "decoder", 8, ["q_proj", "v_proj"], 37_748_736),
    ],
    ids=["llama-qv", "llama-16", "llama-64", "llama-3", "opt", "roberta", "deberta", "gpt3-1", "gpt3-8"],
)
def test_published_parameter_counts_come_out_without_weights(
    config: Any, kind: Any, rank: int, targets: list[str], trained: int
) -> None:
    """Sources: LoRA paper tables 2 and 4, PEFT's documentation."""
    base = Base("", Path("/nonexistent"), kind, config.to_dict(), 0, config.vocab_size, "")
    task = taskfile.resolve({"lora": {"rank": rank, "targets": targets}})
    told = describe.shape(describe.skeleton(base, Head("language"), "lora", task, config))
    assert told.trained == trained
    if config is OPT:
        assert told.parameters == 6_666_862_592


@pytest.mark.parametrize(("number", "parameters"), [(0, 134_515_008), (2, 494_032_768), (3, 1_235_814_400)])
def test_well_known_bases_have_their_published_sizes(number: int, parameters: int) -> None:
    assert standard.work(number, "full", 2).shape.parameters == parameters


def test_the_largest_known_bases_have_their_published_sizes() -> None:
    told = {name: standard.work(number, "full", 2).shape.parameters for number, (name, *_) in enumerate(standard.SIZES)}
    assert told["Llama 3.1 8B"] == 8_030_261_248
    assert told["Llama 3.1 70B"] == 70_553_706_496
    assert list(told.values()) == sorted(told.values())  # `largest` halves this list


@pytest.mark.parametrize("rung", ["full", "lora"])
@pytest.mark.parametrize("head", ["language", "classes", "number"])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_skeleton_counts_what_the_loaded_model_does(
    kind: str, head: str, rung: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = models.inspect(str(tiny.folder(kind, tmp_path_factory)))
    told = describe.shape(describe.skeleton(base, tiny.HEADS[head], rung, taskfile.resolve({})))
    model = tiny.model(kind, head, tmp_path_factory, rung, None)  # dropout as shipped
    assert told.parameters == load.count(model.hf.parameters())
    assert told.trained == load.count(model.trainable().values())
    assert told == describe.shape(model)


def test_multiplications_are_the_weights_of_every_matrix_and_albert_goes_through_its_own_twice(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    llama = describe.shape(tiny.model("llama", "language", tmp_path_factory))
    assert llama.multiplications == 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
    albert = describe.shape(tiny.model("albert", "classes", tmp_path_factory))
    assert [item.count for item in albert.linears if (item.inputs, item.outputs) == (32, 48)] == [2]


def test_nothing_below_the_lowest_trained_layer_is_kept_or_run_backward(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    model = tiny.model("llama", "language", tmp_path_factory)
    whole = describe.shape(model)
    for name, value in model.hf.named_parameters():
        value.requires_grad_("layers.1." in name)
    top = describe.shape(model)
    assert top.ids.kept == pytest.approx(whole.ids.kept / 2, rel=0.1)  # and the last norm
    assert (top.ids.reached, whole.ids.reached) == (0.5, 1.0)
    assert top.ids.widths == whole.ids.widths
    assert {item.count for item in top.linears if not item.backward} == {1, 2}


def test_every_trained_rung_can_be_planned(tmp_path_factory: pytest.TempPathFactory) -> None:
    base = models.inspect(str(tiny.folder("llama", tmp_path_factory)))
    for rung in kinds.names("adapters"):
        told = describe.shape(describe.skeleton(base, Head("language"), rung, taskfile.resolve({})))
        assert 0 < told.trained <= told.parameters
