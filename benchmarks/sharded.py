"""What a rank holds in memory while a base is read and tuned, cut over several, against one that holds it all.

    python benchmarks/sharded.py [--rung lora|qlora] [--ranks 1,2] [--layers 18] [--steps 3] [--json]

A Llama of random bfloat16 weights (1,536 wide, 6,144 inside, vocabulary 32,000; 18 layers have 778 M weights, 1.56 GB)
in files of 300 MB, tuned by `burnish.train` in bfloat16 on the CPU.  Of each rank the largest resident memory the
kernel has seen (VmHWM): with libraries imported, when the base lies ready to train, after the last step, at the end.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

SHAPE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 1536,
    "intermediate_size": 6144,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}


def peak() -> float:
    """Largest resident memory of this process so far, in MB."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1e3 * 1.024


def make(folder: Path, layers: int) -> None:
    """A base and a task of ten rows, and no more than a layer in memory on the way."""
    import torch
    import transformers
    from safetensors.torch import save_file

    from burnish.models.base import BUNDLED

    base = folder / "base"
    base.mkdir()
    config = {**SHAPE, "num_hidden_layers": layers}
    (base / "config.json").write_text(json.dumps(config))
    for path in (BUNDLED / "burnish-tiny").glob("tokenizer*"):
        shutil.copyfile(path, base / path.name)
    with torch.device("meta"):
        hf = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    parts: list[dict[str, Any]] = [{}]
    where: dict[str, str] = {}
    for name, value in hf.state_dict().items():
        parts[-1][name] = torch.empty(value.shape, dtype=torch.bfloat16).normal_(0.0, 0.02)
        where[name] = f"model-{len(parts)}.safetensors"
        if sum(item.nbytes for item in parts[-1].values()) > 300e6:
            save_file(parts[-1], base / where[name], metadata={"format": "pt"})
            parts[-1] = {}
            parts.append({})
    save_file(parts[-1], base / f"model-{len(parts)}.safetensors", metadata={"format": "pt"})
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    with (folder / "rows.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["prompt", "completion"], *([f"Say {i}.", f"It is {i}."] for i in range(40))])


def rank(folder: Path, rung: str, ranks: int, steps: int) -> None:
    """One process of several, or the only one."""
    from burnish import workflow
    from burnish.train import sharded, tune

    assert sharded
    assert tune
    seen = {"before": peak()}

    def say(rung: str, event: Any) -> None:
        if event.kind == "started":
            seen["loaded"] = peak()
        elif event.kind == "step":
            seen["stepped"] = peak()
            seen["loss"] = event.numbers["loss"]

    told = ("train.precision=bf16", f"train.max_steps={steps}", "train.micro_tokens=512")
    workflow.train(str(folder / "task.yaml"), rung=rung, shard=ranks > 1, set=told, say=say)
    seen["ended"] = peak()
    (folder / f"seen-{ranks}-{os.environ.get('RANK', 0)}.json").write_text(json.dumps(seen))


def main() -> None:
    told = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    told.add_argument("--rung", default="lora")
    told.add_argument("--ranks", default="1,2")
    told.add_argument("--layers", type=int, default=18)
    told.add_argument("--steps", type=int, default=3)
    told.add_argument("--json", action="store_true")
    told.add_argument("--folder", help=argparse.SUPPRESS)
    told.add_argument("--of", type=int, help=argparse.SUPPRESS)
    asked = told.parse_args()
    if asked.folder:
        return rank(Path(asked.folder), asked.rung, asked.of, asked.steps)
    from burnish.train import launch

    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make(folder, asked.layers)
        (folder / "task.yaml").write_text(
            "goal: {task: chat}\ndata: {files: [rows.csv], near_duplicates: 1.0}\nbase: {name: ./base}\n"
            "train: {epochs: 0, batch_size: 4, evaluate_every: 1000, save_every: 1000}\n"
        )
        result["base"] = round(sum(path.stat().st_size for path in (folder / "base").glob("*.safetensors")) / 1e6)
        for ranks in map(int, asked.ranks.split(",")):
            os.environ["BURNISH_HOME"] = str(folder / f"home-{ranks}")
            words = [sys.executable, __file__, "--folder", place, "--rung", asked.rung, "--of", str(ranks)]
            words += ["--steps", str(asked.steps)]
            launch.run(words, launch.Cluster(ranks), folder / "logs", lambda told: None)
            result[str(ranks)] = [json.loads((folder / f"seen-{ranks}-{i}.json").read_text()) for i in range(ranks)]
    if asked.json:
        print(json.dumps(result))
        return
    print(f"base {result.pop('base')} MB\nranks  rank  before  loaded  stepped  ended (MB)  last loss")
    for ranks, each in result.items():
        for i, seen in enumerate(each):
            numbers = "  ".join(f"{seen[name]:6.0f}" for name in ("before", "loaded", "stepped", "ended"))
            print(f"{ranks:>5}  {i:>4}  {numbers}  {seen['loss']:.5f}")


if __name__ == "__main__":
    main()
