"""The base model and an instruction, nothing else: what the money buys before any is spent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from burnish.generate.answer import Answerer
from burnish.prompting._world import Chosen, World
from burnish.records import Example, Prediction

COST = 10
MODELS = ("decoder", "encoder-decoder")


def unfit(kind: str, goal: str, shape: str) -> str:
    """Why this rung makes no sense for a model, goal and shape; '' when it does."""
    return "" if kind in MODELS else "an encoder is not prompted"


def choose(world: World) -> Chosen:
    """Nothing to choose."""
    return Chosen({"instruction": world.answerer.contract.instruction})


def answer(
    answerer: Answerer, recipe: Mapping[str, Any], tensors: Mapping[str, Tensor], rows: Sequence[Example]
) -> Iterator[Prediction]:
    """One Prediction for each row."""
    asked = replace(answerer.contract, instruction=recipe["instruction"])
    yield from replace(answerer, contract=asked).answer(rows)
