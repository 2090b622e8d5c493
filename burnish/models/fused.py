"""Steps of a model that are cheaper done together: their own backward passes, nothing kept that can be told anew.

Each is exact: the same value and gradient as the plain formula, to rounding (tests/models/test_fused.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from burnish.models import kernels, liger
from burnish.models.layout import rounded

CHUNK = 1 << 23  # logits held at once: 16 MB in bfloat16
TRAINED = 1 << 25  # the same where the head is trained: every chunk adds to a float32 gradient as large as the head
DEVICE = 1 << 27  # the same on a GPU, which reads the whole head for every chunk: 256 MB in bfloat16

SLICE = 1 << 13  # rows of a head's gradient that are multiplied at once


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor, smoothing: float = 0.0
) -> Tensor:
    """Sum over N positions of weight x minus log-likelihood in nats, without ever holding (N, V) logits.

    hidden (N, H); weight (V, H) and bias (V,) of the language head; targets, weights (N,).  The gradient is made chunk
    by chunk in the forward pass, where the logits are at hand (Hsu et al. 2024, Liger Kernel, section 3.2).
    """
    return _LinearCrossEntropy.apply(hidden, weight, bias, targets, weights, smoothing)


def linear_log_likelihood(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """(N,) log-likelihood in nats of each target, for losses that are no sum over positions; float32 at least.

    As `linear_cross_entropy`, but what each position's gradient counts is known only afterwards: the logits are made
    again in the backward pass.
    """
    return _LinearLogLikelihood.apply(hidden, weight, bias, targets)


def _chunks(hidden: Tensor, weight: Tensor, *others: Tensor, trained: bool) -> Iterator[tuple[slice, list[Tensor]]]:
    """So many positions at once as logits may be held, filled up with ones that weigh nothing."""
    most = DEVICE if hidden.is_cuda else TRAINED if trained else CHUNK
    step = rounded(max(most // len(weight), 1))
    for start in range(0, len(hidden), step):
        part = slice(start, start + step)
        real = len(hidden[part])
        yield part, [_filled(item[part], rounded(real) - real) for item in (hidden, *others)]


class _LinearLogLikelihood(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        out = torch.empty(len(hidden), dtype=exact, device=hidden.device)
        for part, (rows, told) in _chunks(hidden, weight, targets, trained=False):
            logits = torch.nn.functional.linear(rows, weight, bias)
            losses = logits_gradient(logits, told, torch.ones_like(told, dtype=exact), 0.0, False)[1]
            out[part] = -losses[: len(out[part])]
        context.save_for_backward(hidden, weight, bias, targets)
        return out

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        hidden, weight, bias, targets = context.saved_tensors
        wants_hidden, wants_weight, wants_bias = context.needs_input_grad[:3]
        dhidden = torch.empty_like(hidden) if wants_hidden else None
        dweight = torch.zeros_like(weight, dtype=gradient.dtype) if wants_weight else None
        dbias = torch.zeros_like(bias, dtype=gradient.dtype) if wants_bias and bias is not None else None
        for part, (rows, told, worth) in _chunks(hidden, weight, targets, -gradient, trained=wants_weight):
            logits = torch.nn.functional.linear(rows, weight, bias)
            own = logits_gradient(logits, told, worth, 0.0, True)[0]
            if dhidden is not None:
                dhidden[part] = (own @ weight)[: len(dhidden[part])]
            if dweight is not None:
                _add_product(dweight, own, rows)
            if dbias is not None:
                dbias += own.sum(0, dtype=gradient.dtype)
            del logits, own
        return (
            dhidden,
            _handed_on(weight, dweight),
            None if dbias is None else dbias.to(bias.dtype),
            None,
        )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weights: Tensor,
        smoothing: float,
    ) -> Tensor:
        wants_hidden, wants_weight, wants_bias = context.needs_input_grad[:3]
        wanted = wants_hidden or wants_weight or wants_bias
        dhidden = torch.empty_like(hidden) if wanted else None
        exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        total = torch.zeros((), dtype=exact, device=hidden.device)
        dweight = torch.zeros_like(weight, dtype=total.dtype) if wants_weight else None
        dbias = torch.zeros_like(bias, dtype=total.dtype) if wants_bias and bias is not None else None
        given = targets, weights.to(total.dtype)
        for part, (rows, told, worth) in _chunks(hidden, weight, *given, trained=wants_weight):
            logits = torch.nn.functional.linear(rows, weight, bias)
            gradient, losses = logits_gradient(logits, told, worth, smoothing, wanted)
            total += losses.sum()
            if dhidden is not None:
                dhidden[part] = (gradient @ weight)[: len(dhidden[part])]
            if dweight is not None:
                _add_product(dweight, gradient, rows)
            if dbias is not None:
                dbias += gradient.sum(0, dtype=total.dtype)
            del logits, gradient  # or the next chunk's lie beside them
        context.save_for_backward(dhidden, dweight, dbias)
        context.head = weight, None if bias is None else bias.dtype
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        dhidden, dweight, dbias = context.saved_tensors
        weight, of_bias = context.head
        return (
            None if dhidden is None else dhidden * gradient.to(dhidden.dtype),
            None if dweight is None else _handed_on(weight, dweight.mul_(gradient)),
            None if dbias is None else (dbias * gradient).to(of_bias),
            None,
            None,
            None,
        )


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total (V, H) += leftᵀ right, some rows at a time: in the model's type the product is never there in full."""
    for part, columns in zip(total.split(SLICE), left.split(SLICE, 1), strict=True):
        part += columns.t() @ right


def _handed_on(weight: Tensor, gradient: Tensor | None) -> Tensor | None:
    """A head's gradient: straight to where the weight's are added up in float32 (train/optim.py), else to autograd."""
    if gradient is None or not hasattr(weight, "sums"):
        return None if gradient is None else gradient.to(weight.dtype)
    weight.sums.add(gradient)
    return None


def _filled(value: Tensor, more: int) -> Tensor:
    """The same with `more` rows of zeros at its end: products come in few shapes (see layout.py)."""
    return torch.cat([value, value.new_zeros(more, *value.shape[1:])]) if more else value


def logits_gradient(
    logits: Tensor, targets: Tensor, weights: Tensor, smoothing: float, wanted: bool
) -> tuple[Tensor, Tensor]:
    """The gradient of the weighted loss by (N, V) logits, in their dtype, and the (N,) losses.

    loss_n = w_n (lse_n - (1 - s) z_target - s mean z), gradient w_n (softmax - (1 - s) onehot - s / V).
    """
    if kernels.fits(logits):
        losses = torch.empty(len(logits))
        told = targets.contiguous(), weights.contiguous(), losses
        kernels.call("cross_entropy", logits, *told, *logits.shape, float(smoothing), int(wanted))
        return logits, losses
    if liger.fits("cross_entropy", logits):
        return logits, liger.cross_entropy(logits, targets.contiguous(), weights, float(smoothing), wanted)
    exact = logits if logits.dtype == torch.float64 else logits.float()
    size = exact.shape[1]
    most = torch.logsumexp(exact, 1)
    chosen = exact.gather(1, targets[:, None])[:, 0]
    told = most - (1 - smoothing) * chosen
    if smoothing:
        told = told - smoothing * exact.mean(1)
    losses = told * weights
    if not wanted:
        return logits, losses
    shares = exact.sub_(most[:, None]).exp_()
    if smoothing:
        shares -= smoothing / size
    shares.scatter_add_(1, targets[:, None], torch.full_like(chosen, smoothing - 1)[:, None])
    return shares.mul_(weights[:, None]).to(logits.dtype), losses


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x / rms(x) * weight over the last dimension; on CUDA liger's kernel or else PyTorch's own."""
    if x.is_cuda and x.dtype == weight.dtype and not liger.fits("norm", weight):
        return nn.functional.rms_norm(x, weight.shape, weight, epsilon)
    return Norm.apply(x, weight, epsilon)


class Norm(torch.autograd.Function):
    """x / rms(x) * w (Zhang and Sennrich 2019, RMSNorm, eq. 4); keeps x and 1 / rms."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        x = x.contiguous()
        rows, width = x.numel() // x.shape[-1], x.shape[-1]
        if kernels.fits(x, weight):
            out, inverse = torch.empty_like(x), torch.empty(*x.shape[:-1], 1)
            kernels.call("norm", x, weight, out, inverse, rows, width, float(epsilon))
        elif liger.fits("norm", x, weight):
            out, inverse = liger.norm(x, weight, float(epsilon))
        else:
            exact = x if x.dtype == torch.float64 else x.float()
            inverse = torch.rsqrt(exact.square().mean(-1, keepdim=True) + epsilon)
            out = (exact * inverse * weight).to(x.dtype)
        context.save_for_backward(x, weight, inverse)
        return out

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        x, weight, inverse = context.saved_tensors
        gradient = gradient.contiguous()
        rows, width = x.numel() // x.shape[-1], x.shape[-1]
        wanted = context.needs_input_grad[1]
        if kernels.fits(gradient, x, weight):
            dx, dweight = torch.empty_like(x), torch.zeros(width) if wanted else None
            kernels.call("norm_back", gradient, x, weight, inverse, dx, dweight, rows, width)
        elif liger.fits("norm", gradient, x, weight):
            dx, dweight = liger.norm_back(gradient, x, weight, inverse, wanted)
        else:
            exact, scaled = x.to(inverse.dtype) * inverse, gradient.to(inverse.dtype)
            dweight = (scaled * exact).reshape(rows, width).sum(0) if wanted else None
            scaled = scaled * weight
            dx = ((scaled - exact * (scaled * exact).mean(-1, keepdim=True)) * inverse).to(x.dtype)
        return dx, None if dweight is None else dweight.to(weight.dtype), None


class Gated(torch.autograd.Function):
    """silu(gate) * other (Shazeer 2020, GLU Variants, eq. 5); keeps its two inputs."""

    @staticmethod
    def forward(context: Any, gate: Tensor, other: Tensor) -> Tensor:
        context.save_for_backward(gate, other)
        if kernels.fits(gate, other):
            out = torch.empty_like(gate)
            kernels.call("gated", gate, other, out, gate.numel())
            return out
        if liger.fits("gated", gate, other):
            return liger.gated(gate, other)
        return nn.functional.silu(gate) * other

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        gate, other = context.saved_tensors
        gradient = gradient.contiguous()
        if kernels.fits(gradient, gate, other):
            dgate, dother = torch.empty_like(gate), torch.empty_like(gate)
            kernels.call("gated_back", gradient, gate, other, dgate, dother, gate.numel())
            return dgate, dother
        if liger.fits("gated", gradient, gate, other):
            return liger.gated_back(gradient, gate, other)
        return torch.ops.aten.silu_backward(gradient * other, gate), gradient * nn.functional.silu(gate)


class Turned(torch.autograd.Function):
    """Queries and keys (T, heads, D) turned by their positions (Su et al. 2021, RoFormer, eq. 34); keeps the angles."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        context.save_for_backward(cos, sin)
        return _turn(query, key, cos, sin, False)

    @staticmethod
    def backward(context: Any, to_query: Tensor, to_key: Tensor) -> Any:
        cos, sin = context.saved_tensors
        return *_turn(to_query.contiguous(), to_key.contiguous(), cos, sin, True), None, None


def _turn(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, back: bool) -> tuple[Tensor, Tensor]:
    if liger.fits("turned", query, key, cos, sin):
        return liger.turned(query, key, cos, sin, back)
    sign = -1.0 if back else 1.0
    return _turn_one(query, cos, sin, sign), _turn_one(key, cos, sin, sign)


def _turn_one(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    if kernels.fits(x, cos, sin):
        out = torch.empty_like(x)
        kernels.call("turn", x, cos, sin, out, *x.shape, sign)
        return out
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), -1)
    return torch.addcmul(x * cos[:, None], turned, sin[:, None], value=sign)
