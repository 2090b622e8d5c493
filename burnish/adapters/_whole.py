"""What adapters share that train the base's own weights: they are saved whole, as a plain transformers folder.

In: a tuned Model.  Out: config.json and model.safetensors, which plain transformers loads; the base may then be gone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from burnish.models.model import Model


def merge(model: Model) -> None:
    """Nothing to merge: the model is its own adapter."""


def tensors(model: Model) -> dict[str, Tensor]:
    """What makes this model differ from its base, by its file names."""
    return {name: value.detach() for name, value in model.trainable().items()}


@contextmanager
def disabled(model: Model) -> Iterator[None]:
    """A model whose own weights are tuned has no base inside it."""
    raise ValueError("this tuning keeps no copy of its base; load the base beside it")
    yield


def save(model: Model, folder: Path, base: str) -> None:
    """A plain transformers folder: config.json and model.safetensors (tied weights once)."""
    hf = model.hf
    hf.config.architectures = [type(hf).__name__]  # a new head makes it another class than the base's
    hf.config.save_pretrained(folder)
    _old_rope(folder / "config.json")
    if getattr(hf, "generation_config", None) is not None and model.head.kind == "language":
        hf.generation_config.save_pretrained(folder)
    seen: set[int] = set()
    kept = {}
    for name, value in hf.state_dict().items():
        if value.data_ptr() not in seen or not value.numel():
            kept[name] = value.detach().contiguous()
            seen.add(value.data_ptr())
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def _old_rope(path: Path) -> None:
    """transformers 4 reads rope_theta and rope_scaling, not rope_parameters, and takes 10,000 where it finds none."""
    told = json.loads(path.read_text(encoding="utf-8"))
    rope = told.get("rope_parameters") or {}
    if "rope_theta" in rope:
        told["rope_theta"] = rope["rope_theta"]
        path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
