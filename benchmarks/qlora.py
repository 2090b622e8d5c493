"""What 4 bits cost in speed: LoRA against QLoRA on the same layers, rows and update, in turn in one process.

    python benchmarks/qlora.py [--layers 8] [--tokens 1024] [--rounds 9] [--json]

Layers of the 135M Llama shape (576 wide, 1536 inside, 9 heads over 3), random weights, rank 16 on every linear layer,
one pack of `tokens` in documents of 128, bfloat16, the fused steps of training; a vocabulary of 512, so that the output
layer, which is not quantised, does not hide the difference.  A round times a step (forward, backward) of each; a ratio
is QLoRA's speed over LoRA's, per round, and the median is what counts: by the clock, and by the processor seconds of
this process, which other work on the machine does not stretch (with OMP_NUM_THREADS=1; waiting threads spend them too).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from burnish import kinds
from burnish.models import base, load, quicken
from burnish.models.base import Head
from burnish.models.model import Model
from burnish.tokens.batch import Batch, join
from burnish.tokens.rows import Tokens
from burnish.train.optim import Masters

SHAPE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 512,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


def model(rung: str, folder: Path) -> Model:
    found = base.inspect(str(folder))
    made = load.load(found, Head("language"), quantised=rung == "qlora")
    kinds.load("adapters", rung).attach(made, {"rank": 16, "alpha": 16.0}, 0.0, 0)
    quicken.install(made.hf)
    made.masters = Masters(made.hf, made.trainable(), torch.bfloat16)
    return made.train()


def step(made: Model, batch: Batch) -> np.ndarray:
    """Seconds of one forward and backward pass: by the clock, and of the processor."""
    method = kinds.load("methods", "sft")
    clocks = np.array([time.perf_counter(), time.process_time()])
    (method.loss(made(batch), batch, method.Settings()) / method.weight(batch)).backward()
    seconds = np.array([time.perf_counter(), time.process_time()]) - clocks
    made.masters.clear()
    return seconds


def main() -> None:
    told = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 8), ("tokens", 1024), ("rounds", 9)):
        told.add_argument(f"--{name}", type=int, default=default)
    told.add_argument("--json", action="store_true")
    asked = told.parse_args()
    draw = np.random.default_rng(0)
    rows = []
    for _ in range(asked.tokens // 128):
        weights = np.ones(128, np.float32)
        weights[0] = 0
        rows.append(Tokens(draw.integers(5, 500, 128).astype(np.int32), weights, "", ""))
    batch = join(rows)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "config.json").write_text(json.dumps({**SHAPE, "num_hidden_layers": asked.layers}))
        load.load(base.inspect(str(folder), random=True), Head("language")).hf.save_pretrained(folder)
        models = {rung: model(rung, folder) for rung in ("lora", "qlora")}
    for made in models.values():
        step(made, batch)
    rounds = np.array([[step(made, batch) for made in models.values()] for _ in range(asked.rounds)])  # (R, 2, 2)
    best = 1e3 * rounds.min(0) / asked.layers
    ratios = rounds[:, 0] / rounds[:, 1]
    result: dict[str, object] = {"layers": asked.layers, "tokens": asked.tokens, "threads": torch.get_num_threads()}
    for i, name in enumerate(("clock", "processor")):
        result |= {
            f"{name}_ms_per_layer": dict(zip(models, best[:, i].round(2).tolist(), strict=True)),
            f"{name}_rounds": ratios[:, i].round(3).tolist(),
            f"{name}_ratio": round(float(np.median(ratios[:, i])), 3),
        }
    print(json.dumps(result) if asked.json else "\n".join(f"{key:20} {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
