"""A model that computes in float32 for a while although its weights are kept in less.

In: a transformers model.  Out: the same; the weights of a block are float32 while it is at work.  Here because what is
shown on a model, that packed rows are kept apart, is shown by differences smaller than bfloat16's rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

LESS = (torch.bfloat16, torch.float16)


@contextmanager
def widened(hf: nn.Module) -> Iterator[None]:
    """Within it a model computes in float32; beside its weights one block's are in memory, and what is in none.

    A model that is cut over processes stays as it is.
    """
    narrow: dict[nn.Parameter, Tensor] = {}
    parts = [*blocks(hf)]
    inside = {value for block in parts for value in block.parameters()}
    hooks = []
    try:
        if not any(hasattr(value, "full_tensor") for value in hf.parameters()):
            _widen([value for value in hf.parameters() if value not in inside], narrow)
            for block in parts:
                hooks.append(block.register_forward_pre_hook(lambda module, _: _widen(module.parameters(), narrow)))
                hooks.append(block.register_forward_hook(lambda module, *_: _narrow(module.parameters(), narrow)))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        _narrow([*narrow], narrow)


def _widen(values: Iterable[nn.Parameter], narrow: dict[nn.Parameter, Tensor]) -> None:
    for value in values:
        if value.dtype in LESS:
            narrow[value] = value.data
            value.data = value.data.float()


def _narrow(values: Iterable[nn.Parameter], narrow: dict[nn.Parameter, Tensor]) -> None:
    for value in values:
        if value in narrow:
            value.data = narrow.pop(value)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The entries of outermost module lists; a list of one may be a block that runs many times (ALBERT)."""
    for child in module.children():
        if isinstance(child, nn.ModuleList) and len(child) > 1:
            yield from child
        else:
            yield from blocks(child)
