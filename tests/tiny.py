"""Tiny models with random weights and a letter tokenizer, one of each kind that transformers knows.

`folder("llama", tmp_path_factory)` is a model folder as the Hub would give it: config.json, model.safetensors,
tokenizer.json.  Under 100 tokens, hidden 32, 2 layers, at most 96 positions; made once a session.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from burnish import kinds
from burnish.models import base, load
from burnish.models.base import Head
from burnish.models.model import Model
from burnish.task import Train
from burnish.tokens import tokenizer as tokenizers
from burnish.tokens.batch import Batches, collate
from burnish.tokens.rows import Tokens
from burnish.train import loop
from burnish.train.timetable import timetable

KINDS = ("llama", "gpt2", "bert", "albert", "bart", "t5")
DECODERS, ENCODERS, PAIRS = ("llama", "gpt2"), ("bert", "albert"), ("bart", "t5")
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 \n.,:;?!'-#\""
SPECIALS: dict[str, dict[str, str]] = {  # gpt2 has no pad token, and llama's pad is its eos: both common, both traps
    "llama": {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "</s>"},
    "gpt2": {"unk": "<|endoftext|>", "bos": "<|endoftext|>", "eos": "<|endoftext|>"},
    "bert": {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    "albert": {"pad": "<pad>", "unk": "<unk>", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    "bart": {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"},
    "t5": {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"},
}
AROUND = {
    "llama": ("<s>", ""),
    "gpt2": ("", ""),
    "bert": ("[CLS]", "[SEP]"),
    "albert": ("[CLS]", "[SEP]"),
    "bart": ("<s>", "</s>"),
    "t5": ("", "</s>"),
}
_made: dict[tuple[str, str], Path] = {}


def folder(kind: str, tmp_path_factory: Any) -> Path:
    """The model folder of one of KINDS."""
    root = tmp_path_factory.getbasetemp()
    key = (str(root), kind)
    if key not in _made:
        made = root / f"tiny-{kind}"
        ids = write_tokenizer(kind, made)
        hf = _model(kind, ids)
        redraw(dict(hf.named_parameters()))
        hf.save_pretrained(made)
        _made[key] = made
    return _made[key]


def redraw(parameters: Mapping[str, torch.Tensor]) -> None:
    """Weights that depend on their names alone, so that golden losses outlive a library's way of drawing them.

    They are wide (deviation 0.15), so that a wrong mask or position shows in the logits.
    """
    with torch.no_grad():
        for name, value in parameters.items():
            draw = np.random.default_rng(list(name.encode()))
            noise = torch.from_numpy(draw.normal(size=tuple(value.shape)).astype(np.float32))
            ones = (
                float("norm" in name.lower() or "ln_" in name) if name.endswith("weight") and value.ndim == 1 else 0.0
            )
            value.copy_(ones + 0.15 * noise)


def write_tokenizer(kind: str, folder: Path) -> dict[str, int]:
    """Write a letter tokenizer with the kind's control tokens; returns its vocabulary."""
    special = list(dict.fromkeys(SPECIALS[kind].values()))
    special += [f"<extra_id_{i}>" for i in range(8)] if kind == "t5" else []
    vocabulary = {token: i for i, token in enumerate([*special, *LETTERS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIALS[kind]["unk"]))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(special)
    first, last = AROUND[kind]
    if first or last:
        one = f"{first} $A {last}".strip()
        two = f"{one} $B:1 {last}:1".strip() if last else f"{one} $B:1"
        backend.post_processor = processors.TemplateProcessing(
            single=one, pair=two, special_tokens=[(token, vocabulary[token]) for token in (first, last) if token]
        )
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    named = {f"{name}_token": token for name, token in SPECIALS[kind].items()}
    told = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return vocabulary


def _model(kind: str, ids: dict[str, int]) -> Any:
    size, named = len(ids), {name: ids[token] for name, token in SPECIALS[kind].items()}
    special = {f"{name}_token_id": named.get(name) for name in ("bos", "eos", "pad")}
    wide = {"vocab_size": size, **special}
    encoder = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 96,
    }
    if kind == "llama":
        rope = {"rope_type": "default", "rope_theta": 500.0}
        config = transformers.LlamaConfig(
            **wide, **encoder, num_key_value_heads=2, rope_parameters=rope, tie_word_embeddings=False
        )
        return transformers.LlamaForCausalLM(config)
    if kind == "gpt2":
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(**wide, n_embd=32, n_layer=2, n_head=4, n_positions=96)
        )
    if kind == "bert":
        return transformers.BertForMaskedLM(transformers.BertConfig(**wide, **encoder))
    if kind == "albert":
        return transformers.AlbertForMaskedLM(transformers.AlbertConfig(**wide, **encoder, embedding_size=16))
    if kind == "bart":
        start = {"decoder_start_token_id": named["eos"], "forced_eos_token_id": named["eos"]}
        return transformers.BartForConditionalGeneration(
            transformers.BartConfig(
                vocab_size=size, d_model=32, max_position_embeddings=96, **PAIR_SIDES, **special, **start
            )
        )
    config = transformers.T5Config(
        vocab_size=size,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=named["pad"],
        pad_token_id=named["pad"],
        eos_token_id=named["eos"],
        tie_word_embeddings=True,
    )
    return transformers.T5ForConditionalGeneration(config)


PAIR_SIDES = {
    f"{side}_{name}": n
    for side in ("encoder", "decoder")
    for name, n in {"layers": 2, "attention_heads": 4, "ffn_dim": 48}.items()
}


# what every architecture can be made small with
SMALL = {
    "vocab_size": 90,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 96,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


# --- rows and runs on them -----------------------------------------------------------------------------------

LABELS = ("bad", "fair", "good")
HEADS = {
    "language": Head("language"),
    "classes": Head("classes", LABELS),
    "multi": Head("multi", LABELS),
    "number": Head("number"),
}


def model(
    kind: str, head: str, tmp_path_factory: Any, adapter: str = "full", dropout: float | None = 0.0, **own: Any
) -> Model:
    """A tiny model ready to train, without dropout unless asked for."""
    found = base.inspect(str(folder(kind, tmp_path_factory)))
    made = load.load(found, HEADS[head], dropout=dropout)
    settings = {item.name: item.default for item in kinds.settings("adapters", adapter)} | own
    kinds.load("adapters", adapter).attach(made, settings, 0.0, 3)
    return made


def tokenizer(kind: str, tmp_path_factory: Any) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.load(folder(kind, tmp_path_factory))


LENGTHS = (4, 31, 9, 17, 23, 6, 12, 28)


def rows(
    kind: str, target: str, tmp_path_factory: Any, lengths: Sequence[int] = LENGTHS, seed: int = 5
) -> list[Tokens]:
    """Rows of these lengths for a method's TARGET (answers, document, label, pairs) or a head (classes ...)."""
    told = tokenizer(kind, tmp_path_factory)
    draw = np.random.default_rng(seed)
    plain = np.array(sorted(set(range(told.size)) - told.special_ids), np.int32)
    made = []
    for i, length in enumerate(lengths):
        inner = draw.choice(plain, length - len(told.prefix) - len(told.suffix))
        ids = np.array([*told.prefix, *inner, *told.suffix], np.int32)
        weights, source, label = np.zeros(length, np.float32), None, None
        if target in ("answers", "pairs") and kind in PAIRS:
            source = np.array([*told.prefix, *draw.choice(plain, 3 + i), *told.suffix], np.int32)
            weights[:] = 1
        elif target in ("answers", "pairs"):
            weights[length // 2 :] = 1
        elif target == "document":
            weights[:] = [token not in told.special_ids for token in ids]
            weights[0] = 0
        elif target in ("label", "classes"):
            label = int(draw.integers(len(LABELS)))
        elif target == "multi":
            label = draw.integers(0, 2, len(LABELS)).astype(np.float32)
        elif target == "number":
            label = float(draw.normal())
        row = Tokens(ids, weights, f"row{i}", f"rows.jsonl:{i + 1}", source, label)
        if target == "pairs":  # the same prompt, and another answer of another length
            answer = draw.choice(plain, 2 + 3 * (i % 4)).astype(np.int32)
            before = 0 if kind in PAIRS else length // 2
            worth = np.append(weights[:before], np.ones(len(answer), np.float32))
            other = replace(row, ids=np.append(ids[:before], answer), weights=worth)
            row = replace(row, rejected=other, reference=np.array([-20.0 - i, -18.0], np.float32))
        made.append(row)
    return made


def ended(row: Tokens, eos: int) -> Tokens:
    """The same row with eos as its last token."""
    return replace(row, ids=np.append(row.ids, np.int32(eos)), weights=np.append(row.weights, np.float32(0)))


CASES = [  # (method, head, what rows are, model kinds)
    ("sft", "language", "answers", (*DECODERS, *PAIRS)),
    ("dpo", "language", "pairs", (*DECODERS, *PAIRS)),
    ("selfsupervised", "language", "document", KINDS),
    ("classify", "classes", "classes", KINDS),
    ("classify", "multi", "multi", KINDS),
    ("regress", "number", "number", KINDS),
]
PAIRINGS = [(method, head, rows, kind) for method, head, rows, known in CASES for kind in known]


def corruption(method: str, kind: str, tmp_path_factory: Any, **own: Any) -> Any:
    """The method's noise for this kind of model, or None."""
    module = kinds.load("methods", method)
    if not hasattr(module, "corruption"):
        return None
    family = "decoder" if kind in DECODERS else "encoder" if kind in ENCODERS else "encoder-decoder"
    return module.corruption(family, tokenizer(kind, tmp_path_factory), module.Settings(**own))


def ready_rows(method: str, kind: str, target: str, tmp_path_factory: Any, **lengths: Any) -> list[Tokens]:
    """Rows as the model sees them: with the method's noise, drawn once, where it has any."""
    made = rows(kind, target, tmp_path_factory, **lengths)
    noise = corruption(method, kind, tmp_path_factory)
    return [noise(row, np.random.default_rng(i)) for i, row in enumerate(made)] if noise else made


def run(
    method: str,
    head: str,
    target: str,
    kind: str,
    tmp_path_factory: Any,
    into: Path,
    adapter: str = "full",
    dropout: float = 0.0,
    validation: bool = False,
    own: dict[str, Any] | None = None,
    **train: Any,
) -> loop.Run:
    """A loop.Run over the eight rows; keys of `train` are the task's."""
    settings = Train(
        **{"batch_size": 3, "max_steps": 5, "epochs": 0, "learning_rate": 3e-3, "warmup": 2, "evaluate_every": 2}
        | {"micro_tokens": 8192}
        | train
    )
    module = kinds.load("methods", method)
    made = model(kind, head, tmp_path_factory, adapter, dropout if adapter == "full" else None)
    if adapter != "full":
        made = load.load(made.base, HEADS[head], dropout=0.0)
        defaults = {item.name: item.default for item in kinds.settings("adapters", adapter)}
        kinds.load("adapters", adapter).attach(made, defaults, dropout, 3)
    noise = corruption(method, kind, tmp_path_factory, **(own or {}))
    pad = tokenizer(kind, tmp_path_factory).id("pad") or 0
    batches, held = (
        Batches(
            rows(kind, target, tmp_path_factory, seed=n),
            settings.batch_size,
            settings.micro_tokens,
            settings.seed,
            pad,
            noise,
        )
        for n in (5, 6)
    )
    times = timetable(settings, len(batches.rows), 32, 1e-3)
    return loop.Run(
        made,
        module,
        module.Settings(**(own or {})),
        settings,
        times,
        batches,
        held if validation else None,
        into,
        {"run": "t"},
        torch.bfloat16 if settings.precision == "bf16" else torch.float32,
    )


def gradient(model: Model, method: str, batches: Sequence[Any], **own: Any) -> dict[str, torch.Tensor]:
    """The gradient of a step cut into these micro-batches, as the loop makes it."""
    module = kinds.load("methods", method)
    model.zero_grad(set_to_none=True)
    total = sum(module.weight(batch) for batch in batches)
    for batch in batches:
        (module.loss(model(batch), batch, module.Settings(**own)) / total).backward()
    return {name: value.grad.clone() for name, value in model.trainable().items() if value.grad is not None}


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """|a - b| / |a| over all tensors together."""
    assert a.keys() == b.keys()
    apart = sum(float((a[name].double() - b[name].double()).pow(2).sum()) for name in a)
    whole = sum(float(a[name].double().pow(2).sum()) for name in a)
    return (apart / max(whole, 1e-300)) ** 0.5


__all__ = ["CASES", "DECODERS", "ENCODERS", "HEADS", "KINDS", "LABELS", "PAIRINGS", "PAIRS", "collate"]
