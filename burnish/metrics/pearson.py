"""Pearson's linear correlation of gold and said; blind to a wrong offset or scale."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from burnish.metrics._numbers import correlation, filled, gold_and_said

FOR = ("regress",)
NEEDS = "number"
HIGHER = True
RANGE = (-1.0, 1.0)
KIND = "aggregate"

components = gold_and_said


def value(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """r of rows (..., n, 2); 0 where either side is constant; missing: the far end of the gold range."""
    return correlation(*filled(rows))
