"""F1 over all decisions together; with one class per row it equals accuracy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from burnish.metrics._labels import sums, switches
from burnish.metrics._ratio import ratio

FOR = ("classify",)
NEEDS = "label"
HIGHER = True
RANGE = (0.0, 1.0)
KIND = "aggregate"

components = switches


def value(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Micro F1 of rows (..., n, 2L): 2 hits / (true + said) summed over classes; 0 when nothing is true or said."""
    total = sums(rows)
    return ratio(2 * total.hit.sum(axis=-1), total.gold.sum(axis=-1) + total.said.sum(axis=-1))
