"""Of the rows where a class is true, the share it was said for; mean over classes (macro)."""

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
    """Macro recall of rows (..., n, 2L) over the classes that occur; a class said but never true counts as 0."""
    total = sums(rows)
    return macro(total.hit, total.gold, total.occurs)
