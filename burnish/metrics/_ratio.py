"""Means, ratios of counts, and their mean over classes or n-gram orders, for one sample of rows or many at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def mean(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of rows (..., n, 1), shape (...)."""
    return np.mean(rows[..., 0], axis=-1)


def macro(above: NDArray[np.float64], below: NDArray[np.float64], occurs: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean of above / below (..., L) over the classes that occur, shape (...)."""
    return ratio((ratio(above, below) * occurs).sum(axis=-1), occurs.sum(axis=-1))


def ratio(above: NDArray[np.float64], below: NDArray[Any]) -> NDArray[np.float64]:
    """above / below, where 0 / 0 counts as 0 (scikit-learn's own convention); a number for two numbers."""
    return np.divide(above, below, out=np.zeros(np.shape(above)), where=np.asarray(below) > 0)[()]
