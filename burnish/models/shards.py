"""A base whose linear layers are quantised as each tensor is read, so that it is never in memory unquantised.

In: a transformers model on the meta device, and the folder of its weights (or none: random ones).  Out: the same model,
filled; its linear layers but the output layer and a new head are Linear4.  Where random weights cannot be drawn layer
by layer, `draw` declines: load it whole then, and `compress`.  `outline` leaves all in the files, for a process to take
its `share` of.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from burnish.models import places
from burnish.models.quantize import Linear4, Packed, hollow, pack, quantize, scaled


class _Unfit(Exception):
    """This base's random weights cannot be drawn tensor by tensor."""


def is_linear(item: nn.Module) -> bool:
    """Whether a module computes x Wᵀ + b and nothing else; routers of experts that are linear layers do more."""
    if isinstance(item, nn.Linear):
        return type(item).forward is nn.Linear.forward or type(item).__name__ == "FalconLinear"
    return isinstance(item, Conv1D)


def linears(hf: Any, language: bool, fresh: Collection[str]) -> list[str]:
    """The layers to quantise: linear ones that are not the output layer, not tied to embeddings and not new.

    Nor those that transformers keeps in float32 (T5's `wo`), which bitsandbytes leaves whole as well.

    language: the model ends in a language head.  fresh: names of new parameters.
    """
    ends = {id(hf.get_output_embeddings())} if language else set()
    kept = tuple(f".{name}" for name in getattr(hf, "_keep_in_fp32_modules", None) or ())
    tied = {id(item.weight) for item in hf.modules() if isinstance(item, nn.Embedding)}
    return [
        name
        for name, item in hf.named_modules()
        if is_linear(item)
        and id(item) not in ends
        and id(item.weight) not in tied
        and f"{name}.weight" not in fresh
        and not name.endswith(kept)
    ]


def compress(hf: Any, names: Iterable[str]) -> None:
    """Quantise these layers in place, one after the other."""
    for name in names:
        places.put(hf, name, Linear4.of(hf.get_submodule(name)))


def outline(hf: Any, folder: Path, language: bool, heads: Collection[str]) -> frozenset[str]:
    """As `places.outline`, but what is to be quantised is a Linear4 that knows the place of its weight.

    heads: parameters of a new head.
    """
    missing = places.outline(hf, folder)
    for name in linears(hf, language, heads):
        layer = hf.get_submodule(name)
        if place := getattr(layer.weight, "place", None):
            turned = isinstance(layer, Conv1D)
            shape = tuple(layer.weight.T.shape if turned else layer.weight.shape)
            made = Linear4(hollow(shape), layer.bias, torch.float32, turned)
            made.place = place
            places.put(hf, name, made)
    return missing


@torch.no_grad()
def draw(hf: Any, language: bool, heads: Collection[str]) -> bool:
    """Give a meta model random weights, as transformers does, layer by layer; float32 where they are not quantised.

    Returns whether they could be drawn so; if not the model is left half filled.
    """
    names = linears(hf, language, heads)
    places.complete(hf, lambda name, value: name[:-7] not in names and name not in hf.all_tied_weights_keys)
    hf.tie_weights(recompute_mapping=False)
    try:
        packed = _drawn(hf, names)
    except _Unfit:
        return False
    for name in names:
        layer = hf.get_submodule(name)
        places.put(hf, name, Linear4(packed.pop(name), layer.bias, torch.float32, isinstance(layer, Conv1D)))
    return True


@torch.no_grad()
def share(
    name: str, layer: Linear4, codes: tuple[int, int], scales: tuple[int, int], agree: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The part of a layer, still in its file, that one of several processes keeps: codes, scales, all constants.

    codes, scales: from and to which byte of each.  Of the file are read the rows in which the blocks of those codes
    lie; all of them of a transposed layer.  agree: the largest numbers that any process has, one by one: each knows
    its own blocks', zeros else, and scales are relative to the mean of all.  Together the parts are `quantize`'s, bit
    by bit, wherever they are cut.  Raises ModelError where a number is not finite.
    """
    assert layer.place is not None
    block, width, largest = layer.block, layer.in_features, torch.zeros(len(layer.scales))
    first, last = 2 * codes[0] // block, -(-2 * codes[1] // block)  # blocks that the codes lie in
    if layer.transposed:
        start, value = 0, layer.place.rows().T
    else:
        start, value = first * block // width, layer.place.rows(first * block // width, -(-last * block // width))
    flat = value.reshape(-1)[first * block - start * width : last * block - start * width]
    own, told = pack(flat, block)
    largest[first:last] = places.finite(name, told)
    small, steps, mean = scaled(agree(largest))
    skipped = codes[0] - first * block // 2
    constants = torch.cat([steps, mean[None]]).view(torch.int32)
    return own[skipped : skipped + codes[1] - codes[0]], small[scales[0] : scales[1]].clone(), constants


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
