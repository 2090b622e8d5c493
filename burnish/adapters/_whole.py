"""What adapters share that train the base's own weights: they are saved whole, as a plain transformers folder.

In: a tuned Model.  Out: config.json and model.safetensors, which plain transformers loads; the base may then be gone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from burnish.models import places
from burnish.models.model import Model

SINGLE, PART = "model.safetensors", "model-{:05d}-of-{:05d}.safetensors"  # as transformers names them
LIMIT = 5_000_000_000  # bytes of a file


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
    """A plain transformers folder: config.json and model.safetensors, in several files where it is large."""
    hf = model.hf
    hf.config.architectures = [type(hf).__name__]  # a new head makes it another class than the base's
    hf.config.save_pretrained(folder)
    _old_rope(folder / "config.json")
    if getattr(hf, "generation_config", None) is not None and model.head.kind == "language":
        hf.generation_config.save_pretrained(folder)
    parts = _parts(stored(model))
    names = [PART.format(number, len(parts)) if len(parts) > 1 else SINGLE for number in range(1, len(parts) + 1)]
    for name, part in zip(names, parts, strict=True):
        full = {key: places.whole(value).cpu().contiguous() for key, value in part.items()}
        save_file(full, folder / name, metadata={"format": "pt"})
    if len(parts) > 1:
        size = sum(value.nbytes for part in parts for value in part.values())
        where = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        told = json.dumps({"metadata": {"total_size": size}, "weight_map": where}, indent=2)
        (folder / f"{SINGLE}.index.json").write_text(told + "\n", encoding="utf-8")


def stored(model: Model) -> dict[str, Tensor]:
    """What `save` writes: every tensor under its file name, shared ones once."""
    told: dict[int, tuple[str, Tensor]] = {}
    for name, value in model.hf.state_dict(keep_vars=True).items():
        told.setdefault(id(value), (name, value.detach()))
    return dict(told.values())


def _parts(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The tensors in groups of LIMIT bytes (one always fits): more than a group of them is never gathered at once."""
    parts: list[dict[str, Tensor]] = [{}]
    room = LIMIT
    for name, value in tensors.items():
        if parts[-1] and value.nbytes > room:
            parts.append({})
            room = LIMIT
        parts[-1][name] = value
        room -= value.nbytes
    return parts


def _old_rope(path: Path) -> None:
    """transformers 4 reads rope_theta and rope_scaling, not rope_parameters, and takes 10,000 where it finds none."""
    told = json.loads(path.read_text(encoding="utf-8"))
    rope = told.get("rope_parameters") or {}
    if "rope_theta" in rope:
        told["rope_theta"] = rope["rope_theta"]
        path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
