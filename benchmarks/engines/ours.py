"""Burnish: the loop of a trained rung, on rows that are already ids."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from engines.job import Clock, Job, fingerprint, held_loss, kinds_of


def train(job: Job, clock: Clock) -> None:
    """Packs, precision, kernels and attention as `burnish train` chooses them."""
    import numpy as np

    from burnish import kinds
    from burnish.models import base, load, placement, quicken
    from burnish.task import Train
    from burnish.tokens.batch import Batches
    from burnish.tokens.rows import Tokens
    from burnish.train import loop, optim
    from burnish.train.run import Run
    from burnish.train.timetable import timetable

    found = base.inspect(job.model)
    head = base.Head("classes", ("a", "b", "c", "d")) if job.classify else base.Head("language")
    precision = optim.DTYPES[optim.precision("auto", placement.best())]
    adapter = kinds.load("adapters", job.adapter)
    made = load.load(found, head, dropout=0.0, **({} if adapter.CARRIES_BASE else {"dtype": precision}))
    own = {item.name: item.default for item in kinds.settings("adapters", job.adapter)}
    adapter.attach(made, own | ({"rank": 16, "alpha": 32.0} if job.lora else {}), 0.0, job.seed)
    quicken.install(made.hf)
    told = []
    for i, (ids, prompt, label) in enumerate(job.read()):
        weights = np.ones(len(ids), np.float32)
        weights[:prompt] = 0
        row = np.asarray(ids, np.int32)
        told.append(Tokens(row, weights, str(i), str(i), label=label if job.classify else None))
    clock.data = fingerprint([row.ids.tolist() for row in told], job.pad)
    settings = Train(
        batch_size=job.batch,
        max_steps=job.steps,
        epochs=0,
        learning_rate=job.rate,
        schedule="constant",  # the one that all engines count alike: with warm-up transformers' first rate is 0
        warmup=0,
        weight_decay=0.0,
        betas=[0.9, 0.999],
        patience=0,
        clip=1.0,
        seed=job.seed,
        save_every=job.steps + 1,
    )
    method = kinds.load("methods", "classify" if job.classify else "sft")
    run = Run(
        made,
        method,
        method.Settings(),
        settings,
        timetable(settings, len(told), found.width, adapter.RATE),
        Batches(told, settings.batch_size, job.pack, job.seed, 0, packed=made.packs),
        None,
        Path(tempfile.mkdtemp()) / "checkpoints",
        {"run": "benchmark"},
        precision,
        job.recompute,
    )
    clock.judge = lambda held: held_loss(_plain(job, made, adapter), held)
    clock.facts = (
        f"attention per document, {job.layout}, {kinds_of(made.hf.parameters())} "
        f"(arithmetic {str(precision).removeprefix('torch.')}, masters float32), recomputed {job.recompute}"
    )
    for event in loop.fit(run):
        if event.kind == "step":
            clock.tokens += event.numbers["tokens"]
            clock.step()


def _plain(job: Job, made: Any, adapter: Any) -> Any:
    """The model as plain transformers reads it, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    state = dict(made.hf.state_dict())
    if job.lora:
        from burnish.adapters import _lora

        with torch.no_grad():
            state |= {f"{name}.weight": item.merged() for name, item in _lora.layers(made).items()}
    hf = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    missing = hf.load_state_dict(state, strict=False).missing_keys
    if missing:
        raise KeyError(f"not in the trained model: {missing[:3]}")
    hf.eval()
    return lambda ids: hf(input_ids=ids).logits
