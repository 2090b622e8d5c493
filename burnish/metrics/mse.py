"""Mean squared error, in the square of the label's unit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from burnish.metrics._numbers import filled, gold_and_said

FOR = ("regress",)
NEEDS = "number"
HIGHER = False
RANGE = (0.0, float("inf"))
KIND = "aggregate"

components = gold_and_said


def value(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of (gold - said)² over rows (..., n, 2); a missing number counts as the far end of the gold range."""
    gold, said = filled(rows)
    return np.mean((gold - said) ** 2, axis=-1)
