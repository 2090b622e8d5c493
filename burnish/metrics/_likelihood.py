"""Minus log-likelihood of the gold text, per unit of it.

In: a prediction.  Out: (nats, units) of one row.  A missing likelihood is refused: dropping the row would flatter
the model and no invented number would be honest.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from burnish.errors import DataError
from burnish.metrics._ratio import ratio
from burnish.records import Prediction


def nats(prediction: Prediction, units: int | None) -> tuple[float, float]:
    """(nll, units) as floats.  Raises DataError when either is missing or the likelihood is NaN."""
    if prediction.nll is None or units is None or math.isnan(prediction.nll):
        raise DataError(
            "A row has no log-likelihood, and leaving it out would flatter the model",
            prediction.where,
            prediction.problem or "predict with likelihoods, or choose another goal.metric",
        )
    return prediction.nll, float(units)


def rate(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Nats per unit over all rows (..., n, 2), shape (...); NaN where there is not a single unit."""
    total, units = rows[..., 0].sum(axis=-1), rows[..., 1].sum(axis=-1)
    return np.where(units > 0, ratio(total, units), math.nan)[()]
