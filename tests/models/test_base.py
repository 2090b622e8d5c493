"""What is known of a model folder, and that a hostile one is refused without running a line of its code."""

import contextlib
import json
import shutil
import struct

import pytest
import tiny
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from burnish.adapters import full, lora
from burnish.errors import ModelError
from burnish.models import base, load
from burnish.models.base import Head
from burnish.tokens.batch import collate
from burnish.train import describe

KIND = dict.fromkeys(tiny.DECODERS, "decoder") | dict.fromkeys(tiny.ENCODERS, "encoder")
KIND |= dict.fromkeys(tiny.PAIRS, "encoder-decoder")
LANGUAGE = tiny.HEADS["language"]


def copied(kind, made, into):
    return shutil.copytree(tiny.folder(kind, made), into / "copy")


def edited(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_facts_are_read_without_weights(kind, tmp_path_factory, tmp_path):
    found = base.inspect(str(tiny.folder(kind, tmp_path_factory)))
    told = tiny.tokenizer(kind, tmp_path_factory)
    assert (found.kind, found.vocabulary, found.width) == (KIND[kind], told.size, 32)
    assert found.context == (0 if kind == "t5" else 96)
    assert base.has_head(found)
    assert base.inspect(str(copied(kind, tmp_path_factory, tmp_path))).fingerprint == found.fingerprint


@pytest.mark.parametrize("changed", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_changed_base_has_another_fingerprint(changed, tmp_path_factory, tmp_path):
    folder = copied("gpt2", tmp_path_factory, tmp_path)
    before = base.inspect(str(folder)).fingerprint
    if changed == "model.safetensors":
        weights = load_file(folder / changed)
        weights["transformer.h.1.mlp.c_fc.weight"][3, 4] += 1e-3
        save_file(weights, folder / changed, metadata={"format": "pt"})
    elif changed == "config.json":
        edited(folder, layer_norm_epsilon=1e-3)
    else:
        (folder / changed).write_text((folder / changed).read_text().replace('"a"', '"ä"'))
    assert base.inspect(str(folder)).fingerprint != before


def test_a_name_that_is_nothing_says_what_there_is(tmp_path):
    with pytest.raises(ModelError, match="No base model") as caught:
        base.inspect("no-such-model", str(tmp_path))
    assert "model folder" in caught.value.do


CODE = "import pathlib; pathlib.Path(__file__).with_name('ran').touch()\n"


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_map": {"AutoConfig": "canary.Config", "AutoModelForCausalLM": "canary.Model"}},
        {"auto_map": {}, "model_type": "canary"},
        {"model_type": "canary"},
        {"model_type": None},
        {"model_type": ["gpt2"]},
        {"model_type": {"gpt2": 1}},
        {"custom_pipelines": {"x": {"impl": "canary.Pipe"}}},
        {"trust_remote_code": True},
        {"attn_implementation": "someone/kernel"},
        {"_attn_implementation": {"": "someone/kernel"}},
        {"text_config": {"auto_map": {"AutoConfig": "canary.Config"}}},
        {"n_layer": 10**9},
        {"n_layer": 0},
        {"n_embd": -32},
        {"n_embd": 10**12},
        {"n_embd": "32"},
        {"vocab_size": 1e9},
        {"vocab_size": True},
    ],
)
def test_a_hostile_configuration_is_refused(changes, tmp_path_factory, tmp_path):
    folder = edited(copied("gpt2", tmp_path_factory, tmp_path), **changes)
    for name in ("canary.py", "modeling_canary.py", "configuration_canary.py", "__init__.py"):
        (folder / name).write_text(CODE)
    for random in (False, True):
        with pytest.raises(ModelError) as caught:
            load.load(base.inspect(str(folder), random=random), LANGUAGE)
        assert caught.value.do
        assert str(folder) in caught.value.where
    assert not (folder / "ran").exists()


def test_a_model_larger_than_memory_is_refused_before_it_is_made(tmp_path_factory, tmp_path):
    folder = edited(copied("gpt2", tmp_path_factory, tmp_path), n_positions=10**11)
    for random in (False, True):
        with pytest.raises(ModelError, match="GB of memory"):
            load.load(base.inspect(str(folder), random=random), LANGUAGE)


ODD = st.sampled_from([-1, 0, 1, 7, 10**9, 10**30, -0.5, 0.5, 1e300, "", "gpt2", None, True, [], [1], {}, {"a": 1}])
KEYS = st.sampled_from([*sorted(transformers.LlamaConfig().to_dict()), "quantization_config", "text_config"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(KEYS, ODD, min_size=1, max_size=2))
def test_an_odd_configuration_loads_or_is_refused(changes, tmp_path_factory, tmp_path):
    """Never another exception, never a hang."""
    shutil.rmtree(tmp_path / "copy", ignore_errors=True)
    folder = edited(copied("llama", tmp_path_factory, tmp_path), **changes)
    with contextlib.suppress(ModelError):
        load.load(base.inspect(str(folder)), LANGUAGE)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", "{" * 100_000, '{"a":' * 50_000])
def test_a_broken_configuration_is_refused(text, tmp_path_factory, tmp_path):
    folder = copied("gpt2", tmp_path_factory, tmp_path)
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError):
        base.inspect(str(folder))


@pytest.mark.parametrize("keep", [0, 4, 8, 9, 200, -1, -1000])
def test_cut_weights_are_refused(keep, tmp_path_factory, tmp_path):
    folder = copied("gpt2", tmp_path_factory, tmp_path)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"model\.safetensors") as caught:
        base.inspect(str(folder))
    assert caught.value.do == "fetch it anew"


HEADERS = [
    b"{}",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'{"a": 5}',
    b'{"a": {"data_offsets": 7}}',
    b'{"a": {"data_offsets": []}}',
    b'{"a": {"data_offsets": ["x", "y"]}}',
    b'{"a": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 16]}}',
    b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [8, 16]}}',
    b'{"a":' * 5000,
]


@pytest.mark.parametrize("header", HEADERS)
def test_a_lying_header_is_refused(header, tmp_path_factory, tmp_path):
    folder = copied("gpt2", tmp_path_factory, tmp_path)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    with pytest.raises(ModelError):
        load.load(base.inspect(str(folder)), LANGUAGE)


def test_a_pickle_is_not_opened(tmp_path_factory, tmp_path):
    folder = copied("gpt2", tmp_path_factory, tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(ModelError, match=r"only pytorch_model\.bin") as caught:
        base.inspect(str(folder))
    assert "safetensors" in caught.value.do
    assert load.load(base.inspect(str(folder), random=True), LANGUAGE)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value, tmp_path_factory, tmp_path):
    folder = copied("gpt2", tmp_path_factory, tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["transformer.ln_f.weight"][0] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="NaN or infinity"):
        load.load(base.inspect(str(folder)), LANGUAGE)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8])
def test_quantised_weights_are_not_taken_for_plain_ones(dtype, tmp_path_factory, tmp_path):
    """Without their scales, which lie beside them, they are other weights."""
    folder = copied("llama", tmp_path_factory, tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"] = weights["model.layers.0.mlp.up_proj.weight"].to(dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="quantised weights") as caught:
        base.inspect(str(folder))
    assert "bfloat16" in caught.value.do


def test_an_adapter_is_no_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(ModelError, match="holds an adapter"):
        base.inspect(str(tmp_path))


def test_of_two_sets_of_weights_the_one_is_read_that_transformers_reads(tmp_path_factory, tmp_path):
    folder = copied("llama", tmp_path_factory, tmp_path)
    weights = load_file(folder / "model.safetensors")
    save_file({name: value * 2 for name, value in weights.items()}, folder / "model-00001-of-00001.safetensors")
    told = {"weight_map": dict.fromkeys(weights, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(told))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).model.norm.weight
    assert torch.equal(load.load(base.inspect(str(folder)), LANGUAGE).hf.model.norm.weight, theirs)


def test_missing_weights_are_never_made_up(tmp_path_factory, tmp_path):
    """transformers would draw them at random and only warn."""
    folder = copied("gpt2", tmp_path_factory, tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for head in ("language", "classes"):
        with pytest.raises(ModelError, match="lack"):
            load.load(base.inspect(str(folder)), tiny.HEADS[head])


def test_weights_of_another_size_are_refused(tmp_path_factory, tmp_path):
    folder = edited(copied("gpt2", tmp_path_factory, tmp_path), vocab_size=50)
    with pytest.raises(ModelError):
        load.load(base.inspect(str(folder)), LANGUAGE)


def test_half_precision_weights_become_float32(tmp_path_factory, tmp_path):
    folder = edited(copied("gpt2", tmp_path_factory, tmp_path), dtype="bfloat16")
    weights = {name: value.bfloat16() for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model = load.load(base.inspect(str(folder)), LANGUAGE)
    assert {value.dtype for value in model.hf.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_random_weights_are_drawn_from_the_seed(kind, tmp_path_factory):
    found = base.inspect(str(tiny.folder(kind, tmp_path_factory)), random=True)
    same, again, other = (dict(load.load(found, LANGUAGE, seed=s).hf.named_parameters()) for s in (1, 1, 2))
    assert all(torch.equal(value, again[name]) for name, value in same.items())
    assert any(not torch.equal(value, other[name]) for name, value in same.items())


@pytest.mark.parametrize("dropout", [None, 0.0, 0.3])
@pytest.mark.parametrize("kind", ["gpt2", "bert", "bart", "t5"])
def test_dropout_is_set_everywhere_or_left_as_shipped(kind, dropout, tmp_path_factory):
    model = load.load(base.inspect(str(tiny.folder(kind, tmp_path_factory))), tiny.HEADS["classes"], dropout=dropout)
    found = {item.p for item in model.hf.modules() if isinstance(item, torch.nn.Dropout)}
    assert found <= ({0.1, 0.0} if dropout is None else {dropout})


def test_without_dropout_no_layer_is_skipped(tmp_path_factory, tmp_path):
    folder = edited(copied("bart", tmp_path_factory, tmp_path), encoder_layerdrop=0.5, attention_dropout=0)
    found = base.inspect(str(folder))
    shipped, none, some = (load.load(found, LANGUAGE, dropout=share).hf.config for share in (None, 0.0, 0.3))
    assert [hf.encoder_layerdrop for hf in (shipped, none, some)] == [0.5, 0.0, 0.5]
    assert [hf.attention_dropout for hf in (shipped, none, some)] == [0, 0, 0.3]
    assert describe.drops(shipped, None)
    assert not describe.drops(none, 0.0)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_logits_only_where_asked(kind, tmp_path_factory):
    """The N supervised positions give what all T positions give."""
    model = tiny.model(kind, "language", tmp_path_factory).eval()
    batch = collate(tiny.ready_rows("selfsupervised", kind, "document", tmp_path_factory), 0)
    with torch.no_grad():
        out = model(batch)
        whole = model.logits(batch, torch.arange(batch.ids.shape[1]))
    shift = kind in tiny.DECODERS
    row, place = torch.nonzero(batch.weights[:, 1:] if shift else batch.weights, as_tuple=True)
    assert out.logits.shape == (len(row), model.base.vocabulary)
    torch.testing.assert_close(out.logits, whole[row, place], rtol=1e-5, atol=1e-5)
    told = (batch.ids if batch.targets is None else batch.targets)[row, place + shift]
    assert torch.equal(out.targets, told)
    assert torch.equal(out.row, row)


def test_an_evaluation_batch_without_targets_gives_nothing(tmp_path_factory):
    model = tiny.model("gpt2", "language", tmp_path_factory).eval()
    out = model(collate(tiny.rows("gpt2", "classes", tmp_path_factory), 0))
    assert out.logits.shape == (0, model.base.vocabulary)


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("labels", [("no", "yes"), tiny.LABELS])
def test_a_classifier_is_a_base_for_other_classes(kind, labels, tmp_path_factory, tmp_path):
    """Its body is kept; its head is trained anew under every adapter, also when the number of classes is the same."""
    first = tiny.model(kind, "classes", tmp_path_factory)
    full.save(first, tmp_path, "base")
    shutil.copyfile(first.base.folder / "tokenizer.json", tmp_path / "tokenizer.json")
    found = base.inspect(str(tmp_path))
    second = load.load(found, Head("classes", labels), dropout=0.0)
    assert second.hf.config.num_labels == len(labels)
    body = f"{second.hf.base_model_prefix}."
    assert second.fresh == {name for name in dict(second.hf.named_parameters()) if not name.startswith(body)}
    before, after = dict(first.hf.named_parameters()), dict(second.hf.named_parameters())
    assert all(torch.equal(before[name], value) for name, value in after.items() if name not in second.fresh)
    lora.attach(second, {}, 0.0, 0)
    assert second.fresh <= set(second.trainable())
