"""Classes, one or several per row, as two rows of switches: which are true, which were said.

In: an example, a prediction, the classes.  Out: 2L numbers, gold then predicted, so that every class metric is
the same few sums for one class per row and for many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from burnish.errors import DataError
from burnish.records import Example, Label, Prediction


def switches(example: Example, prediction: Prediction, labels: Sequence[str]) -> tuple[float, ...]:
    """Gold multi-hot, then predicted multi-hot: 2L numbers.

    A row without a usable answer (a problem, no label, a label nobody declared) counts as one wrong label, spread
    evenly over the classes that are not true: the expected result of a wrong guess, so that abstaining never pays
    and micro-F1 of one label per row stays equal to accuracy.
    Raises DataError when the gold label is missing or not among `labels`.
    """
    if example.label is None:
        raise DataError("The example has no label to score against", str(example.where), "give every test row a label")
    gold = _names(example.label)
    if strange := [name for name in gold if name not in labels]:
        raise DataError(f'Label "{strange[0]}" is not a class', str(example.where), "add it to data.labels")
    truth = tuple(float(name in gold) for name in labels)
    said = None if prediction.problem or prediction.label is None else _names(prediction.label)
    if said is None or any(name not in labels for name in said):
        wrong = len(labels) - sum(truth)
        return (*truth, *((1 - one) / wrong if wrong else 0.0 for one in truth))
    return (*truth, *(float(name in said) for name in labels))


def right(example: Example, prediction: Prediction, labels: Sequence[str]) -> tuple[float, ...]:
    """(1,) when exactly the true classes were said, else (0,)."""
    row = switches(example, prediction, labels)
    return (float(row[: len(labels)] == row[len(labels) :]),)


def _names(label: Label) -> tuple[str, ...]:
    if isinstance(label, tuple):
        return label
    return (label if isinstance(label, str) else f"{label:g}",)


@dataclass(frozen=True)
class Sums:
    """Per class, shape (..., L): rows where it was true and said, true, said; whether it occurs at all."""

    hit: NDArray[np.float64]
    gold: NDArray[np.float64]
    said: NDArray[np.float64]
    occurs: NDArray[np.bool_]


def sums(rows: NDArray[np.float64]) -> Sums:
    """Sums of `switches` rows, shape (..., n, 2L).  A class occurs if it is true in, or was said for, any of them."""
    classes = rows.shape[-1] // 2
    gold, said = rows[..., :classes], rows[..., classes:]
    golds = gold.sum(axis=-2)
    occurs = (golds > 0) | (said >= 1).any(axis=-2)
    return Sums(np.einsum("...nl,...nl->...l", gold, said), golds, said.sum(axis=-2), occurs)
