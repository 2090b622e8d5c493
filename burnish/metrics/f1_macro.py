"""F1 of each class, then the mean over classes: rare classes count as much as frequent ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from burnish.metrics._labels import sums, switches
from burnish.metrics._ratio import macro

FOR = ("classify",)
NEEDS = "label"
HIGHER = True
RANGE = (0.0, 1.0)
KIND = "aggregate"

components = switches


def value(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Macro F1 of rows (..., n, 2L) over the classes that occur: 2 hits / (true + said)."""
    total = sums(rows)
    return macro(2 * total.hit, total.gold + total.said, total.occurs)
