"""LoRA: each linear layer W gets a trained low-rank update, W + (alpha / rank) B A.

Source: Hu et al. 2021, LoRA, eq. 3.  Names, shapes and files are those of PEFT, byte for byte, so that an adapter
folder loads in plain `peft` and the other way round.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from burnish.errors import TaskError
from burnish.kinds import setting
from burnish.models.model import Model

COST = 40
RATE = 5e-4  # ten times full tuning's: Schulman et al. 2025, LoRA Without Regret
PREFIX = "base_model.model."


@dataclass(frozen=True)
class Settings:
    """Keys of `lora:` in task.yaml."""

    rank: int = setting(8, "rank of the update of each layer", low=1, high=4096)
    alpha: float = setting(16.0, "the update is scaled by alpha / rank", low=0)
    targets: list[str] = setting([], "layer names, e.g. [q_proj, v_proj]; empty: every linear layer but the head")


class LoraLinear(nn.Module):
    """A frozen linear layer (nn.Linear, or GPT-2's Conv1D, which keeps W transposed) plus its update."""

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        self.base_layer = base
        self.transposed = type(base).__name__ == "Conv1D"
        weight = base.weight
        inputs, outputs = weight.shape if self.transposed else reversed(weight.shape)
        self.lora_A = nn.Parameter(torch.empty(rank, inputs))  # peft writes it as lora_A.weight
        bound = 1 / math.sqrt(inputs)  # kaiming_uniform(a=sqrt 5), as PEFT starts A; B = 0 leaves the base unchanged
        with torch.no_grad():
            self.lora_A.uniform_(-bound, bound, generator=generator)
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank))
        self.scale = alpha / rank
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.enabled = True

    @property
    def weight(self) -> Tensor:
        """The frozen weight: some models look at it (T5 at its dtype)."""
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias."""
        return self.base_layer.bias

    def forward(self, inputs: Tensor) -> Tensor:
        out = self.base_layer(inputs)
        if not self.enabled:
            return out
        update = nn.functional.linear(nn.functional.linear(self.dropout(inputs), self.lora_A), self.lora_B)
        return out + update * self.scale

    def delta(self) -> Tensor:
        """The update in the layout of the base weight, float32."""
        update = (self.lora_B.float() @ self.lora_A.float()) * self.scale
        return update.T if self.transposed else update


def attach(model: Model, settings: Mapping[str, Any], dropout: float, seed: int) -> None:
    """Freeze the base, give each target layer its update, and let a new head train whole."""
    if model.base.random:  # its base exists nowhere but in this process
        raise TaskError("lora needs pre-trained weights", "base.weights", "set rungs: [full] to train from scratch")
    told = Settings(**settings)
    names = _chosen(model, told.targets)
    for name, value in model.hf.named_parameters():
        value.requires_grad_(name in model.fresh)
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        _put(model, name, told.rank, told.alpha, dropout, generator)


def _put(model: Model, name: str, rank: int, alpha: float, dropout: float, generator: torch.Generator) -> None:
    parent, _, leaf = name.rpartition(".")
    owner = model.hf.get_submodule(parent)
    setattr(owner, leaf, LoraLinear(getattr(owner, leaf), rank, alpha, dropout, generator))


def layers(model: Model) -> dict[str, LoraLinear]:
    """The adapted layers by the names their bases had."""
    return {name: item for name, item in model.hf.named_modules() if isinstance(item, LoraLinear)}


def _linear(model: Model) -> list[str]:
    """Every linear layer of the base that is neither its output layer nor part of a new head."""
    ends = {id(model.hf.get_output_embeddings())} if model.head.kind == "language" else set()
    fresh = {name.rpartition(".")[0] for name in model.fresh}
    return [
        name
        for name, item in model.hf.named_modules()
        if (isinstance(item, nn.Linear) or type(item).__name__ == "Conv1D")
        and id(item) not in ends
        and name not in fresh
    ]


def _chosen(model: Model, targets: list[str]) -> list[str]:
    known = _linear(model)
    if not targets:
        tied = {
            id(value) for item in model.hf.modules() if isinstance(item, nn.Embedding) for value in item.parameters()
        }
        return [name for name in known if id(model.hf.get_submodule(name).weight) not in tied]
    names = [name for name in known if any(name == target or name.endswith(f".{target}") for target in targets)]
    if not names:
        leaves = sorted({name.rpartition(".")[2] for name in known})
        raise TaskError(f"lora.targets {targets} match no layer", "lora.targets", f"this model has {', '.join(leaves)}")
    return names


def merge(model: Model) -> None:
    """Add every update to its weight in float32 and take the adapters off."""
    for name, item in layers(model).items():
        parent, _, leaf = name.rpartition(".")
        with torch.no_grad():
            weight = item.base_layer.weight
            weight.copy_((weight.float() + item.delta()).to(weight.dtype))
        setattr(model.hf.get_submodule(parent), leaf, item.base_layer)


@contextmanager
def disabled(model: Model) -> Iterator[None]:
    """The base inside the tuned model, without a second copy."""
    adapted = list(layers(model).values())
    for item in adapted:
        item.enabled = False
    try:
        yield
    finally:
        for item in adapted:
            item.enabled = True


def tensors(model: Model) -> dict[str, Tensor]:
    """The adapter's tensors, and a new head's, under PEFT's names."""
    told = {}
    for name, value in model.trainable().items():
        plain = name.removesuffix(".lora_A").removesuffix(".lora_B")
        told[f"{PREFIX}{name}.weight" if plain != name else f"{PREFIX}{name}"] = value.detach()
    return told


def save(model: Model, folder: Path, base: str) -> None:
    """A PEFT folder: adapter_config.json and adapter_model.safetensors."""
    adapted = layers(model)
    first = next(iter(adapted.values()))
    ranks = {name: item.lora_A.shape[0] for name, item in adapted.items()}
    alphas = {name: _plain(item.scale * ranks[name]) for name, item in adapted.items()}
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    config = {
        "peft_type": "LORA",
        "task_type": _task_type(model),
        "base_model_name_or_path": base,
        "revision": None,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "lora_dropout": first.dropout.p if isinstance(first.dropout, nn.Dropout) else 0.0,
        "target_modules": _suffixes(model, list(adapted)),
        "bias": "none",
        "fan_in_fan_out": first.transposed,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": _heads(model) or None,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    kept = {name: value.contiguous() for name, value in tensors(model).items()}
    save_file(kept, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _plain(number: float) -> float:
    """16.0 as 16, as people and PEFT write it."""
    return int(number) if float(number).is_integer() else number


def _task_type(model: Model) -> str | None:
    if model.head.kind != "language":
        return "SEQ_CLS"
    return {"decoder": "CAUSAL_LM", "encoder-decoder": "SEQ_2_SEQ_LM", "encoder": None}[model.base.kind]


def _heads(model: Model) -> list[str]:
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


KNOWN = {  # what PEFT writes and `load` honours, or what matters in training only
    *(
        "peft_type",
        "task_type",
        "base_model_name_or_path",
        "revision",
        "peft_version",
        "auto_mapping",
        "inference_mode",
    ),
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "fan_in_fan_out"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
    *("init_lora_weights", "megatron_core"),
}


def load(model: Model, folder: Path) -> None:
    """Put a PEFT folder's update (and head) onto a freshly loaded base, whoever saved it.

    Which layers have an update, and of what rank, is read from the tensors.  Raises ValueError when the folder asks for
    more than LoRA on linear layers (DoRA, trained biases, PiSSA's changed base ...) or does not fit this base.
    """
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    more = (value is True or isinstance(value, str | list | dict) for value in config.values())
    odd = [
        key
        for key, on in zip(config, more, strict=True)
        if on and key not in KNOWN and config[key] not in ("none", [], {})
    ]
    if config.get("init_lora_weights", True) not in (True, False, "gaussian", "orthogonal"):
        odd.append("init_lora_weights")  # the others change the base
    if config["peft_type"] != "LORA" or odd:
        raise ValueError(
            f"this is more than plain LoRA: {', '.join(odd) or config['peft_type']}; merge it with peft first"
        )
    try:
        saved = load_file(folder / "adapter_model.safetensors")
    except SafetensorError as problem:
        raise ValueError(f"adapter_model.safetensors is damaged: {problem}") from None
    ending = ".lora_A.weight"
    ranks = {name[len(PREFIX) : -len(ending)]: len(value) for name, value in saved.items() if name.endswith(ending)}
    for name, value in model.hf.named_parameters():
        value.requires_grad_(name in model.fresh)
    fitting = set(_linear(model))
    for name, rank in ranks.items():
        if name in fitting:
            alpha = _alpha(config, name) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)
            _put(model, name, rank, alpha, 0.0, torch.Generator())
    wanted = tensors(model)
    apart = sorted(set(saved) ^ set(wanted)) + [n for n in wanted if n in saved and saved[n].shape != wanted[n].shape]
    if apart or not ranks:
        raise ValueError(f"the adapter's tensors do not fit this base: {len(apart)} differ {apart[:1]}")
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(saved[name])


def _alpha(config: Mapping[str, Any], name: str) -> float:
    """The alpha of one layer: alpha_pattern's, whose keys are names or their ends, else lora_alpha."""
    for key, value in (config.get("alpha_pattern") or {}).items():
        if not key.replace(".", "").replace("_", "").isalnum():
            raise ValueError(f'alpha_pattern "{key}" is a pattern; write layer names')
        if name == key or name.endswith(f".{key}"):
            return float(value)
    return float(config["lora_alpha"])
