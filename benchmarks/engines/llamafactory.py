"""LLaMA Factory's supervised fine-tuning, by `run_exp`, the function behind `llamafactory-cli train`.

how: attention "eager" or "sdpa" (its flash_attn disabled or sdpa); packed: its neat_packing, which keeps documents
apart; else rows a micro-batch, alike: of like length.  Its own preparation, packs, collator and trainer run; only "text
to ids" is replaced by the ids of the rows.
"""

from __future__ import annotations

import copy
import importlib.machinery
import json
import os
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

from engines.job import Clock, Job, fingerprint, held_loss, kinds_of


def train(job: Job, clock: Clock) -> None:
    """Supervised rows only: LLaMA Factory has no classification."""
    folder = Path(tempfile.mkdtemp())
    os.environ |= {"HF_DATASETS_CACHE": str(folder / "cache"), "DISABLE_VERSION_CHECK": "1"}
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError):  # its wheel does not load beside PyTorch for CPUs; only rows with sound need it
        stand_in = types.ModuleType("torchaudio")
        stand_in.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
        sys.modules["torchaudio"] = stand_in
    import torch
    from llamafactory.data.processor.supervised import SupervisedDatasetProcessor
    from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer
    from llamafactory.train.tuner import run_exp

    rows = job.read()
    told = [{"instruction": str(i), "input": "", "output": "answer"} for i in range(len(rows))]
    (folder / "rows.json").write_text(json.dumps(told))
    (folder / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}))

    def encoded(self: Any, prompt: Any, **_: Any) -> tuple[list[int], list[int]]:
        row = rows[int(prompt[0]["content"])]
        return list(row[0]), job.labels(row)

    own = CustomSeq2SeqTrainer.training_step

    def counted(self: Any, model: Any, inputs: Any, *others: Any, **named: Any) -> Any:
        if not clock.judge:
            _meet(self, clock, recompute)
        clock.read(inputs["input_ids"])
        return own(self, model, inputs, *others, **named)

    SupervisedDatasetProcessor._encode_data_example = encoded
    CustomSeq2SeqTrainer.training_step = counted
    packed, recompute = bool(job.how["packed"]), job.recompute or job.how.get("recompute", False)
    clock.watch()
    run_exp(
        {
            "stage": "sft",
            "do_train": True,
            "model_name_or_path": job.model,
            "template": "empty",
            "dataset": "rows",
            "dataset_dir": str(folder),
            "cutoff_len": job.pack,
            "packing": packed,
            "neat_packing": packed,
            "overwrite_cache": True,
            "finetuning_type": job.adapter,
            "lora_rank": 16,
            "lora_alpha": 32,
            "lora_dropout": 0.0,
            "lora_target": "all",
            "flash_attn": {"eager": "disabled", "sdpa": "sdpa"}[job.how["attention"]],
            "disable_gradient_checkpointing": not recompute,
            "bf16": True,
            "use_cpu": not torch.cuda.is_available(),
            "per_device_train_batch_size": 1 if packed else job.how["rows"],
            "gradient_accumulation_steps": job.packs if packed else job.accumulate(job.how["rows"]),
            "train_sampling_strategy": "group_by_length" if job.how.get("alike") else "random",
            "max_steps": job.steps,
            "learning_rate": job.rate,
            "lr_scheduler_type": "constant",
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "optim": "adamw_torch",
            "seed": job.seed,
            "save_strategy": "no",
            "logging_steps": 10**6,
            "report_to": "none",
            "disable_tqdm": True,
            "output_dir": str(folder / "out"),
        }
    )


def _meet(trainer: Any, clock: Clock, recompute: bool) -> None:
    """What the trainer holds when it begins."""
    job, model = clock.job, trainer.model
    clock.data = fingerprint(trainer.train_dataset["input_ids"], job.pad)

    def judge(held: Any) -> float:
        plain = copy.deepcopy(model).float().eval()
        return held_loss(lambda ids: plain(input_ids=ids, use_cache=False).logits, held)

    clock.judge = judge
    clock.facts = (
        f"{model.config._attn_implementation} attention, {job.layout}, {kinds_of(model.parameters())} "
        f"(autocast bfloat16), recomputed {recompute}"
    )
