"""Every weight is trained: the dearest rung, and the one with the most freedom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from burnish.models.base import Model

COST = 60  # where this rung stands on the ladder, cheapest first
RATE = 5e-5  # learning rate at hidden size 2000 (see train/plan.py)


def attach(model: Model, settings: Mapping[str, Any], dropout: float, seed: int) -> None:
    """Let every parameter train."""
    for value in model.hf.parameters():
        value.requires_grad_(True)


def merge(model: Model) -> None:
    """Nothing to merge: the model is its own adapter."""


def tensors(model: Model) -> dict[str, Tensor]:
    """What makes this model differ from its base: everything, by its file names."""
    return {name: value.detach() for name, value in model.trainable().items()}


@contextmanager
def disabled(model: Model) -> Iterator[None]:
    """A fully tuned model has no base inside it."""
    raise ValueError("full tuning keeps no copy of its base; load the base beside it")
    yield


def save(model: Model, folder: Path, base: str) -> None:
    """A plain transformers folder: config.json and model.safetensors (tied weights once)."""
    model.hf.config.save_pretrained(folder)
    if getattr(model.hf, "generation_config", None) is not None and model.head.kind == "language":
        model.hf.generation_config.save_pretrained(folder)
    from safetensors.torch import save_file

    seen: dict[int, str] = {}
    kept = {}
    for name, value in model.hf.state_dict().items():
        if value.data_ptr() in seen and value.numel():
            continue
        seen[value.data_ptr()] = name
        kept[name] = value.detach().contiguous()
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
