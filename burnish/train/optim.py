"""What a step changes and how: float32 masters, optimizers, and the learning rate of every step.

In: a model's parameters and the task's train section.  Out: Masters, an optimizer that steps them, and `rate(step)`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from burnish.errors import MissingExtra, TaskError
from burnish.task import Train

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PLAIN = (torch.float32, torch.float16, torch.bfloat16)  # weights as numbers; a quantised one stays as it is


def precision(wanted: str, device: torch.device) -> Literal["fp32", "bf16"]:
    """The arithmetic of `train.precision`; auto is bf16 where this machine multiplies it in hardware."""
    if wanted != "auto":
        return "bf16" if wanted == "bf16" else "fp32"
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if device.type == "cpu" and fast else "fp32"


def round_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Round the weights that do not train to the model's arithmetic; a second time changes nothing."""
    if dtype != torch.float32:
        for value in model.parameters():
            if not value.requires_grad and value.dtype in PLAIN:
                value.data = value.data.to(dtype)


class Masters:
    """The trained weights in float32, behind a model that computes in `dtype`.

    A weight moves by less than bfloat16's 8 bits can show, so the sum of many steps lives in a float32 twin: gradients
    are added up there, the optimizer steps there, and the rounded twin is what the model reads (Micikevicius et al.
    2018, Mixed Precision Training, section 3.1).  Frozen weights are rounded once and have no twin.

    values: by name; the parameter itself where the model computes in float32, or where its layer casts it (`exact`).
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter], dtype: torch.dtype) -> None:
        self.values: dict[str, nn.Parameter] = dict(parameters)
        self._rounded: dict[str, nn.Parameter] = {}
        self._hooks = []
        for name, value in parameters.items():
            if dtype == torch.float32 or getattr(value, "exact", False):  # its own layer casts it
                value.data = value.data.float()
                continue
            self.values[name] = nn.Parameter(value.detach().float())  # takes over float32 storage, without a copy
            self._rounded[name] = value
            value.data = value.data.to(dtype)
            self._hooks.append(value.register_post_accumulate_grad_hook(self._gather(self.values[name])))
        round_frozen(model, dtype)

    @staticmethod
    def _gather(master: nn.Parameter) -> Callable[[nn.Parameter], None]:
        """Add a weight's gradient to its master's in float32 as soon as it is there, and free it."""

        def hook(value: nn.Parameter) -> None:
            if master.grad is None:
                master.grad = value.grad.float()
            else:
                master.grad.add_(value.grad)
            value.grad = None

        return hook

    def round(self) -> None:
        """Let the model read what the masters have become."""
        if self._rounded:
            with torch.no_grad():
                torch._foreach_copy_(list(self._rounded.values()), [self.values[name] for name in self._rounded])

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Set every master, and with it the model, to these tensors."""
        with torch.no_grad():
            for name, value in self.values.items():
                value.copy_(tensors[name])
        self.round()

    def copies(self) -> dict[str, Tensor]:
        """The masters as they are now, apart from what follows."""
        return {name: value.detach().clone() for name, value in self.values.items()}

    def clear(self) -> None:
        """Forget every gradient, also a half-made one."""
        for value in (*self.values.values(), *self._rounded.values()):
            value.grad = None

    def release(self) -> None:
        """Give the model its trained weights in float32, to be saved."""
        for hook in self._hooks:
            hook.remove()
        for name, value in self._rounded.items():
            value.data = self.values[name].data


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
    """The optimizer; decay acts on matrices only.  Adam and SGD add L2 to the gradient, the others decay apart.

    State per weight of a matrix: adam, adamw 8 bytes; adamw-8bit 2 (Dettmers et al. 2021, 8-bit Optimizers via
    Block-wise Quantization; tensors under 4,096 numbers keep 8); sgd 4; adafactor next to none (Shazeer & Stern 2018:
    a row and a column; no momentum).  Adafactor's step is not scaled by the weight's size (their section 8; eps2 = 1
    switches it off up to a root mean square of 1), so that a learning rate means what it means to AdamW.
    """
    decayed = [value for name, value in parameters.items() if decays(name, value)]
    plain = [value for name, value in parameters.items() if not decays(name, value)]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    first, second = settings.betas
    cut = any(hasattr(value, "full_tensor") for value in parameters.values())  # over devices, see distributed.py
    if cut and settings.optimizer in ("adafactor", "adamw-8bit"):
        what = f"{settings.optimizer} cannot train a model that is cut over devices"
        raise TaskError(what, "train.optimizer", "use adamw, whose state is cut too, or train without --shard")
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=1.0, momentum=first, fused=not cut)
    if settings.optimizer == "adafactor":
        return torch.optim.Adafactor(groups, lr=1.0, eps=(None, 1.0))
    if settings.optimizer == "adamw-8bit":
        return _bitsandbytes().AdamW8bit(groups, lr=1.0, betas=(first, second), eps=1e-8)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=1.0, betas=(first, second), eps=1e-8, fused=True)


def _bitsandbytes() -> Any:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels that nobody asked for
    try:
        import bitsandbytes.optim
    except ImportError:
        raise MissingExtra("train.optimizer adamw-8bit", "8bit") from None
    return bitsandbytes.optim


def add_l1(parameters: Mapping[str, nn.Parameter], strength: float) -> None:
    """Add the L1 penalty's subgradient, strength x sign(w), to the gradients of the decayed weights."""
    for name, value in parameters.items():
        if value.grad is not None and decays(name, value):
            value.grad.add_(value.detach().sign(), alpha=strength)


def state_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimizer's tensors by parameter name, `name|exp_avg`; plain counts become 0-dim int64 tensors."""
    return {
        f"{name}|{key}": torch.as_tensor(item)
        for name, value in parameters.items()
        for key, item in optimizer.state.get(value, {}).items()
        if item is not None
    }


def restore(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `state_tensors` gave."""
    for key, item in tensors.items():
        name, _, part = key.rpartition("|")
        count = item.dtype == torch.int64 and not item.ndim
        optimizer.state[parameters[name]][part] = int(item) if count else item.to(parameters[name].device, copy=True)
