"""What a step changes and how: float32 masters, optimizers, and the learning rate of every step.

In: a model's parameters and the task's train section.  Out: Masters, an optimizer that steps them, and `rate(step)`.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from burnish.errors import MissingExtra, TaskError
from burnish.models import heap, kernels
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

    A weight moves by less than bfloat16's 8 bits can show, so the sum of many steps lives in a float32 master:
    gradients are added up in float32, the optimizer steps the master, and the model reads it rounded (Micikevicius et
    al. 2018, Mixed Precision Training, section 3.1).  Beside the rounded weight only the 16 bits that it lacks are
    kept: 4 bytes a number instead of 6, and nothing is lost.  Frozen weights are rounded once and have no master.

    values: by name, what the optimizer steps: the parameter itself where the model computes in float32, or where its
    layer casts it (`exact`).  Any other carries a gradient, and numbers only within `step`; `numbers` has them.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter], dtype: torch.dtype) -> None:
        self.parameters = dict(parameters)
        self.values = dict(parameters)
        self._lower: dict[str, Tensor] = {}
        self._model = model
        self._hooks: list[Any] = []
        with heap.lasting():
            self._take_over(dtype)
        round_frozen(model, dtype)
        self._sparse(True)

    def _take_over(self, dtype: torch.dtype) -> None:
        for name, value in self.parameters.items():
            exact = value.detach().float()
            if dtype == torch.float32 or getattr(value, "exact", False):  # its own layer casts it
                value.data = exact
            else:
                value.data = torch.empty_like(exact, dtype=dtype)
                self._lower[name] = split(exact, value.data)
                self.values[name] = nn.Parameter(exact.new_zeros(()).expand(value.shape))
            if dtype != torch.float32:
                value.sums = sums = Gather(self.values[name])
                self._hooks.append(value.register_post_accumulate_grad_hook(sums.take))

    def _sparse(self, on: bool) -> None:
        """Let an embedding's gradient be the rows that were read, which are added to the sum; not a whole table."""
        halved = {id(self.parameters[name]) for name in self._lower}
        for module in self._model.modules():
            if isinstance(module, nn.Embedding) and id(module.weight) in halved and not module.scale_grad_by_freq:
                module.sparse = on

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the optimizer move every master that has a gradient, few at a time where they must be put together."""
        with contextlib.nullcontext() if optimizer.state else heap.lasting():  # the first step makes its state
            self._step(optimizer)
        self.clear()

    def _step(self, optimizer: torch.optim.Optimizer) -> None:
        waiting = {name: self.values[name].grad for name in self._lower if self.values[name].grad is not None}
        for name in waiting:
            self.values[name].grad = None
        optimizer.step()
        for names in self._together(waiting):
            hollow = {name: self.values[name].data for name in names}
            for name in names:
                self.values[name].data, self.values[name].grad = self.number(name), waiting.pop(name)
            optimizer.step()
            for name in names:
                master = self.values[name]
                self._lower[name] = split(master.data, self.parameters[name].data, self._lower[name])
                master.data, master.grad = hollow[name], None

    def _together(self, waiting: Mapping[str, Tensor]) -> list[list[str]]:
        """On a GPU as many masters as the largest has room for: fewer launches; on a CPU one, which stays cached."""
        most = max((value.numel() for value in waiting.values() if value.is_cuda), default=0)
        groups: list[list[str]] = []
        room = 0
        for name, value in waiting.items():
            if value.numel() > room:
                groups.append([])
                room = max(most, value.numel())
            groups[-1].append(name)
            room = room - value.numel() if most else 0
        return groups

    def number(self, name: str) -> Tensor:
        """A master in float32; made anew where the model computes in less."""
        value = self.parameters[name].detach()
        return join(value, self._lower[name]) if name in self._lower else value

    @property
    def numbers(self) -> Mapping[str, Tensor]:
        """Every master in float32, made when it is asked for."""
        return _Numbers(self)

    def put(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Set every master, and with it the model, to the tensor of its name; raises KeyError when one is lacking."""
        waiting = dict(self.parameters)
        with torch.no_grad():
            for name, tensor in tensors:
                value = waiting.pop(name)
                if name in self._lower:
                    split(tensor.to(value.device, torch.float32).contiguous(), value.data, self._lower[name])
                else:
                    value.copy_(tensor)
        if waiting:
            raise KeyError(f"no tensor for {', '.join(waiting)}")

    def clear(self) -> None:
        """Forget every gradient, also a half-made one."""
        for value in (*self.values.values(), *self.parameters.values()):
            value.grad = None

    def release(self) -> None:
        """Give the model its trained weights in float32, to be saved."""
        self.leave()
        for name, value in self.parameters.items():
            value.data = self.number(name)
            self._lower.pop(name, None)

    def leave(self) -> None:
        """Add up no more gradients and forget those that are there."""
        self.clear()
        self._sparse(False)
        for hook in self._hooks:
            hook.remove()
        for value in self.parameters.values():
            vars(value).pop("sums", None)


class _Numbers(Mapping[str, Tensor]):
    """The masters of a model, each made when it is asked for: all at once would be a second copy."""

    def __init__(self, masters: Masters) -> None:
        self._masters = masters

    def __getitem__(self, name: str) -> Tensor:
        return self._masters.number(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._masters.values)

    def __len__(self) -> int:
        return len(self._masters.values)


class Gather:
    """Adds up a weight's gradients in float32 as soon as they are there.

    The sum keeps its place in memory from step to step: made anew, it would lie among what backward needs for a moment
    and hold gaps open (0.2 GB in a LoRA run of 135M weights, docs/log.md).
    """

    def __init__(self, master: nn.Parameter) -> None:
        self._master, self._sum = master, torch.empty(master.shape, device=master.device)

    def add(self, gradient: Tensor) -> None:
        """Add a gradient of any type, whole or some rows (sparse)."""
        if self._master.grad is None:
            self._master.grad = self._sum.zero_() if gradient.is_sparse else self._sum.copy_(gradient)
            if not gradient.is_sparse:
                return
        self._master.grad.add_(gradient)

    def take(self, value: nn.Parameter) -> None:
        """Add what autograd has left at a weight, if anything, and free it."""
        gradient, value.grad = value.grad, None
        if gradient is not None:
            self.add(gradient)


def split(exact: Tensor, upper: Tensor, lower: Tensor | None = None) -> Tensor:
    """Write float32 numbers rounded into `upper` (bfloat16, halves away from zero); returns what it lacks (int16).

    A float32's upper 16 bits are a bfloat16; rounding adds one to them where the lower half is 0x8000 or more, and what
    is lacking is then negative.
    """
    lower = torch.empty_like(exact, dtype=torch.int16) if lower is None else lower
    if kernels.fits(exact) and upper.is_contiguous() and lower.is_contiguous():
        kernels.call("split", exact, upper, lower, exact.numel())
    else:
        bits = exact.view(torch.int32)
        high = bits.add(0x8000).bitwise_right_shift_(16)
        upper.view(torch.int16).copy_(high)
        lower.copy_(bits - high.bitwise_left_shift_(16))
    return lower


def join(upper: Tensor, lower: Tensor) -> Tensor:
    """The float32 numbers that `split` took apart, to the bit."""
    exact = torch.empty_like(upper, dtype=torch.float32)
    if kernels.fits(exact) and upper.is_contiguous() and lower.is_contiguous():
        kernels.call("join", exact, upper, lower, exact.numel())
        return exact
    return upper.view(torch.int16).int().bitwise_left_shift_(16).add_(lower).view(torch.float32)


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
        return torch.optim.SGD(groups, lr=1.0, momentum=first)  # fused ones fail where a first gradient comes late
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


def add_l1(masters: Masters, strength: float) -> None:
    """Add the L1 penalty's subgradient, strength x sign(w), to the gradients of the decayed weights."""
    for name, value in masters.values.items():
        if value.grad is not None and decays(name, value):
            value.grad.add_(masters.number(name).sign(), alpha=strength)


def state_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimizer's tensors by parameter name, `name|exp_avg`; plain counts become 0-dim int64 tensors."""
    return {
        f"{name}|{key}": torch.as_tensor(item)
        for name, value in parameters.items()
        for key, item in optimizer.state.get(value, {}).items()
        if item is not None
    }


def restore(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Iterable[tuple[str, Tensor]]
) -> None:
    """Put back what `state_tensors` gave."""
    for key, item in tensors:
        name, _, part = key.rpartition("|")
        count = item.dtype == torch.int64 and not item.ndim
        optimizer.state[parameters[name]][part] = int(item) if count else item.to(parameters[name].device, copy=True)
