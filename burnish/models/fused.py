"""Steps of a model that are cheaper done together: their own backward passes, nothing kept that can be told anew.

Each is exact: the same value and gradient as the plain formula, to rounding (tests/models/test_fused.py).  `install`
puts them into a transformers model for training, where a module of its kind proves to compute the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from burnish.models import kernels
from burnish.models.attention import attend

CHUNK = 1 << 23  # logits held at once: 2 ** 23 are 32 MB in float32


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor, smoothing: float = 0.0
) -> Tensor:
    """Sum over N positions of weight x minus log-likelihood in nats, without ever holding (N, V) logits.

    hidden (N, H); weight (V, H) and bias (V,) of the language head; targets, weights (N,).  The gradient is made chunk
    by chunk in the forward pass, where the logits are at hand (Hsu et al. 2024, Liger Kernel, section 3.2).
    """
    return _LinearCrossEntropy.apply(hidden, weight, bias, targets, weights, smoothing)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
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
        total = torch.zeros((), dtype=torch.float64 if hidden.dtype == torch.float64 else torch.float32)
        total = total.to(hidden.device)
        dweight = torch.zeros_like(weight, dtype=total.dtype) if wants_weight else None
        dbias = torch.zeros_like(bias, dtype=total.dtype) if wants_bias and bias is not None else None
        size = len(weight)
        step = max(CHUNK // size, 1)
        for start in range(0, len(hidden), step):
            part = slice(start, start + step)
            rows, told, worth = hidden[part], targets[part], weights[part]
            logits = torch.nn.functional.linear(rows, weight, bias)
            gradient, loss = logits_gradient(logits, told, worth.to(total.dtype), smoothing, wanted)
            total += loss
            if dhidden is not None:
                torch.mm(gradient, weight, out=dhidden[part])
            if dweight is not None:
                dweight += gradient.t() @ rows
            if dbias is not None:
                dbias += gradient.sum(0, dtype=total.dtype)
        context.save_for_backward(dhidden, dweight, dbias)
        context.dtypes = weight.dtype, None if bias is None else bias.dtype
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        dhidden, dweight, dbias = context.saved_tensors
        of_weight, of_bias = context.dtypes
        return (
            None if dhidden is None else dhidden * gradient.to(dhidden.dtype),
            None if dweight is None else (dweight * gradient).to(of_weight),
            None if dbias is None else (dbias * gradient).to(of_bias),
            None,
            None,
            None,
        )


def logits_gradient(
    logits: Tensor, targets: Tensor, weights: Tensor, smoothing: float, wanted: bool
) -> tuple[Tensor, Tensor]:
    """The gradient of the weighted loss by (N, V) logits, in their dtype, and the loss's sum.

    loss_n = w_n (lse_n - (1 - s) z_target - s mean z), gradient w_n (softmax - (1 - s) onehot - s / V).
    """
    if kernels.fits(logits):
        losses = torch.empty(len(logits))
        told = targets.contiguous(), weights.contiguous(), losses
        kernels.call("cross_entropy", logits, *told, *logits.shape, float(smoothing), int(wanted))
        return logits, losses.sum()
    exact = logits if logits.dtype == torch.float64 else logits.float()
    size = exact.shape[1]
    most = torch.logsumexp(exact, 1)
    chosen = exact.gather(1, targets[:, None])[:, 0]
    told = most - (1 - smoothing) * chosen
    if smoothing:
        told = told - smoothing * exact.mean(1)
    loss = (told * weights).sum()
    if not wanted:
        return logits, loss
    shares = exact.sub_(most[:, None]).exp_()
    if smoothing:
        shares -= smoothing / size
    shares.scatter_add_(1, targets[:, None], torch.full_like(chosen, smoothing - 1)[:, None])
    return shares.mul_(weights[:, None]).to(logits.dtype), loss


class _Norm(torch.autograd.Function):
    """x / rms(x) * w (Zhang and Sennrich 2019, RMSNorm, eq. 4); keeps x and 1 / rms."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:  # type: ignore[override]
        x = x.contiguous()
        rows, width = x.numel() // x.shape[-1], x.shape[-1]
        if kernels.fits(x, weight):
            out, inverse = torch.empty_like(x), torch.empty(*x.shape[:-1], 1)
            kernels.call("norm", x, weight, out, inverse, rows, width, float(epsilon))
        else:
            exact = x if x.dtype == torch.float64 else x.float()
            inverse = torch.rsqrt(exact.square().mean(-1, keepdim=True) + epsilon)
            out = (exact * inverse * weight).to(x.dtype)
        context.save_for_backward(x, weight, inverse)
        return out

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        x, weight, inverse = context.saved_tensors
        gradient = gradient.contiguous()
        rows, width = x.numel() // x.shape[-1], x.shape[-1]
        wanted = context.needs_input_grad[1]
        if kernels.fits(gradient, x, weight):
            dx, dweight = torch.empty_like(x), torch.zeros(width) if wanted else None
            kernels.call("norm_back", gradient, x, weight, inverse, dx, dweight, rows, width)
        else:
            exact, scaled = x.to(inverse.dtype) * inverse, gradient.to(inverse.dtype)
            dweight = (scaled * exact).reshape(rows, width).sum(0) if wanted else None
            scaled = scaled * weight
            dx = ((scaled - exact * (scaled * exact).mean(-1, keepdim=True)) * inverse).to(x.dtype)
        return dx, None if dweight is None else dweight.to(weight.dtype), None


class _Gated(torch.autograd.Function):
    """silu(gate) * other (Shazeer 2020, GLU Variants, eq. 5); keeps its two inputs."""

    @staticmethod
    def forward(context: Any, gate: Tensor, other: Tensor) -> Tensor:  # type: ignore[override]
        context.save_for_backward(gate, other)
        if kernels.fits(gate, other):
            out = torch.empty_like(gate)
            kernels.call("gated", gate, other, out, gate.numel())
            return out
        return nn.functional.silu(gate) * other

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        gate, other = context.saved_tensors
        gradient = gradient.contiguous()
        if kernels.fits(gradient, gate, other):
            dgate, dother = torch.empty_like(gate), torch.empty_like(gate)
            kernels.call("gated_back", gradient, gate, other, dgate, dother, gate.numel())
            return dgate, dother
        return torch.ops.aten.silu_backward(gradient * other, gate), gradient * nn.functional.silu(gate)


class _Turned(torch.autograd.Function):
    """Queries or keys (T, heads, D) turned by their positions (Su et al. 2021, RoFormer, eq. 34); keeps the angles."""

    @staticmethod
    def forward(context: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # type: ignore[override]
        context.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1.0)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        cos, sin = context.saved_tensors
        return _turn(gradient.contiguous(), cos, sin, -1.0), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    if kernels.fits(x, cos, sin):
        out = torch.empty_like(x)
        kernels.call("turn", x, cos, sin, out, *x.shape, sign)
        return out
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), -1)
    return torch.addcmul(x * cos[:, None], turned, sin[:, None], value=sign)


def install(hf: nn.Module) -> dict[str, int]:
    """Let the norms, gated layers and attention of a transformers model train by these; returns how many of each.

    The first module of every class is tried on random numbers beside its own forward pass; a class that does not
    compute the same (Gemma's 1 + weight, a partial rotation, another activation) is left alone.
    """
    done = {"norm": 0, "gated": 0, "attention": 0}
    proven: dict[tuple[type, str], bool] = {}
    for module in hf.modules():
        for name, suits, quick, trial in STEPS:
            if not suits(module):
                continue
            key = type(module), name
            if key not in proven:
                proven[key] = _same(module, quick, trial)
            if proven[key]:
                module.plain_forward = module.forward
                module.forward = partial(quick, module)
                done[name] += 1
    return done


def _same(module: nn.Module, quick: Callable[..., Any], trial: Callable[[nn.Module], dict[str, Any]]) -> bool:
    module.plain_forward = module.forward
    was = module.training
    module.eval()
    try:
        with torch.no_grad():
            told = trial(module)
            mine, theirs = quick(module, **told), module.forward(**told)
            pairs = zip(mine[:1], theirs[:1], strict=True) if isinstance(mine, tuple) else [(mine, theirs)]
            return all(a.shape == b.shape and bool((a - b).abs().max() <= _room(b)) for a, b in pairs)
    except Exception:  # whatever an unknown module raises: it keeps its own way
        return False
    finally:
        module.train(was)
        del module.plain_forward


def _room(value: Tensor) -> Tensor:
    """Rounding: 1e-5 of the largest in float32, three bits of bfloat16."""
    return value.abs().max().clamp_min(1e-6) * (1e-5 if value.dtype == torch.float32 else 2e-2)


def _random(*shape: int, like: Tensor) -> Tensor:
    made = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=made).to(like.device, like.dtype)


def _inputs(layer: Any) -> int:
    """How many numbers a linear layer reads, also inside an adapter."""
    return int(getattr(layer, "base_layer", layer).in_features)


def _epsilon(module: nn.Module) -> float | None:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def _is_norm(module: nn.Module) -> bool:
    return type(module).__name__.endswith("RMSNorm") and _epsilon(module) is not None and hasattr(module, "weight")


def _norm(module: Any, hidden_states: Tensor) -> Tensor:
    return _Norm.apply(hidden_states, module.weight, _epsilon(module))


def _try_norm(module: Any) -> dict[str, Any]:
    return {"hidden_states": _random(2, len(module.weight), like=module.weight)}


def _is_gated(module: nn.Module) -> bool:
    return all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn"))


def _gated(module: Any, x: Tensor) -> Tensor:
    return module.down_proj(_Gated.apply(module.gate_proj(x), module.up_proj(x)))


def _try_gated(module: Any) -> dict[str, Any]:
    return {"x": _random(2, _inputs(module.gate_proj), like=module.gate_proj.weight)}


def _is_attention(module: nn.Module) -> bool:
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "head_dim", "scaling", "is_causal", "layer_idx")
    return all(hasattr(module, name) for name in names)


def _attention(
    module: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """Llama's attention on a pack, whose heads need not be moved in memory; anything else goes its own way."""
    if past_key_values is not None or position_embeddings is None or len(hidden_states) != 1:
        return module.plain_forward(
            hidden_states=hidden_states,
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **others,
        )
    long = hidden_states.shape[1]
    parts = [part(hidden_states).view(long, -1, module.head_dim) for part in (module.q_proj, module.k_proj)]
    for i, name in enumerate(("q_norm", "k_norm")):
        if getattr(module, name, None) is not None:
            parts[i] = getattr(module, name)(parts[i])
    value = module.v_proj(hidden_states).view(long, -1, module.head_dim)
    cos, sin = (part[0] for part in position_embeddings)
    query, key = (_Turned.apply(part, cos, sin) for part in parts)
    told = {name: item for name, item in others.items() if name not in ("position_ids", "use_cache")}
    told["scaling"] = module.scaling
    told["dropout"] = getattr(module, "attention_dropout", 0.0) if module.training else 0.0
    if getattr(module, "sliding_window", None) is not None:
        told["sliding_window"] = module.sliding_window
    query, key, value = (item.transpose(0, 1)[None] for item in (query, key, value))
    out, _ = attend(module, query, key, value, attention_mask, **told)
    return module.o_proj(out.reshape(1, long, -1)), None


def _try_attention(module: Any) -> dict[str, Any]:
    like = module.q_proj.weight
    angles = torch.arange(5.0, device=like.device)[:, None] * torch.linspace(
        0.1, 1, module.head_dim // 2, device=like.device
    )
    angles = torch.cat((angles, angles), -1)[None]
    told = (angles.cos().to(like.dtype), angles.sin().to(like.dtype))
    return {
        "hidden_states": _random(1, 5, _inputs(module.q_proj), like=like),
        "position_embeddings": told,
        "attention_mask": None,
    }


STEPS = (
    ("norm", _is_norm, _norm, _try_norm),
    ("gated", _is_gated, _gated, _try_gated),
    ("attention", _is_attention, _attention, _try_attention),
)
