"""DPO beside TRL's DPOTrainer, in one run: the same weights, pairs and adapter, LoRA on a Llama of 135M.

    python benchmarks/dpo.py [--rounds 3] [--steps 2] [--engines ours,trl-best,trl-default] [--threads 1] [--json]

Every measurement is a fresh process; the engines take turns.  Prompts and answers have the lengths of hh-rlhf's (median
130 and 55 tokens).  A pair counts as its two rows, prompt and answer each, whoever reads them once or twice.  `rate` is
of the optimizer steps after the first; `epoch` has the reference's pass over the same pairs in it, as every first epoch
does.  The losses of the first step are compared too: ln 2, by definition.

`trl-best` has its reference worked out beforehand, bf16 weights, nothing recomputed, and the fewest padded tokens (two
pairs at once); its padding_free does nothing in TRL 1.16.  A setting is tried by `trl-best:rows=1+attention=sdpa`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import train
from engines.job import Clock, Enough, Job, peak_memory

BATCH, PACK = 8, 2048  # pairs a step; tokens a pack
ENGINES: dict[str, dict[str, Any]] = {
    "ours": {"shared": True},
    "ours-apart": {"shared": False},
    "trl-best": {"attention": "sdpa", "rows": 2, "weights": "bfloat16", "recompute": False, "precomputed": True},
    "trl-default": {"attention": "sdpa", "rows": 8, "weights": "float32", "recompute": True, "precomputed": False},
}
Pair = tuple[list[int], list[int], list[int]]  # prompt, chosen, rejected


def drawn(count: int, words: int) -> list[Pair]:
    """Random ids below `words` in the lengths of hh-rlhf: log-normal."""
    import numpy as np

    draw = np.random.default_rng(0)
    sizes = np.clip(draw.lognormal(np.log([130, 55, 55]), [0.7, 0.75, 0.75], (count, 3)).astype(int), 4, 600)

    def ids(size: int) -> list[int]:
        return [int(i) for i in draw.integers(4, words, size)]

    return [(ids(prompt), ids(chosen), ids(rejected)) for prompt, chosen, rejected in sizes.tolist()]


def ours(job: Job, clock: Clock, pairs: list[Pair]) -> dict[str, Any]:
    import numpy as np

    from burnish import kinds
    from burnish.models import base, load, placement, quicken
    from burnish.task import Train
    from burnish.tokens.batch import Batches
    from burnish.tokens.rows import Tokens
    from burnish.train import loop, optim, reference
    from burnish.train.run import Run
    from burnish.train.timetable import timetable

    found, adapter = base.inspect(job.model), kinds.load("adapters", "lora")
    precision = optim.DTYPES[optim.precision("auto", placement.best())]
    made = load.load(found, base.Head("language"), dropout=0.0, dtype=precision)
    own = {item.name: item.default for item in kinds.settings("adapters", "lora")}
    adapter.attach(made, own | {"rank": 16, "alpha": 32.0}, 0.0, 0)
    quicken.install(made.hf)

    def row(number: int, prompt: list[int], answer: list[int], rejected: Tokens | None = None) -> Tokens:
        weights = np.repeat(np.array([0, 1], np.float32), [len(prompt), len(answer)])
        return Tokens(np.array(prompt + answer, np.int32), weights, str(number), str(number), rejected=rejected)

    rows = [row(i, prompt, chosen, row(i, prompt, rejected)) for i, (prompt, chosen, rejected) in enumerate(pairs)]
    settings = Train(batch_size=BATCH, max_steps=job.steps, epochs=0, learning_rate=job.rate, warmup=1, patience=0)
    method = kinds.load("methods", "dpo")
    run = Run(
        made,
        method,
        method.Settings(),
        settings,
        timetable(settings, len(rows), found.width, adapter.RATE),
        Batches(rows, BATCH, PACK, 0, 0, packed=made.packs, shared=made.shares and job.how["shared"]),
        None,
        Path(tempfile.mkdtemp()) / "checkpoints",
        {"run": "benchmark"},
        precision,
    )
    referring: list[float] = []
    plain = reference.refer

    def timed(run: Run) -> Any:
        began = time.perf_counter()
        yield from plain(run)
        referring.append(time.perf_counter() - began)
        return 0.0

    reference.refer = timed
    losses = []
    try:
        for event in loop.fit(run):
            if event.kind == "step":
                losses.append(event.numbers["loss"])
                clock.step()
    except Enough:
        pass
    return {"referring": referring[0], "loss": losses[0]}


def trl(job: Job, clock: Clock, pairs: list[Pair]) -> dict[str, Any]:
    import datasets
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer  # type: ignore[attr-defined]

    datasets.disable_progress_bars()
    how, cuda, referring, losses = job.how, torch.cuda.is_available(), [0.0], []

    class Timed(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *others: Any, **named: Any) -> Any:
            return dataset  # it is ids already

        def _precompute_ref_logps(self, *others: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return super()._precompute_ref_logps(*others, **named)
            finally:
                referring[0] += time.perf_counter() - began

        def _compute_loss(self, *others: Any, **named: Any) -> Any:
            told = super()._compute_loss(*others, **named)
            losses.append(float((told[0] if isinstance(told, tuple) else told).detach()))
            return told

    made = Timed(
        AutoModelForCausalLM.from_pretrained(
            job.model, dtype=getattr(torch, how["weights"]), attn_implementation=how["attention"]
        ),
        args=DPOConfig(
            output_dir=tempfile.mkdtemp(),
            max_steps=job.steps,
            learning_rate=job.rate,
            warmup_steps=1,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=not cuda,
            bf16=True,
            max_length=None,
            per_device_train_batch_size=how["rows"],
            gradient_accumulation_steps=BATCH // how["rows"],
            gradient_checkpointing=how["recompute"],
            precompute_ref_log_probs=how["precomputed"],
        ),
        train_dataset=datasets.Dataset.from_dict(
            dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), map(list, zip(*pairs, strict=True)), strict=True))
        ),
        processing_class=AutoTokenizer.from_pretrained(job.model),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    clock.watch()
    try:
        made.train()
    except Enough:
        pass
    return {"referring": referring[0], "loss": statistics.mean(losses[: BATCH // how["rows"]])}


def one(job: Job) -> None:
    """One engine, in a process of its own: every step reads BATCH pairs that no other step reads."""
    clock, pairs = Clock(job), drawn(BATCH * job.steps, train.INNER[Path(job.model).name][1])
    told = (ours if "shared" in job.how else trl)(job, clock, pairs)
    told |= {"memory": peak_memory()}
    counted = clock.told()
    whole = sum(2 * len(prompt) + len(chosen) + len(rejected) for prompt, chosen, rejected in pairs)
    each, step = told.pop("referring") / whole, whole / job.steps
    seconds = counted["seconds"] / (job.steps - 1) / step  # of a token; steps hold about as many each
    print("RESULT", json.dumps(told | {"rate": 1 / seconds, "epoch": 1 / (seconds + each), "first": counted["first"]}))


def measure(name: str, model: Path, steps: int, threads: int) -> dict[str, Any]:
    """A fresh process; what it told, or {"failed": why}."""
    base, _, own = name.partition(":")
    how = dict(ENGINES[base])
    for item in own.split("+") if own else ():
        key, _, value = item.partition("=")
        how[key] = json.loads(value) if value in ("true", "false") or value.isdigit() else value
    job = Job("dpo", str(model), "", "lora", PACK, 1, BATCH, steps + 1, 5e-5, time.time(), how)
    keep = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 33)}  # as train.py
    environment = os.environ | keep | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--one", json.dumps(vars(job))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return json.loads(lines[-1][7:]) if lines else {"failed": done.stderr[-2000:]}


def main() -> int:
    read = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    read.add_argument("--rounds", type=int, default=3)
    read.add_argument("--steps", type=int, default=2, help="counted optimizer steps, after one that is not")
    read.add_argument("--engines", default="ours,ours-apart,trl-best,trl-default")
    read.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    read.add_argument("--size", default="135m", help=", ".join(train.SIZES))
    read.add_argument("--json", action="store_true")
    read.add_argument("--one", help=argparse.SUPPRESS)
    told = read.parse_args()
    if told.one:
        one(Job(**json.loads(told.one)))
        return 0
    versions = train.versions()
    print("  ".join(f"{name} {value}" for name, value in versions.items()), f" threads {told.threads}", flush=True)
    names = told.engines.split(",")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        model = train.build(Path(folder), told.size)
        for number in range(told.rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                row = measure(name, model, told.steps, told.threads)
                found[name].append(row)
                print(f"  round {number + 1} {name}: {_shown(row)}", flush=True)
    results: dict[str, Any] = {"tokens_per_second_ratio": {}, "epoch_ratio": {}, "peak_memory_ratio": {}, "loss": {}}
    for name, rows in found.items():
        whole = [(mine, row) for mine, row in zip(found["ours"], rows, strict=True) if "rate" in mine and "rate" in row]
        if not whole:
            continue
        results["loss"][name] = statistics.mean(row["loss"] for _, row in whole)
        if name != "ours":
            for key, of in (
                ("tokens_per_second_ratio", "rate"),
                ("epoch_ratio", "epoch"),
                ("peak_memory_ratio", "memory"),
            ):
                results[key][name] = statistics.median(mine[of] / row[of] for mine, row in whole)
            print(
                f"  ours / {name}: steps {results['tokens_per_second_ratio'][name]:.2f}, with the reference "
                f"{results['epoch_ratio'][name]:.2f}, memory {results['peak_memory_ratio'][name]:.2f}"
            )
    print(f"  first loss less ln 2: { {name: round(loss - math.log(2), 5) for name, loss in results['loss'].items()} }")
    if told.json:
        print(json.dumps({"versions": versions, "rounds": found, **results}))
    return 0


def _shown(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"failed: {row['failed'][-300:]}"
    return f"{row['rate']:.0f} tokens/s, with the reference {row['epoch']:.0f}, peak {row['memory'] / 1e9:.2f} GB"


if __name__ == "__main__":
    sys.exit(main())
