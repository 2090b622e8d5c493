"""What plan.py measures: 50 cases of a model, a method, a rung and a length of rows, and how each is made."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
LENGTHS = {"short": 50, "medium": 150, "long": 400}  # median tokens of a row (or a number); log-normal, at most 900
SPREAD = 0.6  # deviation of their logarithm
ROWS = 96  # rows trained on
LLAMA = {  # hidden, layers, heads, key-value heads, feed-forward, vocabulary
    "llama-1m": (128, 4, 4, 4, 344, 2048),
    "llama-15m": (288, 6, 6, 6, 768, 32000),
    "llama-42m": (512, 8, 8, 4, 1376, 32000),
    "llama-60m": (640, 10, 10, 5, 1728, 32000),
    "llama-135m": (576, 30, 9, 3, 1536, 49152),
    "llama-350m": (960, 32, 15, 5, 2560, 49152),
    "qwen2-45m": (448, 8, 7, 1, 1216, 65000),
}
BERT = {  # hidden, layers, heads, feed-forward, vocabulary
    "bert-11m": (256, 4, 4, 1024, 30522),
    "bert-34m": (512, 6, 8, 2048, 30522),
    "bert-110m": (768, 12, 12, 3072, 30522),
    "albert-11m": (768, 6, 12, 3072, 30000),
}
GPT2 = {"gpt2-16m": (256, 4, 8, 50257), "gpt2-42m": (512, 8, 8, 32000)}  # hidden, layers, heads, vocabulary
PAIRS = {  # hidden, layers, heads, feed-forward, vocabulary
    "t5-16m": (256, 4, 8, 1024, 32128),
    "t5-37m": (384, 6, 6, 1536, 32128),
    "bart-15m": (256, 4, 4, 1024, 30000),
}
FITTED = [
    *("llama-1m sft lora short", "llama-1m sft lora long", "llama-1m sft full medium"),
    *("llama-1m selfsupervised full long", "llama-15m sft lora medium", "llama-15m sft full medium"),
    *("llama-15m sft lora long", "llama-15m selfsupervised full long", "llama-15m classify lora short"),
    *("llama-15m classify full short", "llama-15m regress lora medium", "llama-42m sft lora medium"),
    *("llama-42m sft full long", "llama-42m selfsupervised lora long", "llama-42m classify full medium"),
    *("llama-135m sft lora short", "llama-135m sft lora medium", "llama-135m sft full medium"),
    *("llama-135m selfsupervised full long", "llama-135m selfsupervised lora long", "bert-11m classify full short"),
    *("bert-11m classify lora medium", "bert-11m regress full medium", "bert-11m selfsupervised full long"),
    *("bert-110m classify lora short", "bert-110m classify full medium", "bert-110m selfsupervised full medium"),
    *("t5-16m sft full short", "t5-16m sft lora medium", "t5-16m selfsupervised full long"),
    *("llama-15m sft qlora medium", "llama-135m sft qlora medium"),
]
HELD_OUT = [
    *("gpt2-16m sft full 64", "gpt2-16m selfsupervised lora 250", "gpt2-42m classify lora 120"),
    *("albert-11m classify full 64", "albert-11m selfsupervised full 120", "bart-15m sft full 64"),
    *("bart-15m sft lora 120", "qwen2-45m sft full 120", "qwen2-45m sft qlora 250", "qwen2-45m regress partial 120"),
    *("bert-34m classify full 120", "bert-34m regress lora 64", "llama-60m sft prompt-tuning 64"),
    *("llama-60m sft full 120 recomputed", "llama-350m sft lora 64", "t5-37m sft full 120"),
    *("llama-1m selfsupervised full 700", "llama-15m sft lora 900 recomputed"),
]


def prepare(case: str, work: Path) -> None:
    """Write the case's model, rows and task, where they are not there yet."""
    model, method, _, length = case.split()[:4]
    if not (work / model / "config.json").exists():
        make(model, work / model)
    path = work / f"{method}-{length}.jsonl"
    if not path.exists():
        path.write_text("".join(json.dumps(row) + "\n" for row in rows(method, LENGTHS.get(length) or int(length))))


def make(model: str, folder: Path) -> None:
    """A model of random weights with a letter tokenizer."""
    sys.path.insert(0, str(ROOT / "tests"))
    import tiny
    import torch
    import transformers

    torch.manual_seed(0)
    kind = model.partition("-")[0]
    letters = "llama" if kind == "qwen2" else kind
    ids = tiny.write_tokenizer(letters, folder)
    special = {f"{name}_token_id": ids[token] for name, token in tiny.SPECIALS[letters].items()}
    special = {name: special.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    hf: Any
    if model in LLAMA:
        hidden, layers, heads, shared, wide, size = LLAMA[model]
        config = transformers.Qwen2Config if kind == "qwen2" else transformers.LlamaConfig
        hf = transformers.AutoModelForCausalLM.from_config(
            config(
                hidden_size=hidden,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=shared,
                intermediate_size=wide,
                vocab_size=size,
                tie_word_embeddings=True,
                max_position_embeddings=2048,
                **special,
            )
        )
    elif model in GPT2:
        hidden, layers, heads, size = GPT2[model]
        told = {"n_embd": hidden, "n_layer": layers, "n_head": heads, "vocab_size": size, **special}
        hf = transformers.GPT2LMHeadModel(transformers.GPT2Config(**told))
    elif model in BERT:
        hidden, layers, heads, wide, size = BERT[model]
        config = transformers.BertConfig if kind == "bert" else transformers.AlbertConfig
        hf = transformers.AutoModelForMaskedLM.from_config(
            config(
                hidden_size=hidden,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                intermediate_size=wide,
                vocab_size=size,
                max_position_embeddings=1024,
                **special,
            )
        )
    elif kind == "bart":
        hidden, layers, heads, wide, size = PAIRS[model]
        sides = {"layers": layers, "attention_heads": heads, "ffn_dim": wide}
        told = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in sides.items()}
        told |= {"d_model": hidden, "vocab_size": size, "decoder_start_token_id": ids["</s>"], **special}
        hf = transformers.BartForConditionalGeneration(transformers.BartConfig(**told))
    else:
        hidden, layers, heads, wide, size = PAIRS[model]
        hf = transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                d_model=hidden,
                num_layers=layers,
                num_heads=heads,
                d_kv=hidden // heads,
                d_ff=wide,
                vocab_size=size,
                decoder_start_token_id=ids["<pad>"],
                **special,
            )
        )
    hf.save_pretrained(folder)


def rows(method: str, median: int) -> list[dict[str, Any]]:
    """Rows of random letters, 60 % of them answer (sft), with log-normal lengths."""
    draw = np.random.default_rng(7)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz ,."))
    told = []
    for number in range(ROWS + 32):
        size = int(np.clip(median * math.exp(SPREAD * draw.normal()), 12, 900))
        text = "".join(draw.choice(letters, size))
        if method == "sft":
            told.append({"prompt": text[: int(0.4 * size)], "completion": text[int(0.4 * size) :]})
        elif method == "selfsupervised":
            told.append({"text": text})
        else:
            told.append({"text": text, "label": ("good", "bad")[number % 2] if method == "classify" else float(size)})
    return told
