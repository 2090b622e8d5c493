"""Pearson's linear correlation of gold and said; blind to a wrong offset or scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from burnish.metrics._numbers import correlation, filled, gold_and_said
from burnish.records import Example, Prediction

FOR = ("regress",)
NEEDS = "number"
HIGHER = True
RANGE = (-1.0, 1.0)
KIND = "aggregate"


def components(example: Example, prediction: Prediction, labels: Sequence[str]) -> tuple[float, ...]:
    """(gold, said); said is NaN when there is no usable number."""
    return gold_and_said(example, prediction)


def value(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """r of rows (..., n, 2); 0 where either side is constant; missing: the far end of the gold range."""
    return correlation(*filled(rows))
