"""liger-kernel's Triton kernels for the steps of fused.py, on CUDA, where they are installed and prove themselves.

In: contiguous tensors of one type.  Out: what fused.py's own formulas give.  Each step is tried once for a device and
type on random numbers, value and gradient; what cannot be imported, compiled or is not the same is left to PyTorch.
Liger's autograd functions are not used: they wait for the device (cross-entropy) and keep what fused.py need not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

DEVICE = "cuda"
ROOM = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}  # of the largest value: rounding, a few bits
WIDEST = 1 << 15  # numbers of a row that one program takes


def fits(step: str, *tensors: Tensor) -> bool:
    """Whether liger's kernel of a step (a key of STEPS) can work on these."""
    first = tensors[0]
    alike = all(item.device.type == DEVICE and item.dtype == first.dtype and item.is_contiguous() for item in tensors)
    return alike and first.dtype in ROOM and first.numel() > 0 and step in proven(first.device, first.dtype)


@cache
def proven(device: torch.device, dtype: torch.dtype) -> frozenset[str]:
    """The steps that compute the same on this device in this type."""
    return frozenset(step for step, (trial, plain) in STEPS.items() if _same(trial, plain, device, dtype))


@contextmanager
def trying() -> Iterator[None]:
    """Within it gradients are had wherever one is: in an answer, or in a layer whose activations are not kept."""
    hooks = torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is)  # a checkpoint counts what is saved
    with torch.inference_mode(False), torch.enable_grad(), hooks:
        yield


def _as_it_is(value: Tensor) -> Tensor:
    return value


def said(device: torch.device, dtype: torch.dtype) -> str:
    """What the steps are done by, for people."""
    try:
        own = version("liger-kernel")
    except PackageNotFoundError:
        return "PyTorch's operations (liger-kernel is not installed)"
    found = proven(device, dtype)
    lacking = sorted(set(STEPS) - found)
    if not found:
        return f"PyTorch's operations (liger-kernel {own} does not run here or computes otherwise)"
    return f"liger-kernel {own}" + (f", but for {', '.join(lacking)} PyTorch's operations" if lacking else "")


def norm(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x / rms(x) * weight, all in float32 and rounded once, and the (rows,) 1 / rms."""
    from liger_kernel.ops.rms_norm import rms_norm_forward

    out, _, inverse, *_ = rms_norm_forward(x, weight, epsilon, 0.0, "gemma", None)
    return out, inverse


def norm_back(gradient: Tensor, x: Tensor, weight: Tensor, inverse: Tensor, wanted: bool) -> Any:
    """The gradients of x and, where it is wanted, of the weight."""
    from liger_kernel.ops.rms_norm import _CASTING_MODE_GEMMA, calculate_settings, rms_norm_backward

    rows = x.view(-1, x.shape[-1])
    told = (0.0, _CASTING_MODE_GEMMA.value, *calculate_settings(x.shape[-1]), False, None)
    return rms_norm_backward(gradient, rows, weight, inverse, *told, needs_dw=wanted)


def gated(gate: Tensor, other: Tensor) -> Tensor:
    """silu(gate) * other."""
    from liger_kernel.ops.swiglu import swiglu_forward

    out: Tensor = swiglu_forward(gate, other)[2]
    return out


def gated_back(gradient: Tensor, gate: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of gate and other, in new memory: liger writes them over what it reads."""
    from liger_kernel.ops.swiglu import swiglu_backward

    dgate, dother = swiglu_backward(gate.clone(), other.clone(), gradient)
    return dgate, dother


def turned(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, back: bool) -> tuple[Tensor, Tensor]:
    """Queries and keys (T, heads, D) turned by their positions, or turned back; the angles (T, D) in float32."""
    from liger_kernel.ops.rope import rope_backward, rope_forward

    parts = (part.clone()[None].transpose(1, 2) for part in (query, key))  # it writes into what it reads
    told = (rope_backward if back else rope_forward)(*parts, cos.float(), sin.float())
    return told[0].transpose(1, 2)[0], told[1].transpose(1, 2)[0]


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor, smoothing: float, wanted: bool) -> Tensor:
    """The (N,) weighted losses; the (N, V) logits then hold their gradient, if it is wanted."""
    from liger_kernel.ops.cross_entropy import liger_cross_entropy_kernel

    rows, size = logits.shape
    losses = torch.empty(rows, device=logits.device)
    block = min(WIDEST, 1 << (size - 1).bit_length())
    liger_cross_entropy_kernel[(rows,)](
        X_ptr=logits,
        X_stride=size,
        Y_ptr=targets,
        Y_stride=1,
        weight_ptr=None,
        loss_ptr=losses,
        z_loss_ptr=None,
        loss_stride=1,
        token_accuracy_ptr=None,
        token_accuracy_stride=0,
        predicted_tokens_ptr=None,
        predicted_tokens_stride=0,
        n_cols=size,
        n_non_ignore=1,
        sum_non_ignore_weight=1.0,
        weight_sum=0.0,
        ignore_index=-100,
        lse_square_scale=0.0,
        label_smoothing=smoothing,
        reduction="sum",
        softcap=None,
        RETURN_Z_LOSS=False,
        RETURN_TOKEN_ACCURACY=False,
        RETURN_PREDICTED_TOKENS=False,
        BLOCK_SIZE=block,
        HAS_WEIGHT=False,
        HAS_SOFTCAPPING=False,
        HAS_GRADIENTS=wanted,
        num_warps=32,
    )
    if wanted:
        logits.mul_(weights[:, None])
    return losses * weights


Values = list[Tensor]


def _same(trial: Callable[..., Values], plain: Callable[..., Tensor], device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a step's value and gradients are the plain formula's in float32, but for rounding."""
    draw = torch.Generator().manual_seed(0)
    try:
        with trying():
            told = trial(lambda *shape: torch.randn(shape, generator=draw).to(device, dtype), plain)
    except Exception:  # not installed, another version, no compiler for kernels: PyTorch's operations
        return False
    pairs = zip(told[::2], told[1::2], strict=True)
    return all(bool((a.float() - b).abs().max() <= ROOM[dtype] * b.abs().max()) for a, b in pairs)


def _beside(mine: Values, out: Tensor, back: Tensor, values: Values) -> Values:
    """Each of mine (the value, then gradients) beside the plain one."""
    theirs = [out.detach(), *torch.autograd.grad(out, values, back.float())]
    return [item for pair in zip(mine, theirs, strict=True) for item in pair]


def _exact(*values: Tensor) -> Values:
    return [value.detach().float().requires_grad_() for value in values]


def _try_norm(draw: Callable[..., Tensor], plain: Callable[..., Tensor]) -> Values:
    x, weight, back = draw(5, 96), draw(96), draw(5, 96)
    exact = _exact(x, weight)
    out, inverse = norm(x, weight, 1e-5)
    return _beside([out, *norm_back(back, x, weight, inverse, True)], plain(*exact), back, exact)


def _try_gated(draw: Callable[..., Tensor], plain: Callable[..., Tensor]) -> Values:
    gate, other, back = draw(5, 96), draw(5, 96), draw(5, 96)
    exact = _exact(gate, other)
    return _beside([gated(gate, other), *gated_back(back, gate, other)], plain(*exact), back, exact)


def _try_turned(draw: Callable[..., Tensor], plain: Callable[..., Tensor]) -> Values:
    query, key, back, angles = draw(5, 6, 16), draw(5, 2, 16), draw(5, 6, 16), draw(5, 8).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()
    exact = _exact(query, key)
    told = []
    for i, grown in enumerate((back, back[:, :2])):
        mine = [turned(query, key, cos, sin, False)[i], turned(back, back[:, :2].contiguous(), cos, sin, True)[i]]
        told += _beside(mine, plain(exact[i], cos.float(), sin.float()), grown, [exact[i]])
    return told


def _try_cross_entropy(draw: Callable[..., Tensor], plain: Callable[..., Tensor]) -> Values:
    told = []
    for smoothing in (0.0, 0.1):
        logits, weights = draw(5, 300), draw(5).float().abs()
        targets, exact = torch.arange(5, device=logits.device) * 7, _exact(logits)
        out = plain(*exact, targets, weights, smoothing)
        losses = cross_entropy(logits, targets, weights, smoothing, True)
        told += _beside([losses, logits], out, torch.ones_like(out), exact)
    return told


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos[:, None] + torch.cat((-x[..., half:], x[..., :half]), -1) * sin[:, None]


def _cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor, smoothing: float) -> Tensor:
    return weights * nn.functional.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)


STEPS: dict[str, tuple[Callable[..., Values], Callable[..., Tensor]]] = {
    "norm": (_try_norm, lambda x, weight: nn.functional.rms_norm(x, weight.shape, weight, 1e-5)),
    "gated": (_try_gated, lambda gate, other: nn.functional.silu(gate) * other),
    "turned": (_try_turned, _turned),
    "cross_entropy": (_try_cross_entropy, _cross_entropy),
}
