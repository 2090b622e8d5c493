"""Puts the fused steps into a transformers model, where a module proves to compute the same.

In: a model.  Out: the same model, whose norms, gated layers and attention have another `forward`: for good, to be
trained (`install`), or for a while, to answer (`answering`), and then its linear layers too.  What is saved knows
nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from burnish.models import flash, kernels, liger
from burnish.models.attention import attend
from burnish.models.fused import Gated, Turned, rms_norm
from burnish.models.places import present

Proven = dict[tuple[type, str, frozenset[Any]], bool]
_PROVEN: WeakKeyDictionary[nn.Module, Proven] = WeakKeyDictionary()
FEW = 8  # rows of a product below which oneDNN's is no faster than MKL's, or sums in another order than for many


def install(hf: nn.Module, proven: Proven | None = None) -> dict[str, int]:
    """Let the norms, gated layers and attention of a transformers model train by these; returns how many of each.

    The first module of every class and settings is tried on random numbers beside its own forward pass; one that does
    not compute the same (Gemma's 1 + weight, a partial rotation, layers without one) is left alone with its like.  A
    model without weights has nothing to try: its modules are taken at their names.  proven: what is known, added to.
    """
    bare = any(value.is_meta and not hasattr(value, "place") for value in hf.parameters())
    done = dict.fromkeys((name for name, *_ in STEPS), 0)
    proven = {} if proven is None else proven
    for module in hf.modules():
        for name, suits, quick, trial in STEPS:
            if not suits(module) or hasattr(module, "plain_forward"):
                continue
            key = type(module), name, _settings(module)
            if key not in proven:
                with present(module):
                    proven[key] = bare or _same(module, quick, trial)
            if proven[key]:
                module.plain_forward = module.forward
                module.forward = partial(quick, module)
                done[name] += 1
    return done


def said(hf: Any, device: torch.device, dtype: torch.dtype) -> str:
    """What a model's steps and its packs' attention are done by, for people."""
    if device.type == "cpu":
        return "own kernels" if kernels.compiled() is not None else "PyTorch's operations (no C++ compiler here)"
    config = hf.config.get_text_config()
    heads = getattr(config, "num_attention_heads", 1)
    depth = getattr(config, "head_dim", None) or config.hidden_size // heads
    repeats = heads // (getattr(config, "num_key_value_heads", None) or heads)
    causal = not getattr(config, "is_encoder_decoder", False) and any(map(_is_attention, hf.modules()))
    found = flash.found_for(device, dtype, depth, repeats, causal, False, True) if dtype in flash.HALVES else None
    return f"{liger.said(device, dtype)}; attention by {found[0] if found else 'products of documents of like length'}"


@contextmanager
def answering(hf: nn.Module) -> Iterator[None]:
    """Within it, without gradient, a model's steps are fused and its linear layers are `product`."""
    before = [
        (module, {name: vars(module).get(name) for name in ("forward", "plain_forward")}) for module in hf.modules()
    ]
    if next(hf.parameters()).dtype != torch.float64:  # there transformers' own norms are in float32
        install(hf, _PROVEN.setdefault(hf, {}))
    for module, was in before:
        if type(module) in (nn.Linear, Conv1D) and was["forward"] is None:
            module.forward = partial(_linear, module, type(module) is Conv1D)
    try:
        yield
    finally:
        for module, was in before:
            for name, value in was.items():
                vars(module).pop(name, None)
                if value is not None:
                    setattr(module, name, value)


def _linear(module: Any, transposed: bool, x: Tensor) -> Tensor:
    return product(x, module.weight.T if transposed else module.weight, module.bias)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + bias; in float32 on a CPU with AVX-512 and without gradient by oneDNN.

    MKL uses 256 of 512 bits on processors that are not Intel's: 110 against 230 GFLOP/s (docs/log.md).
    """
    alone = x.numel() < FEW * x.shape[-1] or torch.is_grad_enabled() or x.dtype != torch.float32
    if alone or weight.dtype != torch.float32 or x.device.type != "cpu" or not _onednn():
        return nn.functional.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@cache
def _onednn() -> bool:
    """Whether oneDNN can be called so, and this is such a processor."""
    known = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return known and torch.backends.cpu.get_cpu_capability() == "AVX512"


def _settings(module: nn.Module) -> frozenset[tuple[str, Any]]:
    """What may make modules of one class compute differently, such as SmolLM3's layers without rotation."""
    own = ((name, value) for name, value in vars(module).items() if name not in ("layer_idx", "training"))
    return frozenset((name, value) for name, value in own if isinstance(value, bool | int | float | str))


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
    return (
        type(module).__name__.endswith(("RMSNorm", "T5LayerNorm"))
        and _epsilon(module) is not None
        and hasattr(module, "weight")
    )


def _norm(module: Any, hidden_states: Tensor) -> Tensor:
    return rms_norm(hidden_states, module.weight, float(_epsilon(module) or 0.0))


def _try_norm(module: Any) -> dict[str, Any]:
    return {"hidden_states": _random(2, len(module.weight), like=module.weight)}


def _is_gated(module: nn.Module) -> bool:
    return all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn"))


def _gated(module: Any, x: Tensor) -> Tensor:
    return module.down_proj(Gated.apply(module.gate_proj(x), module.up_proj(x)))


def _try_gated(module: Any) -> dict[str, Any]:
    return {"x": _random(2, _inputs(module.gate_proj), like=module.gate_proj.weight)}


def _is_gelu(module: nn.Module) -> bool:
    return type(module).__name__ in ("NewGELUActivation", "FastGELUActivation")


def _gelu(module: Any, input: Tensor) -> Tensor:
    """GELU's approximation in one operation that keeps its input, where transformers' five keep four results."""
    return nn.functional.gelu(input, approximate="tanh")


def _try_gelu(module: Any) -> dict[str, Any]:
    return {"input": _random(2, 64, like=torch.empty(0))}


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
    query, key = Turned.apply(*parts, cos, sin)
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
    ("gelu", _is_gelu, _gelu, _try_gelu),
    ("attention", _is_attention, _attention, _try_attention),
)
