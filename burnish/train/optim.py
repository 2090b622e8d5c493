"""Optimizers and the learning rate of every step, as pure functions of the task.

In: parameters and the task's train section.  Out: a torch optimizer, and `rate(step)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from burnish.task import Train


def rate(step: int, steps: int, settings: Train, peak: float) -> float:
    """The learning rate of optimizer step `step` (1 .. steps).

    It rises to the peak over the warm-up (rate(1) = peak / warm-up steps: never 0), then falls so that the last
    step has floor x peak (linear, cosine) or stays (constant).

    >>> [round(rate(s, 4, Train(schedule="linear", warmup=2, floor=0.0), 1.0), 3) for s in (1, 2, 3, 4)]
    [0.5, 1.0, 0.5, 0.0]
    """
    warmup = warmup_steps(steps, settings)
    if step <= warmup:
        return peak * step / warmup
    if settings.schedule == "constant":
        return peak
    done = (step - warmup) / max(steps - warmup, 1)
    left = 1 - done if settings.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return peak * (settings.floor + (1 - settings.floor) * left)


def warmup_steps(steps: int, settings: Train) -> int:
    """Warm-up as a number of steps: a share of all steps below 1, else a count."""
    wanted = settings.warmup * steps if settings.warmup < 1 else settings.warmup
    return min(round(wanted), steps)


def decays(name: str, value: Tensor) -> bool:
    """Whether L1 and L2 act on a parameter: matrices only, never biases, norms or single vectors."""
    return value.ndim >= 2


def build(parameters: Mapping[str, nn.Parameter], settings: Train) -> torch.optim.Optimizer:
    """The optimizer; decay acts on matrices only.  Adam adds L2 to the gradient, AdamW decays apart from it."""
    decayed = [value for name, value in parameters.items() if decays(name, value)]
    plain = [value for name, value in parameters.items() if not decays(name, value)]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    first, second = settings.betas
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=1.0, momentum=first)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=1.0, betas=(first, second), eps=1e-8, foreach=True)


def add_l1(parameters: Mapping[str, nn.Parameter], strength: float) -> None:
    """Add the L1 penalty's subgradient, strength x sign(w), to the gradients of the decayed weights."""
    for name, value in parameters.items():
        if value.grad is not None and decays(name, value):
            value.grad.add_(value.detach().sign(), alpha=strength)


def state_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimizer's tensors by parameter name, `name|exp_avg`; numbers become 0-dim tensors."""
    told = {}
    for name, value in parameters.items():
        for key, item in optimizer.state.get(value, {}).items():
            if item is not None:
                told[f"{name}|{key}"] = item if isinstance(item, Tensor) else torch.tensor(float(item))
    return told


def restore(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `state_tensors` gave; raises KeyError when a parameter's state is missing."""
    for name, value in parameters.items():
        mine = {key.rpartition("|")[2]: item for key, item in tensors.items() if key.rpartition("|")[0] == name}
        if mine:
            optimizer.state[value] = {key: item.clone() for key, item in mine.items()}
