"""Checkpoints to save and find again: small, different at every step, with the kinds of tensors a run holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from burnish.train import checkpoint

IDENTITY = {"config": "c0ffee", "data": "da7a", "torch": torch.__version__, "threads": 1}
Tensors = dict[str, dict[str, torch.Tensor]]


def content(step: int) -> Tensors:
    draw = torch.Generator().manual_seed(step)
    weight = torch.randn(6, 4, generator=draw)
    return {
        "weights": {"a.weight": weight, "a.tied": weight[:2], "a.turned": weight.T, "b": weight.bfloat16()},
        "optimizer": {"step": torch.tensor(float(step)), "count": torch.tensor(step), "m": weight * 0.1},
        "rng": {"torch": torch.get_rng_state()[:64].clone()},
    }


def keep(folder: Path, step: int, **more: Any) -> Path:
    return checkpoint.save(folder, step, content(step), {"step": step, "best": 0.1 + step}, IDENTITY, **more)


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    return tensor.dtype, tensor.shape, flat.numpy().tobytes()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(bits(a[name]) == bits(b[name]) for name in a)


def right(found: checkpoint.Checkpoint) -> bool:
    """Whether a checkpoint holds exactly what was saved at its step."""
    expected = content(found.step)
    same = all(equal(found.tensors(name), expected[name]) for name in expected)
    return same and found.state == {"step": found.step, "best": 0.1 + found.step}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
