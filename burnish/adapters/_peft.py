"""PEFT's adapter folders, read and written: adapter_config.json and adapter_model.safetensors.

In: a Model with LoRA layers, or a folder that PEFT or Burnish wrote.  Out: the other.  Names, shapes and files are
PEFT's, byte for byte, so that a folder loads in plain `peft` and the other way round.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from burnish.adapters._lora import LoraLinear, beside_experts, freeze, layers, linear, put
from burnish.models import places
from burnish.models.model import Model

PREFIX = "base_model.model."
KNOWN = {  # what PEFT writes and `load` honours, or what matters in training only
    *("peft_type", "task_type", "base_model_name_or_path", "revision", "peft_version", "auto_mapping"),
    *("inference_mode", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_dropout"),
    *("fan_in_fan_out", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("modules_to_save", "init_lora_weights", "megatron_core", "target_parameters"),
}


def tensors(model: Model) -> dict[str, Tensor]:
    """The adapter's tensors, and a new head's, under PEFT's names."""
    told = {}
    for name, value in model.trainable().items():
        matrix = name.endswith((".lora_A", ".lora_B"))
        told[f"{PREFIX}{name}.weight" if matrix else f"{PREFIX}{name}"] = value.detach()
    return told


def save(model: Model, folder: Path, base: str) -> None:
    """A PEFT folder; base: where its base lies."""
    adapted = layers(model)
    first = next(iter(adapted.values()))
    apart = beside_experts(model, adapted)
    config = {
        "peft_type": "LORA",
        **about(model, base),
        "r": first.rank,
        "lora_alpha": _plain(first.alpha),
        "rank_pattern": {name: item.rank for name, item in adapted.items() if item.rank != first.rank},
        "alpha_pattern": {name: _plain(item.alpha) for name, item in adapted.items() if item.alpha != first.alpha},
        "lora_dropout": 0.0 if apart else first.dropout,  # PEFT has none for weights
        "target_modules": _suffixes(model, [name for name in adapted if name not in apart]),
        **({"target_parameters": [f"{name}.weight" for name in apart]} if apart else {}),
        "bias": "none",
        "fan_in_fan_out": getattr(first.base_layer, "transposed", type(first.base_layer).__name__ == "Conv1D"),
        "init_lora_weights": True,
        "use_rslora": first.use_rslora,
        "use_dora": first.use_dora,
        "modules_to_save": heads(model) or None,
    }
    write(config, tensors(model), folder)


def about(model: Model, base: str) -> dict[str, Any]:
    """The keys that every kind of PEFT adapter has."""
    kind = {"decoder": "CAUSAL_LM", "encoder-decoder": "SEQ_2_SEQ_LM", "encoder": None}[model.base.kind]
    return {
        "task_type": kind if model.head.kind == "language" else "SEQ_CLS",
        "base_model_name_or_path": base,
        "revision": None,
        "inference_mode": True,
    }


def write(config: Mapping[str, Any], kept: Mapping[str, Tensor], folder: Path) -> None:
    """The two files."""
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    full = {name: places.whole(value).cpu().contiguous() for name, value in kept.items()}
    save_file(full, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def read(folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The two files; raises ValueError when they are damaged or hold another kind of adapter."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if config["peft_type"] != kind:
        raise ValueError(f"this is {config['peft_type']}, not {kind}; merge it with peft first")
    try:
        return config, load_file(folder / "adapter_model.safetensors")
    except SafetensorError as problem:
        raise ValueError(f"adapter_model.safetensors is damaged: {problem}") from None


def fill(wanted: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy saved tensors into a model's, name by name; raises ValueError unless all of both fit."""
    apart = sorted(set(saved) ^ set(wanted)) + [n for n in wanted if n in saved and saved[n].shape != wanted[n].shape]
    if apart:
        raise ValueError(f"the adapter's tensors do not fit this base: {len(apart)} differ {apart[:1]}")
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(saved[name])


def load(model: Model, folder: Path) -> None:
    """Put a PEFT folder's update (and head) onto a freshly loaded base, whoever saved it.

    Which layers have an update, and of what rank, is read from the tensors.  Raises ValueError when the folder asks for
    more than LoRA on linear layers (trained biases, PiSSA's changed base ...) or does not fit this base.
    """
    config, saved = read(folder, "LORA")
    odd = [
        key
        for key, value in config.items()
        if (value is True or isinstance(value, str | list | dict))
        and key not in KNOWN
        and value not in ("none", [], {})
    ]
    if config.get("init_lora_weights", True) not in (True, False, "gaussian", "orthogonal"):
        odd.append("init_lora_weights")  # the others change the base
    if odd:
        raise ValueError(f"this is more than plain LoRA: {', '.join(odd)}; merge it with peft first")
    ending = ".lora_A.weight"
    ranks = {name[len(PREFIX) : -len(ending)]: len(value) for name, value in saved.items() if name.endswith(ending)}
    if not ranks:
        raise ValueError("the adapter's tensors do not fit this base: none is of LoRA")
    freeze(model)
    fitting = set(linear(model))
    rslora, dora = bool(config.get("use_rslora")), bool(config.get("use_dora"))
    for name, rank in ranks.items():
        if name in fitting:
            base = model.hf.get_submodule(name)
            put(model, name, LoraLinear(base, rank, _alpha(config, name), use_rslora=rslora, use_dora=dora))
    fill(tensors(model), saved)


def _alpha(config: Mapping[str, Any], name: str) -> float:
    """The alpha of one layer: alpha_pattern's, whose keys are names or their ends, else lora_alpha."""
    for key, value in (config.get("alpha_pattern") or {}).items():
        if not key.replace(".", "").replace("_", "").isalnum():
            raise ValueError(f'alpha_pattern "{key}" is a pattern; write layer names')
        if name == key or name.endswith(f".{key}"):
            return float(value)
    return float(config["lora_alpha"])


def _plain(number: float) -> float:
    """16.0 as 16, as people and PEFT write it."""
    return int(number) if float(number).is_integer() else number


def heads(model: Model) -> list[str]:
    """The leaf names of the largest modules that are wholly new."""
    found = set()
    for name in model.fresh:
        owner = name.rpartition(".")[0]
        while owner:
            parent = owner.rpartition(".")[0]
            inside = (
                {f"{parent}.{item}" for item, _ in model.hf.get_submodule(parent).named_parameters()}
                if parent
                else {""}
            )
            if not inside <= model.fresh:
                break
            owner = parent
        found.add(owner.rpartition(".")[2])
    return sorted(found)


def _suffixes(model: Model, adapted: list[str]) -> list[str]:
    """The shortest names that select these layers and no others, as PEFT matches them."""
    everything = [name.replace(".base_layer", "") for name, item in model.hf.named_modules() if name]
    wanted = set(adapted)
    chosen = set()
    for name in adapted:
        parts = name.split(".")
        for take in range(1, len(parts) + 1):
            suffix = ".".join(parts[-take:])
            if all(other in wanted for other in everything if other == suffix or other.endswith(f".{suffix}")):
                chosen.add(suffix)
                break
    return sorted(chosen)
