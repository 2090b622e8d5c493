"""Rows and ready Answerers on the tiny models, for tests of whatever asks a model something."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import tiny
import torch

from burnish.generate.answer import Answerer
from burnish.models import base, load
from burnish.models.base import Head
from burnish.records import LETTERS, Example, Message, Where
from burnish.tokens.contract import Contract
from burnish.tokens.template import Template
from burnish.tokens.tokenizer import Tokenizer

WORDS = ("sun", "rain", "fog", "snow", "wind", "hail", "mist", "dew")


def contract(told: Tokenizer, goal: str = "classify", shape: str = "labelled", **own: Any) -> Contract:
    """How the tiny models are asked: plain turns, the whole context of 96 letters."""
    usual = {"classify": tiny.LABELS, "choose": tuple(LETTERS)}
    labels = own.pop("labels", usual.get(goal, ()))
    multi = own.pop("multi", False)
    chosen = Template.choose(own.pop("template", "auto"), shape, told)
    target = own.pop("target", "document" if shape == "document" else "answers")
    instruction = own.pop("instruction", "" if goal == "choose" else "Name the mood.")
    made = Contract(goal, shape, target, chosen.name, chosen.text, 96, "error", "language", labels, multi, instruction)
    return replace(made, **own)


def answerer(kind: str, tmp_path_factory: Any, goal: str = "classify", shape: str = "labelled", **own: Any) -> Answerer:
    """A tiny model behind a contract; keys of Answerer (most, budget) and of Contract."""
    ready = {name: own.pop(name) for name in ("most", "budget", "sampling") if name in own}
    folder = tiny.folder(kind, tmp_path_factory)
    told = Tokenizer.load(folder)
    asked = contract(told, goal, shape, **own)
    torch.manual_seed(0)
    model = load.load(base.inspect(str(folder)), Head(asked.head, asked.labels if asked.head != "number" else ()))
    if asked.head != "language":  # a fresh head: as wide as the rest
        tiny.redraw({name: value for name, value in model.hf.named_parameters() if name in model.fresh})
    return Answerer(model.eval(), told, asked, **{"most": 12, **ready})


def text(draw: random.Random, words: int = 0) -> str:
    return " ".join(draw.choices(WORDS, k=words or draw.randint(2, 6)))


def labelled(many: int = 10, labels: Sequence[Any] = tiny.LABELS, seed: int = 0, words: int = 0) -> list[Example]:
    draw = random.Random(seed)
    return [
        Example("labelled", Where("rows.csv", i + 2), text=f"{text(draw, words)} {i}", label=draw.choice(labels))
        for i in range(many)
    ]


def spoken(many: int = 10, seed: int = 0, shape: str = "prompt") -> list[Example]:
    draw = random.Random(seed)
    return [
        Example(shape, Where("rows.jsonl", i + 1), (Message("user", text(draw)), Message("assistant", text(draw, 2))))
        for i in range(many)
    ]


def questions(many: int = 10, seed: int = 0, most: int = 4) -> list[Example]:
    """Rows of two to `most` choices, some of which begin alike."""
    draw = random.Random(seed)
    told = []
    for i in range(many):
        choices = [f"{'so ' * draw.randint(0, 1)}{text(draw, 1)} {at}" for at in range(draw.randint(2, most))]
        at = draw.randrange(len(choices))
        turns = (Message("user", f"{text(draw)} {i}?"), Message("assistant", choices[at]))
        told.append(Example("choices", Where("q.jsonl", i + 1), turns, label=LETTERS[at], choices=tuple(choices)))
    return told


def documents(many: int = 6, seed: int = 0, words: int = 40) -> list[Example]:
    draw = random.Random(seed)
    return [Example("document", Where(f"{i}.txt"), text=text(draw, words + i)) for i in range(many)]


def same(a: Sequence[Any], b: Sequence[Any], nll: bool = True) -> bool:
    """Whether predictions are equal but for how long they took, and float32 rounding; nll False: nor its likelihood."""

    def bare(row: Any) -> Any:
        told = replace(row, seconds=0.0, nll=None, probabilities=None, number=None, loglikelihoods=None)
        return told if nll else replace(told, tokens=None, bytes=None)

    def numbers(row: Any) -> list[float]:
        many = (*(row.probabilities or {}).values(), *(row.loglikelihoods or ()))
        return [x for x in (row.number, row.nll if nll else None, *many) if x is not None]

    def alike(x: Any, y: Any) -> bool:
        pairs = list(zip(numbers(x), numbers(y), strict=False))
        return bare(x) == bare(y) and len(numbers(x)) == len(numbers(y)) and all(abs(m - n) < 1e-3 for m, n in pairs)

    return len(a) == len(b) and all(alike(x, y) for x, y in zip(a, b, strict=True))
