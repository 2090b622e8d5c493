"""Architectures that people tune, as configurations and not as downloads: to tell what this machine could tune.

In: a rung and a Machine.  Out: the largest of them that fits, with rows of ROW tokens and every saving taken that
leaves the result alone (small micro-batches, activations made again).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from burnish import kinds
from burnish.models.base import Base, Head
from burnish.task import Task
from burnish.train import describe, estimate
from burnish.train.terms import Machine, Rows, Work

ROW = 512  # tokens of each row that is assumed
ASSUMED = Task(rung_settings={"prompt-tuning": {"init": "random"}})  # no words without a tokenizer
SIZES = (  # name, hidden, layers, heads, key-value heads, feed-forward, vocabulary, tied, biases on q, k, v
    ("SmolLM2 135M", 576, 30, 9, 3, 1536, 49152, True, False),
    ("SmolLM2 360M", 960, 32, 15, 5, 2560, 49152, True, False),
    ("Qwen2.5 0.5B", 896, 24, 14, 2, 4864, 151936, True, True),
    ("Llama 3.2 1B", 2048, 16, 32, 8, 8192, 128256, True, False),
    ("Qwen2.5 1.5B", 1536, 28, 12, 2, 8960, 151936, True, True),
    ("Llama 3.2 3B", 3072, 28, 24, 8, 8192, 128256, True, False),
    ("Llama 3.1 8B", 4096, 32, 32, 8, 14336, 128256, False, False),
    ("Qwen2.5 14B", 5120, 48, 40, 8, 13824, 152064, False, True),
    ("Qwen2.5 32B", 5120, 64, 40, 8, 27648, 152064, False, True),
    ("Llama 3.1 70B", 8192, 80, 64, 8, 28672, 128256, False, False),
    ("Llama 3.1 405B", 16384, 126, 128, 8, 53248, 128256, False, False),
)


@dataclass(frozen=True)
class Largest:
    """The largest base that a rung can tune on a machine; '' and 0 when none can."""

    rung: str
    name: str = ""
    parameters: int = 0
    peak: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def config(number: int) -> Any:
    """The transformers configuration of one of SIZES."""
    import transformers

    _, hidden, layers, heads, shared, wide, vocabulary, tied, biased = SIZES[number]
    kind = transformers.Qwen2Config if biased else transformers.LlamaConfig
    return kind(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        intermediate_size=wide,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
    )


def work(number: int, rung: str, element: int) -> Work:
    """One step of two rows on one of SIZES."""
    made = config(number)
    base = Base(SIZES[number][0], Path("/nonexistent"), "decoder", made.to_dict(), 0, made.vocab_size, "")
    shape = describe.shape(describe.skeleton(base, Head("language"), rung, ASSUMED, made), describe.quantised(rung))
    one = np.full(2, ROW)
    rows = Rows(one, np.zeros(2, int), one // 2)
    return Work(replace(shape, files=2 * shape.parameters), rows, rows, 2, 1, 1, 1, 2 * ROW, element=element)


def largest(rung: str, machine: Machine, element: int, made: Callable[[int, str, int], Work] = work) -> Largest:
    """The largest of SIZES whose estimate fits, found by halving: what fits grows with the size alone."""
    low, high, found = 0, len(SIZES), Largest(rung)
    while low < high:
        middle = (low + high) // 2
        told = estimate.estimate(made(middle, rung, element), machine)
        if told.verdict == "fits":
            found = Largest(rung, SIZES[middle][0], int(told.parameters.value), told.parts["peak"])
            low = middle + 1
        else:
            high = middle
    return found


def rungs() -> list[str]:
    """The trained rungs there are, cheapest first."""
    return sorted(kinds.names("adapters"), key=lambda name: int(kinds.load("adapters", name).COST))
