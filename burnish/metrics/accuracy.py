"""Share of rows whose classes are exactly right (several per row: the whole set)."""

from __future__ import annotations

from burnish.metrics._labels import right
from burnish.metrics._ratio import mean

FOR = ("classify", "choose")
NEEDS = "label"
HIGHER = True
RANGE = (0.0, 1.0)
KIND = "proportion"

components = right
value = mean
