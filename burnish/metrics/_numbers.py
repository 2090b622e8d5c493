"""A number that should have been said and the one that was.

In: an example and a prediction.  Out: (gold, said), with NaN where nothing usable was said; `filled` replaces NaN by
the worst guess that could be expected, so that no missing answer can improve a score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from burnish.errors import DataError
from burnish.metrics._ratio import ratio
from burnish.records import Example, Prediction


def gold_and_said(example: Example, prediction: Prediction, labels: Sequence[str] = ()) -> tuple[float, float]:
    """The example's number and the predicted one; NaN when there is no finite prediction.

    labels: none of a number.
    Raises DataError when the example's label is not a finite number.
    """
    gold = example.label
    if not isinstance(gold, (int, float)) or not math.isfinite(gold):
        raise DataError(f"Label {gold!r} is not a number to score against", str(example.where), "mend the row")
    said = prediction.number
    usable = not prediction.problem and said is not None and math.isfinite(said)
    return float(gold), float(said) if usable and said is not None else math.nan


def filled(rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Columns gold and said of rows (..., n, 2), each (..., n).

    A missing number becomes the end of the gold range farther from its gold.

    Where all gold numbers are equal the range has no ends: a missing one is then off by |gold|, at least by 1.
    """
    gold, said = rows[..., 0], rows[..., 1]
    missing = np.isnan(said)
    if missing.any():
        low, high = gold.min(axis=-1, keepdims=True), gold.max(axis=-1, keepdims=True)
        low = np.where(low == high, low - np.maximum(1.0, np.abs(low)), low)
        said = np.where(missing, np.where(gold - low > high - gold, low, high), said)
    return gold, said


def correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson's r of two columns (..., n), shape (...); 0 where either is constant: nothing varies together."""
    x, y = x - x.mean(axis=-1, keepdims=True), y - y.mean(axis=-1, keepdims=True)
    scale = np.sqrt((x * x).sum(axis=-1)) * np.sqrt((y * y).sum(axis=-1))
    return np.clip(ratio((x * y).sum(axis=-1), scale), -1.0, 1.0)
