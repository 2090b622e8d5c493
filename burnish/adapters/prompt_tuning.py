"""Prompt tuning: a few learned vectors stand before every row as virtual tokens, and the model stays as it is.

Source: Lester et al. 2021, The Power of Scale for Parameter-Efficient Prompt Tuning.  Files are PEFT's PROMPT_TUNING.
Virtual tokens are ids above every vocabulary, which the token contract writes before each row and the embedding turns
into the vectors; so packing, caches and scoring treat them as the tokens they are (docs/decisions/0014).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from burnish.adapters import _peft
from burnish.adapters._lora import freeze, put, refuse_random
from burnish.errors import TaskError
from burnish.kinds import setting
from burnish.models.model import Model
from burnish.models.places import present
from burnish.tokens.batch import Batch
from burnish.tokens.contract import Contract
from burnish.tokens.rows import VIRTUAL
from burnish.tokens.tokenizer import Tokenizer

COST = 35
RATE = 1e-2  # vectors among thousands of frozen weights have far to go (swept in docs/log.md; PEFT's examples: 3e-2)
CARRIES_BASE = False
MERGES = False  # nothing about the weights changes
PLAIN = "Read the text and do what is asked."


@dataclass(frozen=True)
class Settings:
    """Keys of `prompt-tuning:` in task.yaml."""

    length: int = setting(20, "virtual tokens before every row", low=1, high=1000)
    init: str = setting(
        "", "text to start from; empty: the task's instruction; random: tokens drawn from the vocabulary"
    )


class SoftEmbedding(nn.Module):
    """An embedding that gives ids from VIRTUAL on the rows of `prompt` (n, width), and others what they had."""

    def __init__(self, base: nn.Module, prompt: nn.Parameter, dropout: float) -> None:
        super().__init__()
        self.base_layer = base
        self.prompt = prompt
        self.dropout = dropout

    @property
    def weight(self) -> Tensor:
        """The frozen table: some models look at it (at its type, or to tie their output to it)."""
        return self.base_layer.weight

    def forward(self, ids: Tensor) -> Tensor:
        """ids (...,) -> (..., width)."""
        virtual = ids >= VIRTUAL
        out = self.base_layer(ids.masked_fill(virtual, 0))
        prompt = nn.functional.dropout(self.prompt, self.dropout, self.training)
        return out.index_put_((virtual,), nn.functional.embedding(ids[virtual] - VIRTUAL, prompt).to(out.dtype))


def fitted(contract: Contract, kind: str, settings: Mapping[str, Any]) -> tuple[Contract, dict[str, Any]]:
    """The contract with room for the virtual tokens, and the settings with the task's own words to start from."""
    told = Settings(**settings)
    if told.length >= contract.max_length // 2:
        what = f"prompt-tuning.length {told.length} leaves too little of {contract.max_length} tokens for the rows"
        raise TaskError(what, "prompt-tuning.length", "make it shorter")
    if contract.target == "document" and kind == "encoder-decoder":
        what = "prompt-tuning does not learn raw text on an encoder-decoder, whose noise would hide virtual tokens too"
        raise TaskError(what, "rungs", "use lora, or a decoder")
    init = told.init or contract.instruction or PLAIN
    return replace(contract, virtual=told.length), {**settings, "init": init}


def attach(model: Model, settings: Mapping[str, Any], dropout: float, seed: int) -> None:
    """Freeze the base and give it a soft prompt, begun as the embeddings of a text; a new head trains whole."""
    refuse_random(model, "prompt-tuning")
    told = Settings(**settings)
    if told.init == "random":
        draw = torch.Generator().manual_seed(seed)
        ids = torch.randint(model.base.vocabulary, (told.length,), generator=draw, device="cpu")
    else:
        words = Tokenizer.load(model.base.folder).encode_text(told.init or PLAIN)
        ids = torch.tensor(words).repeat(-(-told.length // len(words)))[: told.length]
    table = model.hf.get_input_embeddings()
    with torch.no_grad(), present(table):
        start = table(ids.to(table.weight.device))
    _put(model, start.float(), dropout)


def _put(model: Model, start: Tensor, dropout: float = 0.0) -> None:
    """Wrap every embedding that reads the input's table; encoder-decoders have several."""
    freeze(model)
    reads = model.hf.get_input_embeddings()
    found = [
        (name, item)
        for name, item in model.hf.named_modules(remove_duplicate=False)
        if item is reads or (isinstance(item, nn.Embedding) and item.weight is reads.weight)
    ]
    prompt = nn.Parameter(start.clone())
    prompt.exact = True  # stays float32 in a bf16 model
    wrapped = {id(item): SoftEmbedding(item, prompt, dropout) for _, item in found}
    for name, item in found:
        put(model, name, wrapped[id(item)])


def prompt_of(model: Model) -> nn.Parameter:
    """(n, width) the learned vectors."""
    return model.hf.get_input_embeddings().prompt


def merge(model: Model) -> None:
    """A soft prompt is input, not weights."""
    raise ValueError("a soft prompt cannot be merged into weights; keep it as a PEFT folder")


@contextmanager
def disabled(model: Model) -> Iterator[None]:
    """The base inside the tuned model: rows are read without their virtual tokens."""
    hook = model.register_forward_pre_hook(lambda _, told: (bare(told[0]), *told[1:]))
    try:
        yield
    finally:
        hook.remove()


def bare(batch: Batch) -> Batch:
    """The same rows without virtual tokens, in packs and padded batches; every row has equally many."""
    source = batch.source is not None
    ids = batch.source if source else batch.ids
    assert ids is not None
    own = ids < VIRTUAL
    count = int(ids.amax()) - VIRTUAL + 1
    if count <= 0:
        return batch

    def cut(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[own].view(len(value), -1)

    def ends(told: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(end - i * count for i, end in enumerate(told))

    if source:
        document = cut(batch.source_document)
        return replace(batch, source=cut(ids), source_document=document, source_ends=ends(batch.source_ends))
    names = ("ids", "weights", "document", "targets", "segments")
    kept: dict[str, Any] = {name: cut(getattr(batch, name)) for name in names}
    positions = (batch.positions[own].view(len(ids), -1) - count).clamp_min(0)
    return replace(batch, **kept, positions=positions, ends=ends(batch.ends))


def tensors(model: Model) -> dict[str, Tensor]:
    """The prompt, and a new head's tensors, under PEFT's names."""
    fresh = {f"base_model.{name}": value for name, value in model.trainable().items() if name in model.fresh}
    return {name: value.detach() for name, value in {"prompt_embeddings": prompt_of(model), **fresh}.items()}


def save(model: Model, folder: Path, base: str) -> None:
    """A PEFT folder: adapter_config.json and adapter_model.safetensors."""
    told = model.hf.config  # whatever its own names are, transformers knows these two
    length, width = prompt_of(model).shape
    config = {
        "peft_type": "PROMPT_TUNING",
        **_peft.about(model, base),
        "num_virtual_tokens": length,
        "token_dim": width,
        "num_transformer_submodules": 1,  # an encoder-decoder's encoder alone, as in the paper
        "num_attention_heads": getattr(told, "num_attention_heads", 1),  # unused, but PEFT asks RWKV for it
        "num_layers": getattr(told, "num_hidden_layers", None),
        "prompt_tuning_init": "RANDOM",  # where it started is of no use once it is trained
        "modules_to_save": _peft.heads(model) or None,
    }
    _peft.write(config, tensors(model), folder)


def load(model: Model, folder: Path) -> None:
    """Put a PEFT folder's soft prompt (and head) before a freshly loaded base, whoever saved it.

    Raises ValueError when it is of another kind, or does not fit this base.
    """
    config, saved = _peft.read(folder, "PROMPT_TUNING")
    if config.get("num_transformer_submodules", 1) != 1 or "prompt_embeddings" not in saved:
        raise ValueError("this soft prompt has vectors for the decoder too; prompt the encoder alone")
    width = model.hf.get_input_embeddings().weight.shape[1]
    _put(model, torch.zeros(int(config["num_virtual_tokens"]), width, device=model.device))
    _peft.fill(tensors(model), saved)


__all__ = ["CARRIES_BASE", "COST", "MERGES", "RATE", "Settings", "attach", "disabled", "fitted", "load", "merge"]
