"""Share of rows whose text is the gold text, after Unicode NFC and stripping white space at both ends; case counts."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from burnish.metrics._ratio import mean
from burnish.metrics._text import gold
from burnish.records import Example, Prediction

FOR = ("extract", "answer")
NEEDS = "text"
HIGHER = True
RANGE = (0.0, 1.0)
KIND = "proportion"

value = mean


def components(example: Example, prediction: Prediction, labels: Sequence[str]) -> tuple[float, ...]:
    """(1,) when equal, else (0,); no usable answer is never equal, not even to an empty gold text."""
    usable = not prediction.problem and prediction.text is not None
    return (float(usable and _plain(prediction.text or "") == _plain(gold(example))),)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()
