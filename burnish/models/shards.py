"""A base whose linear layers are quantised as each tensor is read, so that it is never in memory unquantised.

In: a transformers model on the meta device, and the folder of its weights (or none: random ones).  Out: the same model,
filled; its linear layers but the output layer and a new head are Linear4.  Where a folder's tensors are not those of
the model one by one (fused experts, say), `fill` declines: load it whole then, and `compress`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.pytorch_utils import Conv1D

from burnish.models.quantize import Linear4, Packed, quantize


class _Unfit(Exception):
    """This base cannot be had tensor by tensor."""


def linears(hf: Any, language: bool, fresh: Collection[str]) -> list[str]:
    """The layers to quantise: linear ones that are not the output layer, not tied to embeddings and not new.

    language: the model ends in a language head.  fresh: names of new parameters.
    """
    ends = {id(hf.get_output_embeddings())} if language else set()
    tied = {id(item.weight) for item in hf.modules() if isinstance(item, nn.Embedding)}
    return [
        name
        for name, item in hf.named_modules()
        if isinstance(item, (nn.Linear, Conv1D))
        and id(item) not in ends
        and id(item.weight) not in tied
        and f"{name}.weight" not in fresh
    ]


def compress(hf: Any, names: Iterable[str]) -> None:
    """Quantise these layers in place, one after the other."""
    for name in names:
        _put(hf, name, Linear4.of(hf.get_submodule(name)))


def fill(hf: Any, folder: Path | None, language: bool, heads: Collection[str]) -> frozenset[str] | None:
    """Give a meta model its weights, float32 where they are not quantised; returns the names its files lack.

    folder: None draws every weight, as transformers does, layer by layer.  heads: parameters of a new head.
    Returns None, and leaves the model half filled, where tensors cannot be taken one by one.
    """
    try:
        with torch.no_grad():
            return _fill(hf, folder, language, heads)
    except _Unfit:
        return None


def _fill(hf: Any, folder: Path | None, language: bool, heads: Collection[str]) -> frozenset[str]:
    state = hf.state_dict(keep_vars=True)
    names = linears(hf, language, heads)
    packed: dict[str, Packed] = {}
    missing: set[str] | None = None
    if folder:
        packed = _read(hf, folder, state, names)
        names = list(packed)
        missing = {name for name in state if hf.get_parameter_or_buffer(name).is_meta and name[:-7] not in packed}
    for name, value in (*hf.named_parameters(), *hf.named_buffers()):
        if value.is_meta and name[:-7] not in names and name not in hf.all_tied_weights_keys:
            _set(hf, name, torch.empty_like(value, device="cpu"))
    for module in hf.modules():
        module._is_hf_initialized = False  # it was said while nothing was there to initialize
    hf.initialize_weights()  # what no file holds: a new head, the frequencies of rotary positions
    hf.tie_weights(missing_keys=missing, recompute_mapping=False)
    if not folder:
        packed = _drawn(hf, names)
    for name in names:
        layer = hf.get_submodule(name)
        _put(hf, name, Linear4(packed.pop(name), layer.bias, torch.float32, isinstance(layer, Conv1D)))
    return frozenset(missing or ())


def _read(hf: Any, folder: Path, state: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Packed]:
    """Put every tensor of the folder's files where it belongs; those of the layers `names` are returned, quantised.

    Names are what transformers makes of a file's; raises _Unfit where it would have to compute with tensors.
    """
    told = get_model_conversion_mapping(hf)
    renamed = [item for item in told if isinstance(item, WeightRenaming)]
    computed = [item for item in told if isinstance(item, WeightConverter)]
    packed = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt", backend="pread") as shard:  # of a mapped file all that was read counts as memory
            for key in shard.keys():  # noqa: SIM118 (it is no mapping)
                name, by = rename_source_key(key, renamed, computed, hf.base_model_prefix, state)
                if name not in state and key in state:
                    name, by = key, None
                if by is not None:
                    raise _Unfit
                if name not in state or state[name].shape != torch.Size(shard.get_slice(key).get_shape()):
                    continue  # ignored, as transformers does; what is then lacking is told by `fill`
                value = shard.get_tensor(key)
                if name.endswith(".weight") and name[:-7] in names:
                    conv = isinstance(hf.get_submodule(name[:-7]), Conv1D)
                    packed[name[:-7]] = quantize(value.T if conv else value)
                else:
                    _set(hf, name, value.to(state[name].dtype))
                    hf.get_parameter_or_buffer(name)._is_hf_initialized = True
    return packed


def _drawn(hf: Any, names: Iterable[str]) -> dict[str, Packed]:
    """Random weights for these layers, drawn one after the other by the model's own rules and quantised at once."""
    for value in (*hf.parameters(), *hf.buffers()):
        value._is_hf_initialized = not value.is_meta
    packed = {}
    for name in names:
        layer, parts = hf.get_submodule(name), name.split(".")
        empty = layer.weight
        layer.weight = nn.Parameter(torch.full(empty.shape, torch.nan))
        for depth in range(len(parts), -1, -1):  # some rules are a parent's (T5), or the parent's the last word (GPT-2)
            hf._init_weights(hf.get_submodule(".".join(parts[:depth])))
        weight, layer.weight = layer.weight, empty
        if weight.isnan().any():
            raise _Unfit
        packed[name] = quantize(weight.T if isinstance(layer, Conv1D) else weight)
    return packed


def _set(hf: Any, name: str, value: Tensor) -> None:
    """Give a parameter or buffer its value."""
    parent, _, leaf = name.rpartition(".")
    owner = hf.get_submodule(parent)
    if leaf in owner._parameters:
        value = nn.Parameter(value, requires_grad=value.is_floating_point())
    setattr(owner, leaf, value)


def _put(hf: Any, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(hf.get_submodule(parent), leaf, module)
