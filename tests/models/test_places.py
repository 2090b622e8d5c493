"""Weights that stay in their files until they are needed are, tensor by tensor, those of an ordinary load."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from safetensors.torch import load_file, save_file

from burnish import kinds
from burnish.errors import ModelError
from burnish.models import base, load, places, quicken

CASES = [(kind, head) for kind in tiny.KINDS for head in ("language", "classes")]
CPU = torch.device("cpu")


def same(first, second):
    told = [dict(model.hf.state_dict()) | dict(model.hf.named_buffers()) for model in (first, second)]
    assert told[0].keys() == told[1].keys()
    return all(torch.equal(told[0][name], told[1][name]) for name in told[0])


def both(folder, head="language"):
    """A model as transformers reads it, and one whose weights are still in their files."""
    found = base.inspect(str(folder))
    plain, late = (load.load(found, tiny.HEADS[head], outlined=outlined) for outlined in (False, True))
    auto = getattr(transformers, load._auto(found, tiny.HEADS[head]))
    torch.manual_seed(0)
    hf = auto.from_pretrained(folder, config=plain.hf.config, dtype=torch.float32, ignore_mismatched_sizes=True)
    assert all(torch.equal(value, hf.state_dict()[name]) for name, value in plain.hf.state_dict().items())
    plain.hf = hf
    return [plain, late]


@pytest.mark.parametrize(("kind", "head"), CASES)
def test_what_is_filled_is_an_ordinary_load(kind, head, tmp_path_factory):
    plain, late = both(tiny.folder(kind, tmp_path_factory), head)
    waiting = [value for value in late.parameters() if value.is_meta]
    assert len(waiting) == len(places.of(late)) == sum(1 for name, _ in late.hf.named_parameters()) - len(late.fresh)
    assert late.fresh == plain.fresh
    places.fill(late, CPU)
    assert same(plain, late)
    assert not places.of(late)
    names = [sorted(name for name, _ in model.hf.named_parameters()) for model in (plain, late)]
    assert names[0] == names[1]  # tied as before


def test_a_module_that_computes_otherwise_is_left_alone_although_its_weights_are_not_there(tmp_path):
    """Gemma's norm has the name of Llama's and multiplies by 1 + weight: it is tried, and not taken at its name."""
    ids = tiny.write_tokenizer("llama", tmp_path)
    config = transformers.GemmaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        vocab_size=len(ids),
    )
    transformers.GemmaForCausalLM(config).save_pretrained(tmp_path)
    told = [quicken.install(model.hf) for model in both(tmp_path)]
    assert told == [{"norm": 0, "gated": 0, "gelu": 0, "attention": 2}] * 2


@pytest.mark.parametrize("rung", ["lora", "dora", "prompt-tuning", "partial"])
def test_adapters_are_put_on_weights_that_are_not_there_yet(rung, tmp_path_factory):
    made = both(tiny.folder("llama", tmp_path_factory))
    for model in made:
        adapter = kinds.load("adapters", "lora" if rung == "dora" else rung)
        adapter.attach(model, {"use_dora": True} if rung == "dora" else {}, 0.0, 3)
    assert [quicken.install(model.hf) for model in made] == [{"norm": 5, "gated": 2, "gelu": 0, "attention": 2}] * 2
    trained = [model.trainable() for model in made]
    assert trained[0].keys() == trained[1].keys()
    places.fill(made[1], CPU)
    assert same(*made)


def test_weights_are_lent_and_given_back(tmp_path_factory):
    plain, late = both(tiny.folder("llama", tmp_path_factory))
    layer = late.hf.model.layers[0]
    ids = [id(value) for value in layer.parameters()]
    with places.present(layer):
        for a, b in zip(layer.parameters(), plain.hf.model.layers[0].parameters(), strict=True):
            assert torch.equal(a, b)
        assert late.hf.lm_head.weight.is_meta
    assert all(value.is_meta for value in layer.parameters())
    assert ids == [id(value) for value in layer.parameters()]


def test_only_the_rows_asked_for_are_read(tmp_path):
    value = torch.arange(60.0).view(10, 6).to(torch.bfloat16)
    save_file({"a": value, "b": torch.tensor(3.5), "c": torch.zeros(0, 4)}, tmp_path / "model.safetensors")
    stored = dict(places._stored(tmp_path))
    for start, end in ((0, None), (0, 10), (2, 7), (9, 10), (10, 10), (8, 12)):
        assert torch.equal(stored["a"].rows(start, end), value[start:end])
    assert stored["b"].rows() == 3.5
    assert stored["c"].rows().shape == (0, 4)
    file = tmp_path / "model.safetensors"
    start = stored["a"].offset
    data = bytearray(file.read_bytes())
    data[start + 12 * 5 :] = b""  # nothing after the fifth row can be read
    file.write_bytes(data)
    assert torch.equal(stored["a"].rows(1, 5), value[1:5])
    with pytest.raises(ModelError, match="cut short"):
        stored["a"].rows(1, 6)


def test_files_are_those_of_the_index(tmp_path, tmp_path_factory):
    hf = transformers.AutoModelForCausalLM.from_pretrained(tiny.folder("llama", tmp_path_factory), dtype=torch.bfloat16)
    hf.save_pretrained(tmp_path, max_shard_size="10KB")
    save_file({"model.norm.weight": torch.full((32,), 7.0)}, tmp_path / "z-other.safetensors")
    plain, late = both(tmp_path)
    places.fill(late, CPU)
    assert same(plain, late)


@pytest.mark.parametrize("equal", [False, True])
def test_a_file_may_untie_what_the_configuration_ties(equal, tmp_path, tmp_path_factory):
    source = tiny.folder("gpt2", tmp_path_factory)
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    kept = load_file(source / "model.safetensors")
    name = next(name for name in kept if name.endswith("wte.weight"))
    kept["lm_head.weight"] = kept[name].clone() if equal else kept[name] + 1
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    plain, late = both(tmp_path)
    places.fill(late, CPU)
    assert same(plain, late)
    head = late.hf.lm_head.weight
    assert (head is late.hf.transformer.wte.weight) == (plain.hf.lm_head.weight is plain.hf.transformer.wte.weight)


def test_experts_that_files_hold_apart_are_put_together(tmp_path):
    """Mixtral's model has all experts in one tensor; of that, too, a part may be asked for."""
    config = transformers.MixtralConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=12, max_position_embeddings=32,
    )  # fmt: skip
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path)
    plain, late = both(tmp_path)
    made = {name: place for name, place in places.of(late.hf).items() if isinstance(place, places.Converted)}
    assert len(made) == 2
    for name, place in made.items():
        assert torch.equal(place.rows(3, 7), plain.hf.get_parameter(name)[3:7])
    places.fill(late, CPU)
    assert same(plain, late)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused_when_it_is_read(number, tmp_path, tmp_path_factory):
    source = tiny.folder("llama", tmp_path_factory)
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    kept = load_file(source / "model.safetensors")
    kept["model.layers.1.mlp.up_proj.weight"][3, 5] = number
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = load.load(base.inspect(str(tmp_path)), tiny.HEADS["language"], outlined=True)
    with pytest.raises(ModelError, match=r"up_proj.weight holds NaN or infinity"):
        places.fill(model, CPU)


def test_a_header_that_does_not_add_up_is_refused(tmp_path, tmp_path_factory):
    source = tiny.folder("llama", tmp_path_factory)
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    data = (source / "model.safetensors").read_bytes()
    long = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + long])
    head["model.norm.weight"]["shape"] = [31]
    text = json.dumps(head).encode().ljust(long)
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + long :])
    with pytest.raises(ModelError, match="broken header"):
        load.load(base.inspect(str(tmp_path)), tiny.HEADS["language"], outlined=True)


def test_what_files_lack_is_said_before_anything_is_read(tmp_path, tmp_path_factory):
    source = tiny.folder("llama", tmp_path_factory)
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    kept = load_file(source / "model.safetensors")
    del kept["model.layers.0.mlp.up_proj.weight"]
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 tensors.*up_proj"):
        load.load(base.inspect(str(tmp_path)), tiny.HEADS["language"], outlined=True)


READ = """
import sys
from pathlib import Path
import torch
from burnish import kinds
from burnish.models import base, load, places


def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


model = load.load(base.inspect(sys.argv[1]), base.Head("language"), outlined=True)
kinds.load("adapters", "lora").attach(model, {}, 0.0, 0)
cpu = torch.device("cpu")
Path("/proc/self/clear_refs").write_text("5")
before = peak()
places.fill(model, cpu, torch.bfloat16)
frozen = {str(value.dtype) for value in model.parameters() if not value.requires_grad}
trained = {str(value.dtype) for value in model.trainable().values()}
print(peak() - before, load.count(model.hf.parameters()), *frozen, *trained)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to tell a peak from now on")
def test_a_frozen_base_is_never_in_memory_in_float32(tmp_path):
    """A file of 160 MB in float32 read as bfloat16: 80 MB, a piece in both types beside it, and no whole tensor."""
    config = transformers.LlamaConfig(
        hidden_size=512,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=512,
        vocab_size=76_000,
        tie_word_embeddings=True,
    )
    tiny.write_tokenizer("llama", tmp_path)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    done = subprocess.run([sys.executable, "-c", READ, str(tmp_path)], capture_output=True, text=True, check=True)
    more, numbers, *types = done.stdout.split()
    assert types == ["torch.bfloat16", "torch.float32"]
    assert int(more) < 2 * int(numbers) + 6 * places.PIECE + 20e6 < 4 * int(numbers)
