"""What a forward pass leaves for the backward pass, counted on a model without weights.

In: a Model on the meta device.  Out: bytes a token, by asking autograd what it saves.  Nothing is computed: shapes flow
through the very modules that training runs, so every architecture, adapter and dropout counts itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_utils import AttentionInterface

from burnish.models import attention, quicken
from burnish.models.model import Model, bare

NAME = "burnish-keeps"
AFTER = ("final_logit_softcapping", "logit_scale", "logits_scaling")
FEW, MORE = 8, 16  # tokens of a row that are tried: what they differ by is a token's own


@dataclass
class Kept:
    """By side: bytes that a token leaves, numbers of it that dropout draws, heads whose attention has dropout."""

    bytes: dict[str, float]
    drawn: dict[str, float]
    hidden: Counter[str]


class _Attention(torch.autograd.Function):
    """Attention as far as memory goes: it keeps its queries, keys and values (as models/attention.py does)."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        context.save_for_backward(query, key, value)
        rows, heads, long = query.shape[:3]
        return query.new_empty(rows, long, heads, value.shape[3])


class _Draws(TorchDispatchMode):
    """Counts the numbers that are drawn at random."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.bernoulli_, torch.ops.aten.bernoulli, torch.ops.aten.native_dropout):
            self.count += args[0].numel()
        return func(*args, **(kwargs or {}))


_hidden: ContextVar[Counter[str]] = ContextVar("_hidden")


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **told: Any) -> tuple[Tensor, None]:
    side = module._seat[1]
    if told.get("dropout") and side != "cross" and (query.requires_grad or key.requires_grad):
        _hidden.get()["source" if side == "source" else "ids"] += query.shape[1]
    return _Attention.apply(query, key, value), None


AttentionInterface.register(NAME, _attend)


def kept(model: Model, element: int) -> Kept:
    """Bytes that training keeps of each token.  element: bytes of a number between layers.

    Raises whatever an architecture raises that looks at numbers, which there are none of.
    """
    quicken.install(model.hf)
    dtype = torch.bfloat16 if element == 2 else torch.float32
    with _counting(model, dtype) as hidden:
        least = _saved(model, dtype, FEW, FEW)
        dropped = Counter(hidden)
        more = _saved(model, dtype, MORE, FEW)
        source = _saved(model, dtype, FEW, MORE) if model.base.kind == "encoder-decoder" else least
    each = 2 * (MORE - FEW)  # two rows
    saved, drawn = (
        {"ids": (a - b) / each, "source": (c - b) / each} for a, b, c in zip(more, least, source, strict=True)
    )
    return Kept(saved, drawn, dropped)


@contextmanager
def _counting(model: Model, dtype: torch.dtype) -> Iterator[Counter[str]]:
    """Within it the model computes as it will be trained, and its attention as far as memory goes."""
    hf, was, own = model.hf, model.training, model.hf.config._attn_implementation
    weights = {value: value.data for value in hf.parameters()}
    for value in weights:
        if value.is_meta and not getattr(value, "exact", False):  # its own layer casts it
            value.data = value.data.to(dtype)
    if own == attention.NAME:
        hf.set_attn_implementation(NAME)
    token = _hidden.set(Counter())
    model.train()
    try:
        yield _hidden.get()
    finally:
        _hidden.reset(token)
        hf.set_attn_implementation(own)
        model.train(was)
        for value, data in weights.items():
            value.data = data


def whole(model: Model) -> bool:
    """Whether a language model's logits are more than its output layer's, so that all are held at once (BART).

    Told by running without that layer; what scales or caps them is known by its name in the configuration.
    """
    head = model.hf.get_output_embeddings() if model.head.kind == "language" else None
    if head is None:
        return False
    if type(head) is not torch.nn.Linear or any(getattr(model.hf.config, name, None) for name in AFTER):
        return True
    words = torch.zeros(1, 1, model.hf.get_input_embeddings().weight.shape[1], device=model.device)
    named = {"decoder_inputs_embeds": words} if model.base.kind == "encoder-decoder" else {}
    try:
        with torch.no_grad(), bare(head):
            return bool(model.hf(inputs_embeds=words, **named).logits.shape[-1] != head.in_features)
    except Exception:  # a bias of another width is added
        return True


def _saved(model: Model, dtype: torch.dtype, tokens: int, source: int) -> tuple[int, int]:
    """Bytes that autograd saves of two rows, weights aside, and how many numbers are drawn at random."""
    hf, found = model.hf, {}
    table = hf.get_input_embeddings()
    learns = any(value.requires_grad for value in table.parameters())

    def words(long: int) -> Tensor:
        made = torch.empty(2, long, table.weight.shape[1], dtype=dtype, device=model.device)
        return made.requires_grad_() if learns else made

    own = {value.untyped_storage()._cdata for value in hf.parameters()}

    def note(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in own:
            found[storage._cdata] = storage  # held, so that no other takes its place
        return value

    with _Draws() as draws, torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        if model.base.kind == "encoder-decoder":
            hf.base_model(inputs_embeds=words(source), decoder_inputs_embeds=words(tokens), use_cache=False)
        elif model.base.kind == "decoder":
            hf.base_model(inputs_embeds=words(tokens), use_cache=False)
        elif model.head.kind == "language":  # an encoder has layers of its own before the output layer
            with bare(hf.get_output_embeddings()):
                hf(inputs_embeds=words(tokens))
        else:
            hf.base_model(inputs_embeds=words(tokens))
    return sum(storage.nbytes() for storage in found.values()), draws.count
