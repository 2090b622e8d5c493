"""Layers whose activations are made again in the backward pass instead of being kept.

In: a transformers model that can do so.  Out: the same, of each of whose layers only the input stays.
Source: Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as tree
from transformers.modeling_layers import GradientCheckpointingLayer

from burnish.models import heap


def recompute(hf: Any) -> None:
    """Make activations again in the backward pass instead of keeping them.

    transformers then has embeddings ask for a gradient, which would send the backward pass through every frozen layer.
    And layers under the first trained weight keep nothing of themselves; told to recompute, each would hold its input.
    """
    newer = getattr(hf, "activation_checkpointing_enable", None)  # its name in transformers 6
    (newer or hf.gradient_checkpointing_enable)({"use_reentrant": False})
    hf.disable_input_require_grads()
    whole = [module for module in hf.modules() if isinstance(module, GradientCheckpointingLayer)]
    for module in hf.modules():  # in the order of running, or some more layers than need be go on recomputing
        if any(value.requires_grad for value in module.parameters(recurse=module in whole)):
            break
        if module in whole:
            module.gradient_checkpointing = False
    here = all(type(value) is torch.nn.Parameter and value.device.type == "cpu" for value in hf.parameters())
    for module in whole if here else ():  # elsewhere PyTorch's own way, which leaves no gaps there
        module._gradient_checkpointing_func = again


def again(layer: Callable[..., Any], *told: Any) -> Any:
    """What a layer says of its arguments; nothing of it is kept but its first argument, in pages of its own.

    PyTorch's checkpoint keeps a node for every step of a layer, and between them the heap grows by a gap a layer: 0.17
    GB of 1.0 (docs/log.md).  layer: as transformers hands it over, a function whose keywords hold its other arguments.
    """
    named = getattr(layer, "keywords", {})
    run = partial(layer.func, *layer.args) if isinstance(layer, partial) else layer
    leaves, form = tree.tree_flatten((told, named))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def work(tensors: list[Tensor]) -> Any:
        whole = list(leaves)
        for i, tensor in zip(places, tensors, strict=True):
            whole[i] = tensor
        given, keywords = tree.tree_unflatten(whole, form)
        return run(*given, **keywords)

    given = [leaves[i] for i in places]
    for i in places:
        leaves[i] = None
    said: list[Any] = []
    made = _Again.apply(work, said, torch.empty(0, requires_grad=True), *given)
    others, form_out = tree.tree_flatten(said[0])
    out = iter(made)
    return tree.tree_unflatten([next(out) if leaf is _Again else leaf for leaf in others], form_out)


class _Again(torch.autograd.Function):
    """Runs twice, the second time with the same random numbers, and then backward at once."""

    @staticmethod
    def forward(context: Any, work: Any, said: list[Any], anchor: Tensor, *given: Tensor) -> Any:
        context.work, context.random = work, torch.get_rng_state()
        kept = [heap.apart(given[0]).copy_(given[0]), *given[1:]]
        context.save_for_backward(*kept)
        with torch.enable_grad():  # the very steps of the second time; what they would keep goes at the end
            leaves, form = tree.tree_flatten(work(_leaves(kept, context.needs_input_grad[3:])))
        made = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        said.append(tree.tree_unflatten([_Again if isinstance(leaf, Tensor) else leaf for leaf in leaves], form))
        out = [value.detach() for value in made]
        context.mark_non_differentiable(*(a for a, value in zip(out, made, strict=True) if not value.requires_grad))
        return tuple(out)

    @staticmethod
    def backward(context: Any, *gradients: Tensor | None) -> Any:
        given = _leaves(context.saved_tensors, context.needs_input_grad[3:])
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.set_rng_state(context.random)
            leaves = tree.tree_flatten(context.work(given))[0]
        made = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        pairs = [
            (value, gradient)
            for value, gradient in zip(made, gradients, strict=True)
            if value.requires_grad and gradient is not None
        ]
        torch.autograd.backward(*(list(side) for side in zip(*pairs, strict=True)))
        return None, None, None, *(value.grad for value in given)


def _leaves(given: Any, needed: Any) -> list[Tensor]:
    return [value.detach().requires_grad_(on) for value, on in zip(given, needed, strict=True)]
