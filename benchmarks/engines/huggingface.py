"""TRL's SFTTrainer and transformers' Trainer, as they come and set up as well as they can be on this machine.

how: trainer "trl" or "transformers"; attention; packed; rows a micro-batch where not packed, alike: of like length;
weights: dtype of frozen weights; recompute; plugged: with Burnish's attention and fused steps.  TRL packs by itself;
the Trainer gets packs through transformers' DataCollatorWithFlattening.
"""

from __future__ import annotations

import copy
import tempfile
from typing import Any

from engines.job import Clock, Job, fingerprint, held_loss, kinds_of, packs


def train(job: Job, clock: Clock) -> None:
    """bf16 autocast in all; AdamW in float32; clipped at 1."""
    import datasets
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        DataCollatorWithFlattening,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    datasets.disable_progress_bars()
    set_seed(job.seed)
    how, cuda = job.how, torch.cuda.is_available()
    trl, packed, recompute = how["trainer"] == "trl", bool(how["packed"]), job.recompute or how.get("recompute", False)
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    kind = AutoModelForSequenceClassification if job.classify else AutoModelForCausalLM
    dtype = torch.bfloat16 if job.lora and how.get("weights") != "float32" else torch.float32
    attention = "flash_attention_2" if cuda and packed else how["attention"]
    hf = kind.from_pretrained(
        job.model, dtype=dtype, attn_implementation=attention, **({"num_labels": 4} if job.classify else {})
    )
    config = LoraConfig(
        r=16, lora_alpha=32, target_modules="all-linear", task_type="SEQ_CLS" if job.classify else "CAUSAL_LM"
    )
    rows = job.ordered() if job.held else job.read()  # what is learned hangs on the order by more than on the engine
    ids: list[Any] = [row[0] for row in rows]
    labels: list[Any] = [row[2] if job.classify else job.labels(row) for row in rows]
    clock.data = fingerprint(ids, job.pad)
    common: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "max_steps": job.steps,
        "learning_rate": job.rate,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": not cuda,
        "bf16": True,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch",
        "dataloader_num_workers": 0,
        "gradient_checkpointing": recompute,
        "seed": job.seed,
        "per_device_train_batch_size": 1 if packed else how["rows"],
        "gradient_accumulation_steps": job.packs if packed else job.accumulate(how["rows"]),
        "train_sampling_strategy": "sequential" if job.held else "group_by_length" if how.get("alike") else "random",
    }

    def counted(parent: type) -> type:
        class Counted(parent):  # type: ignore[misc, valid-type]
            def training_step(self, model: Any, inputs: Any, *others: Any, **named: Any) -> Any:
                clock.read(inputs["input_ids"])
                return super().training_step(model, inputs, *others, **named)

        return Counted

    if trl:
        from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

        if how.get("plugged"):
            _plug(hf)
        made = counted(SFTTrainer)(
            hf,
            SFTConfig(**common, max_length=job.pack, packing=packed, use_liger_kernel=cuda and packed),
            train_dataset=datasets.Dataset.from_dict({"input_ids": ids, "labels": labels}),
            processing_class=tokenizer,
            peft_config=config if job.lora else None,
        )
        clock.data = fingerprint(made.train_dataset["input_ids"], job.pad)
    else:
        hf = get_peft_model(hf, config) if job.lora else hf
        if recompute and job.lora:
            hf.enable_input_require_grads()
        collate: Any = DataCollatorWithPadding(tokenizer) if job.classify else DataCollatorForSeq2Seq(tokenizer)
        if packed:
            flat = DataCollatorWithFlattening()
            groups = packs([len(row) for row in ids], job.pack)
            ids, labels = (
                [[ids[i] for i in group] for group in groups],
                [[labels[i] for i in group] for group in groups],
            )

            def collate(items: Any) -> Any:
                pairs = zip(items[0]["input_ids"], items[0]["labels"], strict=True)
                return flat([{"input_ids": one, "labels": other} for one, other in pairs])

        data = datasets.Dataset.from_dict({"input_ids": ids, "labels": labels})
        made = counted(Trainer)(hf, TrainingArguments(**common), train_dataset=data, data_collator=collate)
    if how.get("plugged"):
        from burnish.models import quicken

        quicken.install(made.model)

    def logits(held: Any) -> float:
        plain = copy.deepcopy(made.model).float().eval()
        return held_loss(lambda ids: plain(input_ids=ids).logits, held)

    clock.judge = logits
    clock.facts = (
        f"{made.model.config._attn_implementation} attention, {job.layout}, {kinds_of(made.model.parameters())} "
        f"(autocast bfloat16), recomputed {recompute}"
    )
    clock.watch()
    made.train()


def _plug(hf: Any) -> None:
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
