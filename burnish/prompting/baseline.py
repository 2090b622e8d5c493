"""The floor under every rung: always the most frequent class, or the mean, whatever the text says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from burnish.generate.answer import Answerer
from burnish.prompting._world import Chosen, World
from burnish.records import Example, Prediction

COST = 0


def unfit(kind: str, goal: str, shape: str) -> str:
    """Why this rung makes no sense; '' when it does."""
    return (
        "" if goal in ("classify", "regress") and shape == "labelled" else "there is no most frequent answer to a text"
    )


def choose(world: World) -> Chosen:
    """The training rows' most frequent label (several: each one that more than half of them have), or the mean."""
    labels = [row.label for row in world.train]
    numbers = [label for label in labels if isinstance(label, float)]
    if world.answerer.contract.goal == "regress":
        told: Any = sum(numbers) / max(len(numbers), 1)
    elif world.answerer.contract.multi:
        counts = Counter(name for label in labels if isinstance(label, tuple) for name in label)
        told = [name for name in world.answerer.contract.labels if counts[name] * 2 > len(labels)]
    else:
        told = Counter(str(label) for label in labels).most_common(1)[0][0]
    return Chosen({"always": told}, {"always": str(told)})


def answer(
    answerer: Answerer, recipe: Mapping[str, Any], tensors: Mapping[str, Tensor], rows: Sequence[Example]
) -> Iterator[Prediction]:
    """The same answer for every row."""
    always = recipe["always"]
    for row in rows:
        if isinstance(always, float | int):
            yield Prediction(row.id, str(row.where), number=float(always))
        else:
            yield Prediction(row.id, str(row.where), label=tuple(always) if isinstance(always, list) else always)
