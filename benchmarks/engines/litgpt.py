"""LitGPT's fine-tuning, by the `setup` behind `litgpt finetune_lora` and `litgpt finetune_full`.

how: rows a micro-batch.  It has no packs for supervised rows, no recomputation on one device, no clipping, one
attention (PyTorch's), and gives every micro-batch the same weight; its head is not tied to its embedding, so that full
tuning trains a matrix more.  Rows of a micro-batch are of like length.
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import shutil
import tempfile
from pathlib import Path
from typing import Any

from engines.job import Clock, Job, fingerprint, held_loss, kinds_of


def train(job: Job, clock: Clock) -> None:
    """LoRA wholly in bfloat16, its fastest; all weights in float32 under autocast, so that small updates are kept."""
    folder = Path(job.model) / "litgpt"
    if not folder.exists():  # in a process of its own: its memory is not the engine's
        child = multiprocessing.get_context("spawn").Process(target=convert, args=(Path(job.model),))
        child.start()
        child.join()
    import torch
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.data import DataModule
    from litgpt.data.base import get_sft_collate_fn
    from litgpt.finetune import full, lora
    from torch.utils.data import DataLoader

    rows, micro = job.read(), job.how["rows"]
    clock.data = fingerprint([row[0] for row in rows], job.pad)
    count = {"raw": 0, "raw_plus_prompt_template": 0}
    data = [
        {"input_ids": torch.tensor(row[0]), "labels": torch.tensor(job.labels(row)), "token_counts": count}
        for row in rows
    ]
    pad = get_sft_collate_fn(pad_id=job.pad)

    def collate(items: Any) -> Any:
        batch = pad(items)
        clock.read(batch["input_ids"])
        mixed = "" if job.lora else " (autocast bfloat16)"
        clock.facts = f"PyTorch's attention, {job.layout}, {kinds_of(seen[0].parameters())}{mixed}, recomputed False"
        return batch

    class Given(DataModule):  # type: ignore[misc]
        def connect(self, *_: Any, **__: Any) -> None:
            pass

        def train_dataloader(self) -> Any:
            draw = torch.Generator().manual_seed(job.seed)
            order = torch.randperm(len(data), generator=draw).tolist()
            near = [order[at : at + 50 * micro] for at in range(0, len(order), 50 * micro)]
            near = [sorted(part, key=lambda i: -len(rows[i][0])) for part in near]
            groups = [part[at : at + micro] for part in near for at in range(0, len(part), micro)]
            mixed = [groups[i] for i in torch.randperm(len(groups), generator=draw).tolist()]
            return DataLoader(data, batch_sampler=mixed, collate_fn=collate)

        def val_dataloader(self) -> Any:
            return DataLoader(data[:1], batch_size=1, collate_fn=pad)

    module = lora if job.lora else full
    model_class = module.GPT

    def met(config: Any) -> Any:
        model = model_class(config)

        def judge(held: Any) -> float:
            plain = copy.deepcopy(model).float().eval()
            return held_loss(plain, held)

        clock.judge = judge
        seen.append(model)
        return model

    seen: list[Any] = []
    module.GPT = met
    adapter = {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.0}
    adapter |= {f"lora_{name}": True for name in ("query", "key", "value", "projection", "mlp")}
    clock.watch()
    module.setup(
        checkpoint_dir=folder,
        out_dir=Path(tempfile.mkdtemp()),
        precision="bf16-true" if job.lora else "bf16-mixed",
        devices=1,
        data=Given(),
        train=TrainArgs(
            save_interval=None,
            log_interval=10**6,
            global_batch_size=micro * job.accumulate(micro),
            micro_batch_size=micro,
            lr_warmup_steps=1,
            epochs=10**6,
            max_steps=job.steps,
        ),
        eval=EvalArgs(interval=10**6, max_new_tokens=1, max_iters=1, initial_validation=False, final_validation=False),
        optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": job.rate, "weight_decay": 0.0}},
        seed=job.seed,
        **(adapter if job.lora else {}),
    )


def convert(model: Path) -> None:
    """A transformers Llama as LitGPT reads it, beside it in a folder `litgpt`."""
    import torch
    from litgpt.config import Config
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
    from litgpt.utils import save_config
    from safetensors.torch import load_file

    told = json.loads((model / "config.json").read_text())
    config = Config(
        name="benchmark",
        block_size=told["max_position_embeddings"],
        n_layer=told["num_hidden_layers"],
        n_embd=told["hidden_size"],
        n_head=told["num_attention_heads"],
        n_query_groups=told["num_key_value_heads"],
        head_size=told.get("head_dim") or told["hidden_size"] // told["num_attention_heads"],
        vocab_size=told["vocab_size"],
        padded_vocab_size=told["vocab_size"],
        intermediate_size=told["intermediate_size"],
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=told["rms_norm_eps"],
        mlp_class_name="LLaMAMLP",
        rope_base=int(told.get("rope_parameters", told).get("rope_theta", 10000)),
    )
    state: dict[str, Any] = {}
    copy_weights_hf_llama(config, {}, state, load_file(model / "model.safetensors"))
    folder = Path(tempfile.mkdtemp(dir=model))
    torch.save(state, folder / "lit_model.pth")
    save_config(config, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, folder)
    folder.rename(model / "litgpt")
