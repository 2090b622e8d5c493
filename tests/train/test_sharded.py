"""Each of two processes reads its share of a base and no more; what they have together is the base."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import apart
import pytest
import tiny
import transformers
from safetensors.torch import load_file, save_file
from test_distributed import two, world

from burnish import store, workflow
from burnish.adapters import _whole
from burnish.artifact import load as load_artifact
from burnish.models.load import load
from burnish.train import costs, standard
from burnish.train.terms import Machine

HERE = Path(__file__).parent


def apart_on_two(work: str, folder: Path) -> list[dict[str, Any]]:
    """What each of two ranks says."""
    two([sys.executable, str(HERE / "apart.py"), work, str(folder)], folder)
    return [json.loads((folder / f"seen-{rank}.json").read_text()) for rank in range(2)]


def test_each_rank_reads_its_rows_and_all_have_the_base(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six families, and llama with every adapter; beside its share a rank holds one tensor at most."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for kind in tiny.KINDS:
        shutil.copytree(tiny.folder(kind, tmp_path_factory), tmp_path / "models" / f"tiny-{kind}")
    spoiled = tmp_path / "models" / "spoiled"
    shutil.copytree(tmp_path / "models" / "tiny-llama", spoiled)
    kept = load_file(spoiled / "model.safetensors")
    kept["model.layers.1.mlp.up_proj.weight"][:] = float("nan")
    save_file(kept, spoiled / "model.safetensors", metadata={"format": "pt"})
    ranks = apart_on_two("shares", tmp_path)
    assert len(ranks[0]) == len(tiny.KINDS) + len(apart.RUNGS) + 1
    for told in ranks:
        assert "up_proj" in told.pop("refused")
        for name, seen in told.items():
            assert seen["equal"], name
            assert seen["cut"], name
            assert seen["tied"], name
            assert seen["packs"] == [True, True, True], name
            assert seen["apart"] < 1e-5, name
            assert seen["read"] == seen["kept"], name  # bytes: files are in float32 here
            assert seen["largest"] <= seen["whole"] / 3, name
    for name in ranks[0]:
        assert sum(told[name]["read"] for told in ranks) == ranks[0][name]["whole"], name
        assert max(told[name]["read"] for told in ranks) < 0.6 * ranks[0][name]["whole"], name


@pytest.mark.slow
def test_memory_stays_near_the_share(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """136 M weights, 545 MB in the float32 of an ordinary load; a rank keeps 136 MB, two fetched layers take 134."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    source, large = tiny.folder("llama", tmp_path_factory), tmp_path / "models" / "large"
    shutil.copytree(source, tmp_path / "models" / "tiny-llama")
    shutil.copytree(source, large, ignore=lambda folder, names: ["model.safetensors"])
    config = json.loads((source / "config.json").read_text())
    config |= {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, "num_attention_heads": 8}
    config |= {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 1000, "dtype": "bfloat16"}
    (large / "config.json").write_text(json.dumps(config))
    hf = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).bfloat16()
    hf.save_pretrained(large, max_shard_size="100MB")
    for told in apart_on_two("memory", tmp_path):
        assert told["loaded"] - told["now"] < 300e6


@pytest.mark.slow
def test_a_run_goes_on_from_its_checkpoint_and_not_from_what_was_fetched_before(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass before the first step leaves the outermost weights whole, and a checkpoint is put into the shares."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("BURNISH_HOME", str(tmp_path / "home"))
    shutil.copytree(tiny.folder("llama", tmp_path_factory), tmp_path / "models" / "tiny-llama")
    told = apart_on_two("pairs", tmp_path)[0]
    assert told["loss"][0][2:] == told["loss"][1]
    assert told["weights"][0] == told["weights"][1]


@pytest.mark.parametrize(
    "rung", ["partial", pytest.param("full", marks=pytest.mark.slow), pytest.param("qlora", marks=pytest.mark.slow)]
)
def test_a_cut_model_is_saved_in_parts(
    rung: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks and one save the same artifact, frozen weights and all."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(store, "_stop", False)
    task = str(world(tmp_path, tmp_path_factory, 4))
    saved, losses = [], []
    for devices in (1, 2):
        monkeypatch.setenv("BURNISH_HOME", str(tmp_path / str(devices)))
        told: list[float] = []

        def say(rung: str, event: Any, told: list[float] = told) -> None:
            if event.kind == "step":
                told.append(event.numbers["loss"])

        made = workflow.train(task, rung=rung, devices=devices, shard=devices > 1, say=say)
        saved.append(dict(load_artifact(str(made.artifact)).model().hf.state_dict()))
        losses.append(told)
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert saved[0].keys() == saved[1].keys()
    assert max(float((saved[0][name] - value).abs().max()) for name, value in saved[1].items()) < 1e-5


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_large_model_is_saved_in_several_files(
    kind: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.model(kind, "language", tmp_path_factory)
    monkeypatch.setattr(_whole, "LIMIT", 20_000)
    _whole.save(model, tmp_path, "")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    assert all(path.stat().st_size < 30_000 for path in files)
    again = load(model.base, model.head, files=tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, value in model.hf.state_dict().items():
        assert (again.hf.state_dict()[name] == value).all()
        assert (theirs.state_dict()[name] == value).all()
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("rung", "ranks", "gigabytes", "layers"),
    [("lora", 8, 26, 3.4), ("qlora", 8, 10.2, 0.9), ("full", 64, 31, 3.4), ("full", 512, 11, 3.4)],
)
def test_a_plan_knows_that_a_model_is_cut(rung: str, ranks: int, gigabytes: float, layers: float) -> None:
    """Llama 3.1 70B, by the columns of docs/scale.md: what is kept for good, and what is whole for a while."""
    number = [name for name, *_ in standard.SIZES].index("Llama 3.1 70B")
    work = replace(standard.work(number, rung, 2), ranks=ranks, device="cuda")
    parts = costs.memory(work, 512, True, Machine(0.0, 0.0, 1e12, {}, gpu=141e9))
    kept = sum(parts.get(name, 0.0) for name in ("weights", "optimizer", "gradients", "best weights", "fetched"))
    assert kept / 1e9 == pytest.approx(gigabytes, rel=0.1)
    assert parts["fetched"] / 1e9 == pytest.approx(4.2 + layers, rel=0.1)
    whole = costs.memory(replace(work, ranks=1), 512, True, Machine(0.0, 0.0, 1e12, {}, gpu=141e9))
    assert whole["peak"] > (42e9 if rung == "qlora" else 141e9)
