"""Of the rows a class was said for, the share where it was true; mean over classes (macro)."""

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
    """Macro precision of rows (..., n, 2L) over the classes that occur; a class never said counts as 0."""
    total = sums(rows)
    return macro(total.hit, total.said, total.occurs)
