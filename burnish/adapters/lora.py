"""LoRA: each linear layer W gets a trained low-rank update, W + (alpha / rank) B A; rsLoRA and DoRA are settings of it.

Source: Hu et al. 2021, LoRA, eq. 3.  The layer and its gradient are in _lora.py, the files (PEFT's) in _peft.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from burnish.adapters import _lora
from burnish.adapters._lora import Settings, disabled, merge
from burnish.adapters._peft import load, save, tensors
from burnish.models.model import Model

COST = 40
RATE = 5e-4  # ten times full tuning's: Schulman et al. 2025, LoRA Without Regret
CARRIES_BASE = False
MERGES = True


def attach(model: Model, settings: Mapping[str, Any], dropout: float, seed: int) -> None:
    """Freeze the base, give each target layer its update, and let a new head train whole."""
    _lora.refuse_random(model, "lora")
    _lora.attach(model, **asdict(Settings(**settings)), dropout=dropout, seed=seed)


__all__ = [
    "CARRIES_BASE",
    "COST",
    "MERGES",
    "RATE",
    "Settings",
    "attach",
    "disabled",
    "load",
    "merge",
    "save",
    "tensors",
]
