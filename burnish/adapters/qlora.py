"""QLoRA: LoRA over a base that lies in 4 bits (NF4), so that a large base is tuned where it would not fit.

The update is trained against the quantised weights and belongs to them: it is merged into what they stand for, never
into the original ones.  A saved folder is PEFT's; beside it quantization.json tells how to make the same base again,
and by which hash to know it.

Source: Dettmers et al. 2023, QLoRA.  The 4-bit layer is in models/quantize.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from burnish.adapters import _lora, _peft
from burnish.adapters._lora import Settings, disabled
from burnish.adapters._peft import tensors
from burnish.models import quantize, shards
from burnish.models.model import Model

COST = 45  # as LoRA, and a little slower: its gain is memory
RATE = 5e-4
CARRIES_BASE = False
MERGES = True
QUANTISED = True  # its base is best loaded in 4 bits at once

FORMAT = {  # as transformers.BitsAndBytesConfig has it
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
}


def attach(model: Model, settings: Mapping[str, Any], dropout: float, seed: int) -> None:
    """Quantise the base where it is not, freeze it, give each target layer its update, and let a new head train whole.

    Random weights are welcome: the seed draws the same ones again.
    """
    _small(model)
    _lora.attach(model, **asdict(Settings(**settings)), dropout=dropout, seed=seed)


def _small(model: Model) -> None:
    """Quantise a base that was loaded whole."""
    shards.compress(model.hf, shards.linears(model.hf, model.head.kind == "language", model.fresh))


def merge(model: Model) -> None:
    """Put every update into the weight it was trained on; all layers become plain ones, in the type they had."""
    _lora.merge(model)
    for name, item in quantize.layers(model.hf).items():
        _lora.put(model, name, item.plain())


def save(model: Model, folder: Path, base: str) -> None:
    """A PEFT folder, and quantization.json."""
    _peft.save(model, folder, base)
    told = {"quantization_config": FORMAT, "sha256": quantize.digest(quantize.layers(model.hf).values())}
    (folder / "quantization.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def stored(model: Model) -> dict[str, Tensor]:
    """What `save` asks of every process that has a part of the model: the update, and the base for its hash."""
    small = quantize.layers(model.hf).items()
    return tensors(model) | {f"{name}.{part}": getattr(item, part) for name, item in small for part in quantize.CUT}


def load(model: Model, folder: Path) -> None:
    """Quantise a freshly loaded base where it is not, and put the update of `save` onto it.

    Raises ValueError when the base becomes other 4-bit weights than those that were trained on.
    """
    _small(model)
    told = json.loads((folder / "quantization.json").read_text(encoding="utf-8"))
    if told["sha256"] != quantize.digest(quantize.layers(model.hf).values()):
        raise ValueError("its base does not become the 4-bit weights that the update was trained on")
    _peft.load(model, folder)


__all__ = [
    "CARRIES_BASE",
    "COST",
    "MERGES",
    "QUANTISED",
    "RATE",
    "Settings",
    "attach",
    "disabled",
    "load",
    "merge",
    "save",
    "stored",
    "tensors",
]
