"""Training speed, memory and result beside the peers, in one run: the same weights, rows and trained tokens.

    python benchmarks/train.py [--rounds 5] [--cases lora,full,...] [--engines ours,trl,...] [--steps 2] [--json]

Every measurement is a fresh process; the engines of a case take turns, round after round, and all rounds are shown.
Speed is real tokens a second over the steps after the first; peak memory is read in runs of its own with activations
recomputed on both sides; the last case trains a small model to its end with each engine and three seeds and compares
what was learned.  Peers need `pip install trl`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROWS, LONGEST, PACK, PACKS = 512, 1022, 1024, 6  # rows drawn; longest row; tokens a pack; packs an optimizer step
SIZES = {  # Llama architectures with random weights
    "135m": {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3},
    "1b": {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8},
    "15m": {"hidden_size": 288, "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 6},
}
INNER = {"135m": (1536, 49152), "15m": (768, 32000), "1b": (8192, 128256)}
CASES: dict[str, dict[str, Any]] = {
    "lora": {"size": "135m", "adapter": "lora"},
    "full": {"size": "135m", "adapter": "full"},
    "lora-15m": {"size": "15m", "adapter": "lora"},
    "classify": {"size": "135m", "adapter": "lora", "task": "classify"},
    "lora-memory": {"size": "135m", "adapter": "lora", "memory": True},
    "full-memory": {"size": "135m", "adapter": "full", "memory": True},
    "gpu-lora": {"size": "1b", "adapter": "lora", "pack": 8192},
    "gpu-full": {"size": "1b", "adapter": "full", "pack": 8192},
}
ENGINES = {
    "ours": "Burnish as it is",
    "trl-default": "TRL as it comes: 8 padded rows, recomputation on",
    "trl-best": "TRL packed, bf16 weights for LoRA, eager attention, nothing recomputed",
    "trl-plugged": "the same with Burnish's attention and fused steps plugged in",
    "trainer": "transformers' Trainer: 8 padded rows of like length, bf16",
}


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


def rows(words: int, seed: int = 0) -> list[tuple[list[int], int]]:
    """(ids, tokens of the prompt): log-normal lengths with mean 174 and median 127, 60 % of the tokens answered."""
    import numpy as np

    draw = np.random.default_rng(seed)
    lengths = np.clip(draw.lognormal(np.log(127), 0.79, ROWS).astype(int), 8, LONGEST)
    return [(draw.integers(4, words, length).tolist(), max(round(length * 0.4), 1)) for length in lengths]


# --- one engine, in a process of its own ----------------------------------------------------------------------


def ours(model: Path, case: dict[str, Any], steps: int) -> dict[str, Any]:
    pack = case.get("pack", PACK)
    import numpy as np

    from burnish import kinds
    from burnish.models import base, load, placement, quicken
    from burnish.task import Train
    from burnish.tokens.batch import Batches
    from burnish.tokens.encode import Tokens
    from burnish.train import loop, optim
    from burnish.train.plan import plan
    from burnish.train.run import Run

    found = base.inspect(str(model))
    classify = case.get("task") == "classify"
    head = base.Head("classes", ("a", "b", "c", "d")) if classify else base.Head("language")
    precision = optim.DTYPES[optim.precision("auto", placement.best())]
    adapter = kinds.load("adapters", case["adapter"])
    made = load.load(found, head, **({} if adapter.CARRIES_BASE else {"dtype": precision}))
    own = {item.name: item.default for item in kinds.settings("adapters", case["adapter"])}
    adapter.attach(made, own | ({"rank": 16, "alpha": 32.0} if case["adapter"] == "lora" else {}), 0.0, 0)
    quicken.install(made.hf)
    told = []
    for i, (ids, prompt) in enumerate(rows(found.vocabulary)):
        weights = np.ones(len(ids), np.float32)
        weights[:prompt] = 0
        label = i % 4 if classify else None
        told.append(Tokens(np.asarray(ids, np.int32), weights, str(i), str(i), label=label))
    settings = Train(
        batch_size=round(pack * PACKS / 174), max_steps=steps + 1, epochs=0, learning_rate=1e-4, patience=0
    )
    batches = Batches(told, settings.batch_size, pack, 0, 0, packed=made.packs)
    method = kinds.load("methods", "classify" if classify else "sft")
    run = Run(
        made,
        method,
        method.Settings(),
        settings,
        plan(settings, len(told), found.width, adapter.RATE),
        batches,
        None,
        Path(tempfile.mkdtemp()) / "checkpoints",
        {"run": "benchmark"},
        precision,
        bool(case.get("memory")),
    )
    events, marks = [], []
    for event in loop.fit(run):
        if event.kind == "step":
            events.append(event)
            marks.append(time.process_time())
    tokens = sum(event.numbers["tokens"] for event in events[1:])
    # seconds of an event are of the training so far; saving is not part of a step
    seconds = sum(event.numbers["tokens"] / event.numbers["tokens_per_second"] for event in events[1:])
    return {"tokens": tokens, "seconds": seconds, "worked": marks[-1] - marks[0]}


def trainer(model: Path, case: dict[str, Any], steps: int, engine: str) -> dict[str, Any]:
    """TRL's SFTTrainer, plain transformers' Trainer and their configurations."""
    import datasets
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(model)
    classify, memory = case.get("task") == "classify", bool(case.get("memory"))
    told: dict[str, list[Any]] = {"input_ids": [], "labels": []}
    for i, (ids, prompt) in enumerate(rows(tokenizer.vocab_size)):
        told["input_ids"].append(ids)
        told["labels"].append(i % 4 if classify else [-100] * prompt + ids[prompt:])
    data = datasets.Dataset.from_dict(told)
    lora = case["adapter"] == "lora"
    cuda, pack = torch.cuda.is_available(), case.get("pack", PACK)
    best = engine in ("trl-best", "trl-plugged")
    default = engine == "trl-default"
    kind = AutoModelForSequenceClassification if classify else AutoModelForCausalLM
    more = {"num_labels": 4} if classify else {}
    dtype = torch.bfloat16 if lora and not default else torch.float32
    attention = ("flash_attention_2" if cuda else "eager") if best else "sdpa"
    hf = kind.from_pretrained(model, dtype=dtype, attn_implementation=attention, **more)
    config = LoraConfig(
        r=16, lora_alpha=32, target_modules="all-linear", task_type="SEQ_CLS" if classify else "CAUSAL_LM"
    )
    common: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "max_steps": steps + 1,
        "learning_rate": 1e-4,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": not cuda,
        "bf16": True,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch",
        "dataloader_num_workers": 0,
        "gradient_checkpointing": memory or default,
    }
    clock: list[float] = []
    work: list[float] = []
    seen: list[int] = []

    def counted(parent: type) -> type:
        class Counted(parent):  # type: ignore[misc, valid-type]
            def training_step(self, model: Any, inputs: Any, *others: Any, **named: Any) -> Any:
                mask = inputs.get("attention_mask")
                seen.append(int(mask.sum()) if mask is not None else inputs["input_ids"].numel())
                return super().training_step(model, inputs, *others, **named)

        return Counted

    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_end(self, *told: Any, **named: Any) -> None:
            clock.append(time.perf_counter())
            work.append(time.process_time())
            marks.append(len(seen))

    marks: list[int] = []
    if engine == "trainer" or classify:
        hf = get_peft_model(hf, config) if lora else hf
        if memory and lora:
            hf.enable_input_require_grads()
        collate = DataCollatorWithPadding(tokenizer) if classify else DataCollatorForSeq2Seq(tokenizer)
        args = TrainingArguments(
            **common,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=4,
            train_sampling_strategy="group_by_length",
        )
        made = counted(Trainer)(hf, args, train_dataset=data, data_collator=collate, callbacks=[Clock()])
    else:
        from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

        if engine == "trl-plugged":
            plug(hf)
        args = SFTConfig(
            **common,
            max_length=pack,
            packing=best,
            use_liger_kernel=cuda and best,
            per_device_train_batch_size=1 if best else 8,
            gradient_accumulation_steps=PACKS if best else 4,
        )
        made = counted(SFTTrainer)(
            hf,
            args,
            train_dataset=data,
            processing_class=tokenizer,
            peft_config=config if lora else None,
            callbacks=[Clock()],
        )
    if engine == "trl-plugged":
        from burnish.models import quicken

        quicken.install(made.model)
    made.train()
    return {"tokens": sum(seen[marks[0] : marks[-1]]), "seconds": clock[-1] - clock[0], "worked": work[-1] - work[0]}


def plug(hf: Any) -> None:
    """Burnish's packed attention in somebody else's trainer: documents begin where positions do."""
    from burnish.models import attention, layout

    seat = attention.Seat()
    attention.install(hf, seat)

    def seated(module: Any, told: Any, named: dict[str, Any]) -> Any:
        places = named.get("position_ids")
        seat.layout = None
        if places is not None and len(places) == 1:
            ends = [*(places[0] == 0).nonzero()[:, 0].tolist(), places.shape[1]]
            seat.layout = layout.Layout(layout.Spans(ends, ends, places.device))
            named = {**named, "attention_mask": None}
        return told, named

    hf.base_model.register_forward_pre_hook(seated, with_kwargs=True)


# --- what is learned ------------------------------------------------------------------------------------------


def texts() -> tuple[Path, list[list[int]], list[list[int]]]:
    """The embedded base, and the tales of examples/ in rows of 128 ids: three quarters to learn, a quarter held out."""
    import burnish
    from burnish.tokens.tokenizer import Tokenizer

    folder = Path(burnish.__file__).parent / "bundled" / "burnish-tiny"
    tokenizer = Tokenizer.load(folder)
    tales = sorted((Path(__file__).parent.parent / "examples" / "tales").glob("*.txt"))
    made = []
    for tale in tales:
        ids = tokenizer.backend.encode(tale.read_text(encoding="utf-8")).ids
        made.append([ids[at : at + 128] for at in range(0, len(ids) - 127, 128)])
    cut = len(made) * 3 // 4
    return folder, [row for part in made[:cut] for row in part], [row for part in made[cut:] for row in part]


def learned(engine: str, seed: int) -> float:
    """Nats a token on the held-out tales after two epochs of full tuning, judged by plain transformers in float32."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    folder, train, held = texts()
    if engine == "ours":
        from burnish import kinds
        from burnish.models import base, load, quicken
        from burnish.task import Train
        from burnish.tokens.batch import Batches
        from burnish.tokens.encode import Tokens
        from burnish.train import loop, optim
        from burnish.train.plan import plan
        from burnish.train.run import Run

        made = load.load(base.inspect(str(folder)), base.Head("language"), dropout=0.0)
        kinds.load("adapters", "full").attach(made, {}, 0.0, seed)
        quicken.install(made.hf)
        weights = np.ones(128, np.float32)
        weights[0] = 0
        rows = [Tokens(np.asarray(ids, np.int32), weights, str(i), str(i)) for i, ids in enumerate(train)]
        settings = Train(
            batch_size=8,
            epochs=2,
            learning_rate=5e-4,
            schedule="linear",
            warmup=0,
            weight_decay=0.0,
            betas=[0.9, 0.999],
            patience=0,
            clip=1.0,
        )
        method = kinds.load("methods", "selfsupervised")
        run = Run(
            made,
            method,
            method.Settings(),
            settings,
            plan(settings, len(rows), 256, 5e-5),
            Batches(rows, 8, 1024, seed, 0, packed=made.packs),
            None,
            Path(tempfile.mkdtemp()) / "checkpoints",
            {},
            optim.DTYPES[optim.precision("auto", torch.device("cpu"))],
        )
        list(loop.fit(run))
        hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        hf.load_state_dict(made.hf.state_dict())
    else:
        import datasets
        from transformers import AutoTokenizer
        from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

        datasets.disable_progress_bars()
        hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        args = SFTConfig(
            output_dir=tempfile.mkdtemp(),
            num_train_epochs=2,
            learning_rate=5e-4,
            lr_scheduler_type="linear",
            warmup_steps=0,
            weight_decay=0.0,
            per_device_train_batch_size=8,
            seed=seed,
            data_seed=seed,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            bf16=True,
            adam_beta2=0.999,
            gradient_checkpointing=False,
            max_length=128,
        )
        data = datasets.Dataset.from_dict({"input_ids": train, "labels": train})
        SFTTrainer(hf, args, train_dataset=data, processing_class=AutoTokenizer.from_pretrained(folder)).train()
    hf.eval()
    with torch.no_grad():
        ids = torch.tensor(held)
        return sum(float(hf(input_ids=part, labels=part).loss) * len(part) for part in ids.split(16)) / len(ids)


def one(engine: str, case: dict[str, Any], model: Path, steps: int) -> None:
    began = time.perf_counter()
    cpu = time.process_time()
    told = ours(model, case, steps) if engine == "ours" else trainer(model, case, steps, engine)
    told["first"] = time.perf_counter() - began - told["seconds"]  # everything before the counted steps
    told["cpu"] = time.process_time() - cpu
    told["memory"] = peak_memory()
    print("RESULT " + json.dumps(told), flush=True)


# --- all of them ----------------------------------------------------------------------------------------------


def peak_memory() -> int:
    """Most bytes this process has had in memory; Linux's getrusage would count what its parent had before it began."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def measure(engine: str, name: str, model: Path, steps: int, threads: int) -> dict[str, Any]:
    """One fresh process; speed with memory that is kept and not handed back, on both sides."""
    keep = (
        {}
        if CASES[name].get("memory")
        else {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 33)}
    )
    environment = (
        os.environ | keep | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "0"}
    )
    others = busy()
    done = subprocess.run(
        [sys.executable, __file__, "--one", engine, "--cases", name, "--model", str(model), "--steps", str(steps)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        return {"failed": (done.stderr.strip().splitlines() or ["no reason given"])[-1]}
    told = json.loads(lines[-1][7:])
    rates = {"rate": told["tokens"] / told["seconds"], "work": told["tokens"] / told["worked"]}
    return {**told, **rates, "others": busy() - others - told["cpu"]}


def busy() -> float:
    """Seconds of work of all processes of this machine so far."""
    path = Path("/proc/stat")
    if not path.exists():
        return 0.0
    user, nice, system = (int(item) for item in path.read_text().split("\n")[0].split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    told = {"python": platform.python_version(), "machine": platform.processor() or platform.machine()}
    for name in ("torch", "transformers", "peft", "trl", "burnish"):
        try:
            told[name] = version(name)
        except PackageNotFoundError:
            told[name] = "not installed"
    return told


def main() -> int:
    read = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    read.add_argument("--rounds", type=int, default=5)
    read.add_argument("--steps", type=int, default=2)
    read.add_argument("--cases", default="lora,full,lora-memory,full-memory")
    read.add_argument("--engines", default="ours,trl-best,trl-plugged,trl-default,trainer")
    read.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    read.add_argument(
        "--learned", action="store_true", help="compare what three seeds of each engine learn, and no speed"
    )
    read.add_argument("--json", action="store_true")
    read.add_argument("--one", help=argparse.SUPPRESS)
    read.add_argument("--model", help=argparse.SUPPRESS)
    told = read.parse_args()
    if told.one:
        one(told.one, CASES[told.cases], Path(told.model), told.steps)
        return 0
    print("  ".join(f"{name} {value}" for name, value in versions().items()), f" threads {told.threads}", flush=True)
    results: dict[str, Any] = {}
    if told.learned:
        losses = {engine: [learned(engine, seed) for seed in (1, 2, 3)] for engine in ("ours", "trl")}
        difference = statistics.mean(losses["ours"]) - statistics.mean(losses["trl"])
        spread = statistics.mean(statistics.stdev(found) for found in losses.values())
        print(f"held-out nats a token {losses}; difference {difference:+.4f}, between seeds {spread:.4f}")
        if told.json:
            print(json.dumps({"final_loss_difference": {"trl": difference}, "spread": spread, "losses": losses}))
        return int(abs(difference) > 3 * spread + 0.01)
    with tempfile.TemporaryDirectory() as folder:
        for name in told.cases.split(","):
            model = build(Path(folder), str(CASES[name]["size"]))
            engines = told.engines.split(",")
            rounds: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
            for number in range(1 if CASES[name].get("memory") else told.rounds):
                for engine in engines:
                    if engine == "trl-default" and number:
                        continue  # slow and far behind: once
                    rounds[engine].append(measure(engine, name, model, told.steps, told.threads))
                    print(f"  {name} round {number + 1} {engine}: {_shown(rounds[engine][-1])}", flush=True)
            results[name] = table(name, rounds)
    if told.json:
        print(json.dumps({"versions": versions(), "cases": results}))
    return 0


def _shown(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"failed: {row['failed'][:150]}"
    return (
        f"{row['rate']:.0f} tokens/s ({row['work']:.0f} a processor second), peak {row['memory'] / 1e9:.2f} GB, "
        f"first step after {row['first']:.0f} s, others' work {row['others']:.0f} s"
    )


def table(name: str, rounds: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Print a case and return its ratios: ours over each peer in speed, ours to each peer in memory."""
    whole = {engine: [row for row in found if "failed" not in row] for engine, found in rounds.items()}
    print(f"\n{name}: {CASES[name]}")
    for engine, found in whole.items():
        if found:
            rates = " ".join(f"{row['rate']:.0f}" for row in found)
            middle = statistics.median(row["rate"] for row in found)
            peak = max(row["memory"] for row in found) / 1e9
            print(f"  {engine:13} median {middle:6.0f} tokens/s  rounds {rates}  peak {peak:.2f} GB  {ENGINES[engine]}")
    told: dict[str, Any] = {"tokens_per_second_ratio": {}, "peak_memory_ratio": {}}
    mine = whole.get("ours") or []
    for engine, found in whole.items():
        if engine != "ours" and found and mine:
            ratios = [a["rate"] / b["rate"] for a, b in zip(mine, found, strict=False)]
            told["tokens_per_second_ratio"][engine] = statistics.median(ratios)
            memory = max(a["memory"] for a in mine) / max(b["memory"] for b in found)
            told["peak_memory_ratio"][engine] = memory
            speeds = " ".join(f"{item:.2f}" for item in ratios)
            work = statistics.median(a["work"] / b["work"] for a, b in zip(mine, found, strict=False))
            print(f"  ours / {engine}: speed {speeds}, by processor seconds {work:.2f}, memory {memory:.2f}")
    print(flush=True)
    return told


if __name__ == "__main__":
    sys.exit(main())
