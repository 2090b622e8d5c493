"""A base whose linear layers are quantised as each tensor is read, so that it is never in memory unquantised.

In: a transformers model on the meta device, and the folder of its weights (or none: random ones).  Out: the same model,
filled; its linear layers but the output layer and a new head are Linear4.  Where random weights cannot be drawn layer
by layer, `fill` declines: load it whole then, and `compress`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from burnish.models import places
from burnish.models.quantize import Linear4, Packed, quantize


class _Unfit(Exception):
    """This base's random weights cannot be drawn tensor by tensor."""


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
        places.put(hf, name, Linear4.of(hf.get_submodule(name)))


def fill(hf: Any, folder: Path | None, language: bool, heads: Collection[str]) -> frozenset[str] | None:
    """Give a meta model its weights, float32 where they are not quantised; returns the names its files lack.

    folder: None draws every weight, as transformers does, layer by layer.  heads: parameters of a new head.
    Returns None, and leaves the model half filled, where random weights cannot be drawn one by one.
    """
    try:
        with torch.no_grad():
            return _fill(hf, folder, language, heads)
    except _Unfit:
        return None


def _fill(hf: Any, folder: Path | None, language: bool, heads: Collection[str]) -> frozenset[str]:
    names = linears(hf, language, heads)
    packed: dict[str, Packed] = {}
    missing: set[str] | None = None
    if folder:
        state = hf.state_dict()
        for name, place in places.find(hf, folder).items():
            state.pop(name)
            if name.endswith(".weight") and name[:-7] in names:
                value = place.rows()
                packed[name[:-7]] = quantize(value.T if isinstance(hf.get_submodule(name[:-7]), Conv1D) else value)
            else:
                like = hf.get_parameter_or_buffer(name)
                value = place.rows().to(like.dtype)
                places.put(hf, name, nn.Parameter(value) if isinstance(like, nn.Parameter) else value)
                hf.get_parameter_or_buffer(name)._is_hf_initialized = True
        names, missing = list(packed), set(state)
    places.complete(hf, lambda name, value: name[:-7] not in names and name not in hf.all_tied_weights_keys)
    hf.tie_weights(missing_keys=missing, recompute_mapping=False)
    if not folder:
        packed = _drawn(hf, names)
    for name in names:
        layer = hf.get_submodule(name)
        places.put(hf, name, Linear4(packed.pop(name), layer.bias, torch.float32, isinstance(layer, Conv1D)))
    return frozenset(missing or ())


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
