"""The last layers are trained, and the final norm and output layer with them; what lies below stays as it was.

Neither activations nor gradients of the frozen layers are kept.  Saved whole, as full tuning is: no format of the field
holds a part of a model's weights, and a folder that plain transformers loads is worth its disk.
Source: Lee et al. 2019, What Would Elsa Do? Freezing Layers During Transformer Fine-Tuning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from burnish.adapters._lora import freeze
from burnish.adapters._whole import disabled, merge, save, stored, tensors
from burnish.kinds import setting
from burnish.models.bottom import stack
from burnish.models.model import Model

COST = 50
RATE = 5e-5  # full tuning's
CARRIES_BASE = True
MERGES = True


@dataclass(frozen=True)
class Settings:
    """Keys of `partial:` in task.yaml."""

    layers: int = setting(2, "how many of the last layers are trained (of an encoder-decoder: of its decoder)", low=1)


def attach(model: Model, settings: Mapping[str, Any], dropout: float, seed: int) -> None:
    """Freeze all but the last layers, the norm after them, and what ends the model.

    An output layer that is tied to the input embedding stays frozen: to train it would change what the first layer
    reads.  Layers that share their weights (ALBERT) are trained as one.
    """
    freeze(model)
    body = model.hf.base_model
    owner, layers = stack(body.get_decoder() if model.base.kind == "encoder-decoder" else body)
    norms = [
        item for name, item in owner.named_children() if "norm" in type(item).__name__.lower() and "emb" not in name
    ]
    poolers = [body.pooler] if getattr(body, "pooler", None) is not None else []
    for module in (*layers[-Settings(**settings).layers :], *norms, *poolers):
        module.requires_grad_(True)
    inside = {id(value) for value in body.parameters()}
    for value in model.hf.parameters():
        if id(value) not in inside:
            value.requires_grad_(True)


__all__ = [
    "CARRIES_BASE",
    "COST",
    "MERGES",
    "RATE",
    "Settings",
    "attach",
    "disabled",
    "merge",
    "save",
    "stored",
    "tensors",
]
