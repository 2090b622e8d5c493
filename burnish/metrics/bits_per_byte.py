"""Bits needed per UTF-8 byte of the gold text: comparable across tokenizers; a uniform byte model needs 8."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from burnish.metrics._likelihood import nats, rate
from burnish.records import Example, Prediction

FOR = ("write", "chat")
NEEDS = "nll"
HIGHER = False
RANGE = (0.0, float("inf"))
KIND = "aggregate"


def components(example: Example, prediction: Prediction, labels: Sequence[str]) -> tuple[float, ...]:
    """(nats, bytes) of the gold text.  Raises DataError without them."""
    return nats(prediction, prediction.bytes)


def value(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum of nats / (ln 2 · sum of bytes) over rows (..., n, 2)."""
    return rate(rows) / math.log(2)
