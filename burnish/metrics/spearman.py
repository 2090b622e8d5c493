"""Spearman's rank correlation: whether larger was said where larger is true."""

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


def value(rows: NDArray[np.float64]) -> float:
    """Pearson of average ranks of rows (n, 2); 0 when either side is constant; missing: far end of the gold range."""
    gold, said = filled(rows)
    return correlation(_ranks(gold), _ranks(said))


def _ranks(column: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1, ties sharing their mean rank."""
    _, inverse, counts = np.unique(column, return_inverse=True, return_counts=True)
    return np.asarray((counts.cumsum() - (counts - 1) / 2)[inverse])
