"""A base read tensor by tensor into 4 bits is the base read whole and then quantised, in a fraction of the memory."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import tiny
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from burnish.errors import ModelError
from burnish.models import base, load, quantize, shards
from burnish.models.quantize import Linear4

CASES = [(kind, head) for kind in tiny.KINDS for head in ("language", "classes")]


def whole(found, head):
    """Loaded in full, then quantised."""
    model = load.load(found, tiny.HEADS[head])
    shards.compress(model.hf, shards.linears(model.hf, head == "language", model.fresh))
    return model


def same(first, second):
    told = [dict(model.hf.state_dict()) | dict(model.hf.named_buffers()) for model in (first, second)]
    kept = [name for name in told[0] if not name.endswith(".unknown")]
    return told[0].keys() == told[1].keys() and all(torch.equal(told[0][name], told[1][name]) for name in kept)


@pytest.mark.parametrize(("kind", "head"), CASES)
def test_read_one_by_one_or_whole_is_the_same(kind, head, tmp_path_factory):
    found = base.inspect(str(tiny.folder(kind, tmp_path_factory)))
    model = load.load(found, tiny.HEADS[head], quantised=True)
    assert quantize.layers(model.hf)
    assert same(model, whole(found, head))
    assert model.fresh == load.load(found, tiny.HEADS[head]).fresh
    assert not any(value.is_meta for value in (*model.hf.parameters(), *model.hf.buffers()))


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 40), st.integers(1, 90), st.integers(1, 7), st.booleans(), st.integers(0, 9))
def test_shares_are_what_one_process_quantises(rows, width, ranks, transposed, seed):
    """Wherever blocks of 64 weights end, and the shares of ranks; a rank reads no more rows than its share lies in."""
    weight = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 0.02
    whole, layer = quantize.quantize(weight), Linear4(quantize.hollow((rows, width)), None, torch.float32, transposed)
    read = []

    def part(start=0, end=None):
        read.append((weight.T if transposed else weight)[start:end].clone())
        return read[-1]

    layer.place = SimpleNamespace(rows=part)

    def cut(parts, rank):
        each = -(-len(parts) // ranks)
        return min(rank * each, len(parts)), min((rank + 1) * each, len(parts))

    told = []
    for agree in (lambda own: told.append(own) or own, lambda own: torch.stack(told).amax(0)):
        shares = [
            shards.share("it", layer, cut(whole.codes, rank), cut(whole.scales, rank), agree) for rank in range(ranks)
        ]
    codes, scales, constants = zip(*shares, strict=True)
    assert torch.equal(torch.cat(codes), whole.codes)
    assert torch.equal(torch.cat(scales), whole.scales)
    layer.hold(whole)
    assert all(torch.equal(own, layer.constants) for own in constants)
    share = -(-len(whole.codes) // ranks) * 2
    assert transposed or max(part.numel() for part in read) <= share + 2 * (quantize.BLOCK + width)


def test_every_shard_is_read(tmp_path, tmp_path_factory):
    source = tiny.folder("llama", tmp_path_factory)
    hf = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    hf.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    found = base.inspect(str(tmp_path))
    assert same(load.load(found, tiny.HEADS["language"], quantised=True), whole(found, "language"))


def test_experts_that_files_hold_apart_are_put_together(tmp_path):
    """Mixtral's files hold each expert apart, its model all in one tensor."""
    config = transformers.MixtralConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=2, max_position_embeddings=32,
    )  # fmt: skip
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path)
    found = base.inspect(str(tmp_path))
    model = load.load(found, tiny.HEADS["language"], quantised=True)
    assert len(quantize.layers(model.hf)) >= 4
    assert same(model, whole(found, "language"))


def damaged(folder, source, change):
    """A copy of a model folder with its tensors changed."""
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    kept = load_file(source / "model.safetensors")
    change(kept)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return base.inspect(str(folder))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused(number, tmp_path, tmp_path_factory):
    def spoil(kept):
        kept["model.layers.1.mlp.up_proj.weight"][3, 5] = number

    found = damaged(tmp_path / "made", tiny.folder("llama", tmp_path_factory), spoil)
    with pytest.raises(ModelError, match=r"up_proj.* holds NaN or infinity"):
        load.load(found, tiny.HEADS["language"], quantised=True)


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"])
@pytest.mark.parametrize("cut", [False, True])
def test_a_weight_that_is_missing_or_of_another_size_is_refused(name, cut, tmp_path, tmp_path_factory):
    def spoil(kept):
        value = kept.pop(name)
        if cut:
            kept[name] = value[:-1].clone()

    found = damaged(tmp_path / "made", tiny.folder("llama", tmp_path_factory), spoil)
    with pytest.raises(ModelError, match=f"lack 1 tensors.*{name}"):
        load.load(found, tiny.HEADS["language"], quantised=True)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_random_weights_follow_the_model_s_own_rule_and_the_seed(kind, tmp_path_factory):
    found = base.inspect(str(tiny.folder(kind, tmp_path_factory)), random=True)
    first, again, other = (load.load(found, tiny.HEADS["language"], seed=s, quantised=True) for s in (1, 1, 2))
    assert same(first, again)
    assert not same(first, other)
    plain = dict(load.load(found, tiny.HEADS["language"], seed=1).hf.named_parameters())
    assert not any(value.is_meta for value in (*first.hf.parameters(), *first.hf.buffers()))
    for name, item in quantize.layers(first.hf).items():
        made = item.dequantized(torch.float32).std()
        assert made == pytest.approx(plain[f"{name}.weight"].std().item(), rel=0.25)


MEASURE = """
import resource, sys
from burnish.models import base, load
from burnish.models.base import Head
found = base.inspect(sys.argv[1], random=sys.argv[2] == "random")
load.load(base.inspect(sys.argv[3]), Head("language"), quantised=True)  # everything imported and warm
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = load.load(found, Head("language"), quantised=True)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["read", "random"])
def test_memory_peaks_near_the_quantised_size(weights, tmp_path, tmp_path_factory):
    """100 M weights: 52 MB in 4 bits, 200 in bfloat16, 400 in float32; embeddings 8; the largest tensor 17 MB."""
    source = tiny.folder("llama", tmp_path_factory)
    config = json.loads((source / "config.json").read_text())
    config |= {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 6, "num_attention_heads": 8}
    config |= {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 1000}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    if weights == "read":
        hf = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).to(torch.bfloat16)
        hf.save_pretrained(tmp_path)
    command = [sys.executable, "-c", MEASURE, str(tmp_path), weights, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 150e6
