"""Share of rows whose classes are exactly right (several per row: the whole set)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from burnish.metrics._labels import switches
from burnish.records import Example, Prediction

FOR = ("classify", "choose")
NEEDS = "label"
HIGHER = True
RANGE = (0.0, 1.0)
KIND = "proportion"


def components(example: Example, prediction: Prediction, labels: Sequence[str]) -> tuple[float, ...]:
    """(1,) when right, else (0,)."""
    row = switches(example, prediction, labels)
    return (float(row[: len(labels)] == row[len(labels) :]),)


def value(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of rows (..., n, 1), shape (...)."""
    return np.mean(rows[..., 0], axis=-1)
