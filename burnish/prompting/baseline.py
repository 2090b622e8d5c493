"""The floor under every rung: the most frequent class or answer, the mean, one place or the length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from burnish.generate.answer import Answerer
from burnish.prompting._world import Chosen, World
from burnish.records import LETTERS, Example, Prediction

COST = 0
LIKELIHOODS = False  # it says what it says, and not how sure it is
TEXTS = ("answer", "extract", "chat")
LONGEST, SHORTEST = "longest", "shortest"


def unfit(kind: str, goal: str, shape: str) -> str:
    """Why this rung makes no sense; '' when it does."""
    labelled = goal in ("classify", "regress") and shape == "labelled"
    usable = labelled or goal in ("choose", "prefer") or (goal in TEXTS and shape != "document")
    return "" if usable else "there is no most frequent way to go on from a text"


def choose(world: World) -> Chosen:
    """The training rows' most frequent label (several: each one that more than half of them have), answer, or the mean.

    Of choices the one in the most frequent place, or the longest where that is right more often; of ranked answers the
    longer or the shorter.
    """
    labels = [row.label for row in world.train]
    numbers = [label for label in labels if isinstance(label, float)]
    if world.answerer.contract.goal == "prefer":
        longer = sum(_by_length(row, LONGEST) == LETTERS[0] for row in world.train)
        told: Any = LONGEST if 2 * longer >= len(world.train) else SHORTEST
    elif world.answerer.contract.goal in TEXTS:
        told = Counter(row.answer for row in world.train).most_common(1)[0][0]
    elif world.answerer.contract.goal == "regress":
        told = sum(numbers) / max(len(numbers), 1)
    elif world.answerer.contract.multi:
        counts = Counter(name for label in labels if isinstance(label, tuple) for name in label)
        told = [name for name in world.answerer.contract.labels if counts[name] * 2 > len(labels)]
    else:
        told, times = Counter(str(label) for label in labels).most_common(1)[0]
        if world.answerer.contract.goal == "choose" and _longest_wins(world.train) > times:
            told = LONGEST
    return Chosen({"always": told}, {"always": str(told)})


def answer(
    answerer: Answerer, recipe: Mapping[str, Any], tensors: Mapping[str, Tensor], rows: Sequence[Example]
) -> Iterator[Prediction]:
    """The same answer for every row."""
    always = recipe["always"]
    for row in rows:
        if answerer.contract.goal in TEXTS:
            yield Prediction(row.id, str(row.where), text=always)
        elif row.choices:
            place = LETTERS[min(LETTERS.find(always), len(row.choices) - 1)]
            label = _by_length(row, always) if always in (LONGEST, SHORTEST) else place
            yield Prediction(row.id, str(row.where), label=label)
        elif isinstance(always, float | int):
            yield Prediction(row.id, str(row.where), number=float(always))
        else:
            yield Prediction(row.id, str(row.where), label=tuple(always) if isinstance(always, list) else always)


def _longest_wins(rows: Sequence[Example]) -> int:
    return sum(_by_length(row, LONGEST) == row.label for row in rows)


def _by_length(row: Example, always: str) -> str:
    """The letter of a row's longest or shortest choice; of equals by their letters, since the first may be the best."""
    pick = max if always == LONGEST else min
    return LETTERS[pick(range(len(row.choices)), key=lambda at: (len(row.choices[at]), row.choices[at]))]
