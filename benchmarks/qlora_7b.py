"""A 7B architecture tuned on a small machine: `burnish train --rung qlora` on random weights, start to saved artifact.

    python benchmarks/qlora_7b.py [--layers 32] [--limit 12] [--json]

Llama's 7B shape (4096 wide, 32 layers, 11008 inside, 32000 tokens; 6.74 billion numbers) from a config.json alone:
every layer is drawn and quantised in turn.  Three steps of four short rows.  Tells the seconds to each stage and the
peak resident memory of the process; exit code 1 when that is over `--limit` GiB.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import burnish

SHAPE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TASK = """
name: qlora-7b
goal: {task: answer}
data: {files: [rows.jsonl], validation: 0.0, test: 0.2}
base: {name: base, weights: random}
method: {kind: sft}
train: {max_steps: 3, batch_size: 4, precision: bf16}
"""


def write(folder: Path, layers: int) -> None:
    """A model folder without weights, rows and a task."""
    tiny = Path(burnish.__file__).parent / "bundled" / "burnish-tiny"
    (folder / "base").mkdir()
    for file in tiny.glob("*token*"):
        shutil.copyfile(file, folder / "base" / file.name)
    config = {**SHAPE, "num_hidden_layers": layers}
    (folder / "base" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    words = ("red", "blue", "green", "black", "white", "brown", "grey", "pink", "gold", "plum")
    rows = [{"prompt": f"Which colour has number {i}?", "completion": f"It is {word}."} for i, word in enumerate(words)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 2), encoding="utf-8")
    (folder / "task.yaml").write_text(TASK, encoding="utf-8")


def main() -> None:
    told = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    told.add_argument("--layers", type=int, default=32)
    told.add_argument("--limit", type=float, default=12.0, help="GiB")
    told.add_argument("--json", action="store_true")
    asked = told.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write(folder, asked.layers)
        clock = time.time()
        command = [sys.executable, "-m", "burnish.cli.main", "train", str(folder / "task.yaml"), "--rung", "qlora"]
        done = subprocess.run(command, env={**os.environ, "BURNISH_HOME": str(folder / "home")}, check=False)
        seconds = time.time() - clock
        events = next(folder.glob("home/runs/*/rungs/qlora/events.jsonl"))
        steps = [row for row in map(json.loads, events.read_text().splitlines()) if row["kind"] == "step"]
        saved = sum(file.stat().st_size for file in events.parent.glob("artifact/*"))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    result = {
        "exit": done.returncode,
        "losses": [round(row["loss"], 4) for row in steps],
        "seconds": round(seconds, 1),
        "seconds_of_steps": [round(row["tokens"] / row["tokens_per_second"], 1) for row in steps],
        "saved_MB": round(saved / 1e6, 1),
        "peak_GiB": round(peak, 2),
    }
    print(json.dumps(result) if asked.json else "\n".join(f"{key:18} {value}" for key, value in result.items()))
    sys.exit(done.returncode or peak > asked.limit)


if __name__ == "__main__":
    main()
