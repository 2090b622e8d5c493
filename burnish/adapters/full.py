"""Every weight is trained: the dearest rung, and the one with the most freedom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from burnish.adapters._whole import disabled, merge, save, stored, tensors
from burnish.models.model import Model

COST = 60  # where this rung stands on the ladder, cheapest first
RATE = 5e-5  # learning rate at hidden size 2000 (see train/timetable.py)
CARRIES_BASE = True  # its artifact holds all weights
MERGES = True  # it can become a model of the base's own form


def attach(model: Model, settings: Mapping[str, Any], dropout: float, seed: int) -> None:
    """Let every parameter train."""
    for value in model.hf.parameters():
        value.requires_grad_(True)


__all__ = ["CARRIES_BASE", "COST", "MERGES", "RATE", "attach", "disabled", "merge", "save", "stored", "tensors"]
