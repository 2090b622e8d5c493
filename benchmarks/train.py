"""Training speed, memory and result beside the peers, in one run: the same weights, rows and trained tokens.

    python benchmarks/train.py [--rounds 5] [--cases lora,full,...] [--engines ours,trl-best,...] [--steps 2]
                               [--threads 2,1] [--out FILE [--resume]] [--json]

Every measurement is a fresh process; the engines of a case take turns, round after round, and all rounds are shown, the
failed ones with their reason.  Speed is real tokens a second over the steps after the first, with memory that is kept
and not handed back on both sides.  `*-memory` reads peak memory with the same packs and activations recomputed by all;
`learned-*` trains a small model to its end with three seeds and judges it (benchmarks/learned.py).  --out keeps each
measurement as it is made; --resume goes on from there, tries failed ones again, and only prints where nothing is left.
Others' work and stolen time stand beside each, and a product's speed, measured when it ends.
A setting of an engine is tried by ENGINE:key=value, e.g. `--engines trl-best,trl-best:attention=sdpa`.

TRL and transformers are `pip install trl peft datasets`.  LLaMA Factory and LitGPT want older libraries and are run by
another Python, named by BURNISH_PEER_LLAMAFACTORY and BURNISH_PEER_LITGPT; each in a virtual environment of its own:
    pip install torch==2.13.0; pip install llamafactory==0.9.5 torch==2.13.0; pip uninstall torchvision
    pip install torch==2.13.0; pip install litgpt==0.5.13 torch==2.13.0
(beside PyTorch for CPUs torchvision 0.28.0 fails with "operator torchvision::nms does not exist", and torchaudio 2.11.0
with "Could not load this library"; only images and sounds need them).  Neither classifies, nor does TRL.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import learned
from engines.job import Job, fingerprint, run

ROWS, LONGEST, PACK, PACKS = 512, 1022, 1024, 6  # rows drawn; longest row; tokens a pack; packs an optimizer step
MEAN = 174  # tokens of a row
SEEDS = 3  # of what is learned
FLOPS = {"lora": 0.55e9, "full": 0.77e9}  # of products a real token of the 135m model: the matrix-multiply floor
SIZES = {  # Llama architectures with random weights
    "135m": {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3},
    "1b": {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8},
    "15m": {"hidden_size": 288, "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 6},
}
INNER = {"135m": (1536, 49152), "15m": (768, 32000), "1b": (8192, 128256)}
CASES: dict[str, dict[str, Any]] = {
    "lora": {"size": "135m", "adapter": "lora"},
    "full": {"size": "135m", "adapter": "full"},
    "classify": {"size": "135m", "adapter": "lora", "classify": True},
    "lora-memory": {"size": "135m", "adapter": "lora", "recompute": True},
    "full-memory": {"size": "135m", "adapter": "full", "recompute": True},
    "learned-lora": {"adapter": "lora", "learned": True},
    "learned-full": {"adapter": "full", "learned": True},
    "lora-15m": {"size": "15m", "adapter": "lora"},
    "full-15m": {"size": "15m", "adapter": "full"},
    "classify-15m": {"size": "15m", "adapter": "lora", "classify": True},
    "gpu-lora": {"size": "1b", "adapter": "lora", "pack": 8192},
    "gpu-full": {"size": "1b", "adapter": "full", "pack": 8192},
}
HF, TRL = {"trainer": "transformers"}, {"trainer": "trl"}
ENGINES: dict[str, dict[str, Any]] = {  # file of engines/, what it is, its settings
    "ours": {"module": "ours", "about": "Burnish as it is", "how": {"packed": True}},
    "trl-best": {
        "module": "huggingface",
        "about": "TRL packed, bf16 weights for LoRA, eager attention, nothing recomputed",
        "how": TRL | {"attention": "eager", "packed": True},
    },
    "trl-plugged": {
        "module": "huggingface",
        "about": "the same with Burnish's attention and fused steps plugged in",
        "how": TRL | {"attention": "eager", "packed": True, "plugged": True},
    },
    "trl-default": {
        "module": "huggingface",
        "about": "TRL as it comes: 8 padded rows, recomputation on",
        "how": TRL | {"attention": "sdpa", "packed": False, "rows": 8, "weights": "float32", "recompute": True},
        "once": True,  # slow and far behind
    },
    "trainer-best": {
        "module": "huggingface",
        "about": "transformers' Trainer, packs by DataCollatorWithFlattening, eager attention",
        "how": HF | {"attention": "eager", "packed": True},
    },
    "trainer": {
        "module": "huggingface",
        "about": "transformers' Trainer: 4 padded rows of like length, bf16",
        "how": HF | {"attention": "sdpa", "packed": False, "rows": 4, "alike": True},
        "classifies": True,
    },
    "llamafactory": {
        "module": "llamafactory",
        "about": "LLaMA Factory, neat packing, eager attention",
        "how": {"attention": "eager", "packed": True},
        "python": "BURNISH_PEER_LLAMAFACTORY",
    },
    "litgpt": {
        "module": "litgpt",
        "about": "LitGPT: rows of like length, bf16-true for LoRA, bf16-mixed for full",
        "how": {"packed": False, "rows": 8, "alike": True},
        "python": "BURNISH_PEER_LITGPT",
    },
}
LEARNERS = ("ours", "trl-best", "trainer-best", "llamafactory", "litgpt")


def build(folder: Path, size: str) -> Path:
    """A model folder with random weights in bfloat16 and a tokenizer that nobody will ask anything."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path = folder / size
    if path.exists():
        return path
    inner, words = INNER[size]
    torch.manual_seed(0)
    config = LlamaConfig(
        **SIZES[size],
        intermediate_size=inner,
        vocab_size=words,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(words)}, unk_token="w3"))
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="w0", bos_token="w1", eos_token="w2", unk_token="w3"
    ).save_pretrained(path)
    return path


def rows(words: int, seed: int = 0) -> list[tuple[list[int], int, int]]:
    """(ids, tokens of the prompt, class): log-normal, mean 174 and median 127 tokens, 60 % of them answered."""
    import numpy as np

    draw = np.random.default_rng(seed)
    lengths = np.clip(draw.lognormal(np.log(127), 0.79, ROWS).astype(int), 8, LONGEST)
    return [
        (draw.integers(4, words, length).tolist(), max(round(length * 0.4), 1), i % 4)
        for i, length in enumerate(lengths)
    ]


def given(folder: Path, name: str) -> dict[str, Any]:
    """What of a Job is the case's: model and rows in files, packs, rates."""
    case = CASES[name]
    told = {"adapter": case["adapter"], "classify": case.get("classify", False)}
    if case.get("learned"):
        return told | learned.prepare(folder) | {"rate": learned.RATES[case["adapter"]]}
    path, pack = folder / f"{case['size']}.json", case.get("pack", PACK)
    model = build(folder, case["size"])
    path.write_text(json.dumps(rows(INNER[case["size"]][1])))
    told |= {"model": str(model), "rows": str(path), "pack": pack, "packs": PACKS, "rate": 1e-4}
    return told | {"batch": round(pack * PACKS / MEAN), "recompute": case.get("recompute", False)}


def engine(name: str) -> dict[str, Any]:
    """An engine's entry; NAME:key=value+key=value overrides its settings.

    >>> engine("litgpt:rows=1")["how"]
    {'packed': False, 'rows': 1, 'alike': True}
    """
    name, _, own = name.partition(":")
    how = dict(ENGINES[name]["how"])
    for item in own.split("+") if own else ():
        key, _, value = item.partition("=")
        if key not in {known for entry in ENGINES.values() for known in entry["how"]}:
            raise SystemExit(f"{name} has no setting {key!r}")
        how[key] = json.loads(value) if value in ("true", "false") or value.isdigit() else value
    return ENGINES[name] | {"how": how}


def unfit(name: str, case: dict[str, Any]) -> str:
    """Why an engine does not run a case, or nothing."""
    about = engine(name)
    if case.get("classify") and about["module"] != "ours" and not about.get("classifies"):
        return "no classification, or not packed"
    if case.get("recompute") and not about["how"]["packed"]:
        return "no packs: its memory is not comparable"
    if case.get("learned") and name.partition(":")[0] not in LEARNERS:
        return "learns what its tuned form learns"
    if about.get("python") and not os.environ.get(about["python"]):
        return f"set {about['python']} to a Python that has it"
    return ""


def measure(name: str, job: Job, threads: int, limit: float) -> dict[str, Any]:
    """One fresh process; what it told, or {"failed": why}."""
    keep = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 33)}
    environment = os.environ | ({} if job.recompute else keep)
    environment |= {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "0"}
    python = os.environ.get(engine(name).get("python", ""), sys.executable)
    others, stolen = busy(), busy("steal")
    command = [python, __file__, "--one", json.dumps(asdict(job))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"failed": f"no result within {limit:.0f} s"}
    except OSError as problem:
        return {"failed": str(problem)}
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        if done.returncode < 0:
            why = f"killed by signal {-done.returncode}" + (", out of memory?" if done.returncode == -9 else "")
        return {"failed": f"{why} (exit code {done.returncode})", "said": done.stderr[-2000:]}
    told = json.loads(lines[-1][7:])
    wanted = fingerprint([ids for ids, _, _ in job.read()], job.pad)
    if told["data"] != wanted:
        return {"failed": f"it had other rows: tokens and sum of ids {told['data']}, not {wanted}"}
    rates = {"rate": told["tokens"] / told["seconds"], "work": told["tokens"] / told["worked"]}
    return {**told, **rates, "others": busy() - others - told["cpu"], "stolen": busy("steal") - stolen}


def busy(kind: str = "work") -> float:
    """Seconds of work of all processes of this machine so far, or those that its host took away (steal)."""
    path = Path("/proc/stat")
    if not path.exists():
        return 0.0
    told = [int(item) for item in path.read_text().split("\n")[0].split()[1:9]]
    return (told[7] if kind == "steal" else sum(told[:3])) / os.sysconf("SC_CLK_TCK")


def versions() -> dict[str, str]:
    """This Python's libraries, and those of the peers that have a Python of their own."""
    code = (
        "import sys; from importlib.metadata import distributions as d\n"
        "found = {i.metadata['Name'].lower(): i.version for i in d()}\n"
        "print(' '.join(f'{n} {found[n]}' for n in sys.argv[1:] if n in found))"
    )
    told = {"machine": f"{_processor()}, {os.cpu_count()} cores", "python": platform.python_version()}
    pythons = {"here": sys.executable}
    pythons |= {name: os.environ.get(item.get("python", ""), "") for name, item in ENGINES.items()}
    wanted = ["burnish", "torch", "transformers", "peft", "trl", "llamafactory", "litgpt"]
    for name, python in pythons.items():
        if python:
            done = subprocess.run([python, "-c", code, *wanted], capture_output=True, text=True, check=False)
            told[name] = done.stdout.strip() or "unknown"
    return told


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


class Kept:
    """Measurements by (case, threads, engine, round, steps), each written to a JSONL file as it is made.

    A failed one that is read back counts as not made.
    """

    def __init__(self, path: str, resume: bool) -> None:
        self.path = Path(path) if path else None
        self.rows: dict[Any, Any] = {}
        if self.path and self.path.exists():
            if not resume:
                raise SystemExit(f"{path} is there already; --resume goes on with it, or name another file")
            text = self.path.read_text()
            for line in text.splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # cut short when it was written
                    row = json.loads(line)
                    if "failed" not in row["told"]:
                        self.rows[tuple(row["key"])] = row["told"]
            if not text.endswith("\n"):
                self.path.write_text(text + "\n")

    def put(self, key: tuple[Any, ...], told: dict[str, Any]) -> None:
        """Keep one measurement."""
        self.rows[key] = told
        if self.path:
            with self.path.open("a") as file:
                file.write(json.dumps({"key": key, "told": told}) + "\n")


def rounds_of(name: str, told: argparse.Namespace, threads: int, folder: Path, kept: Kept) -> dict[str, Any]:
    """Every engine's measurements of a case, in turns; who begins changes from round to round."""
    case = CASES[name]
    names = told.engines.split(",")
    for item in names:
        if why := unfit(item, case):
            print(f"  {name} {item}: not run ({why})", flush=True)
    names = [item for item in names if not unfit(item, case)]
    job: dict[str, Any] = {}
    found: dict[str, list[dict[str, Any]]] = {item: [] for item in names}
    for number in range(SEEDS if case.get("learned") else 1 if case.get("recompute") else told.rounds):
        begin = number % max(len(names), 1)
        for item in names[begin:] + names[:begin]:
            if ENGINES[item.partition(":")[0]].get("once") and number:
                continue
            key = (name, threads, item, number + 1, told.steps)
            if key not in kept.rows:
                job = job or {"steps": told.steps + 1} | given(folder, name)
                about = engine(item)
                one = Job(about["module"], how=about["how"], began=time.time(), seed=number + 1, **job)
                kept.put(key, measure(item, one, threads, told.limit * 60))
            found[item].append(kept.rows[key] | {"round": number + 1})
            print(f"  {name} round {number + 1} {item}: {_shown(found[item][-1])}", flush=True)
    return found


def _shown(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"failed: {row['failed'][:150]}"
    return (
        f"{row['rate']:.0f} tokens/s ({row['work']:.0f} a processor second), peak {row['memory'] / 1e9:.2f} GB, "
        f"first step after {row['first']:.1f} s, others' work {row['others']:.0f} s, stolen {row['stolen']:.0f} s, "
        f"a product {row['gemm'] / 1e9:.0f} GFLOP/s"
        + (f", held-out loss {row['curve'][-1]:.4f}" if row["curve"] else "")
    )


def table(name: str, rounds: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Print a case and return its ratios: ours over each peer in speed, ours to each peer in memory."""
    whole = {item: {row["round"]: row for row in found if "failed" not in row} for item, found in rounds.items()}
    for item, found in rounds.items():
        rates = " ".join(f"{row['rate']:.0f}" if "rate" in row else "failed" for row in found)
        if good := list(whole[item].values()):
            middle, first = (statistics.median(row[key] for row in good) for key in ("rate", "first"))
            peak = max(row["memory"] for row in good) / 1e9
            print(f"  {item:13} {middle:6.0f} tokens/s  rounds {rates}  peak {peak:.2f} GB  first step {first:.1f} s")
            print(f"  {'':13} {good[0]['facts']}{_floor(name, good)}")
        else:
            print(f"  {item:13} failed: {found[-1]['failed']}")
    told: dict[str, Any] = {"tokens_per_second_ratio": {}, "peak_memory_ratio": {}, "final_loss_difference": {}}
    mine = whole.get("ours") or {}
    for item, theirs in whole.items():
        pairs = [(mine[number], theirs[number]) for number in theirs if number in mine]
        if item != "ours" and pairs:
            ratios = [a["rate"] / b["rate"] for a, b in pairs]
            told["tokens_per_second_ratio"][item] = statistics.median(ratios)
            memory = max(a["memory"] for a in mine.values()) / max(b["memory"] for b in theirs.values())
            told["peak_memory_ratio"][item] = memory
            work = statistics.median(a["work"] / b["work"] for a, b in pairs)
            speeds = " ".join(f"{ratio:.2f}" for ratio in ratios)
            print(
                f"  ours / {item}: speed {told['tokens_per_second_ratio'][item]:.2f} (rounds {speeds}), "
                f"by processor seconds {work:.2f}, memory {memory:.2f}"
            )
    return told


def _floor(name: str, rows: list[dict[str, Any]]) -> str:
    """Which share of the matrix-multiply floor a case's rate is, where its arithmetic has been counted."""
    case = CASES[name]
    if case.get("size") != "135m" or case.get("classify") or case.get("recompute"):
        return ""
    share = statistics.median(row["rate"] * FLOPS[case["adapter"]] / row["gemm"] for row in rows)
    return f"; {share:.0%} of the matrix-multiply floor"


def main() -> int:
    read = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    read.add_argument("--rounds", type=int, default=5)
    read.add_argument("--steps", type=int, default=2, help="counted optimizer steps, after one that is not")
    read.add_argument("--cases", default="lora,full,classify,lora-memory,full-memory,learned-lora,learned-full")
    read.add_argument("--engines", default=",".join(ENGINES))
    read.add_argument("--threads", default=str(os.cpu_count() or 1), help="one number or several, each a case's own")
    read.add_argument("--limit", type=float, default=30, help="minutes a measurement may take")
    read.add_argument("--out", default="", help="a JSONL file that gets each measurement as it is made")
    read.add_argument("--resume", action="store_true", help="go on from what --out holds")
    read.add_argument("--json", action="store_true")
    read.add_argument("--one", help=argparse.SUPPRESS)
    told = read.parse_args()
    if told.one:
        print("RESULT " + json.dumps(run(Job(**json.loads(told.one)))), flush=True)
        return 0
    kept, results, ends = Kept(told.out, told.resume), {}, {}
    kept.put(("versions",), versions())
    print("\n".join(f"{name}: {value}" for name, value in versions().items()), flush=True)
    counts = [int(item) for item in str(told.threads).split(",")]
    with tempfile.TemporaryDirectory() as folder:
        for name in told.cases.split(","):
            for threads in counts:
                found = rounds_of(name, told, threads, Path(folder), kept)
                called = name if len(counts) == 1 else f"{name}, {threads} thread{'s' if threads > 1 else ''}"
                print(f"\n{called}: {CASES[name]}", flush=True)
                results[called] = table(name, found)
                if CASES[name].get("learned"):
                    ends[CASES[name]["adapter"]] = learned.table(found)
                print(flush=True)
    for called, result in results.items():
        case = CASES[called.partition(",")[0]]
        if not case.get("classify"):
            apart = ends.get(case["adapter"], {})
            result["final_loss_difference"] = {peer: item["difference"] for peer, item in apart.items()}
    if told.json:
        print(json.dumps({"versions": versions(), "cases": results, "learned": ends}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
