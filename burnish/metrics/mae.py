"""Mean absolute error, in the label's own unit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from burnish.metrics._numbers import filled, gold_and_said
from burnish.records import Example, Prediction

FOR = ("regress",)
NEEDS = "number"
HIGHER = False
RANGE = (0.0, float("inf"))
KIND = "aggregate"


def components(example: Example, prediction: Prediction, labels: Sequence[str]) -> tuple[float, ...]:
    """(gold, said); said is NaN when there is no usable number."""
    return gold_and_said(example, prediction)


def value(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean |gold - said| over rows (..., n, 2); a missing number counts as the far end of the gold range."""
    gold, said = filled(rows)
    return np.mean(np.abs(gold - said), axis=-1)
