"""exp of the mean surprise per token: weighted by tokens, so batching and row length change nothing.

Counted in one tokenizer's tokens: never compare it across tokenizers (bits-per-byte is for that).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from burnish.metrics._likelihood import nats, rate
from burnish.records import Example, Prediction

FOR = ("chat", "write", "answer")
NEEDS = "nll"
HIGHER = False
RANGE = (1.0, float("inf"))
KIND = "aggregate"


def components(example: Example, prediction: Prediction, labels: Sequence[str]) -> tuple[float, ...]:
    """(nats, tokens) of the gold text.  Raises DataError without them."""
    return nats(prediction, prediction.tokens)


def value(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """exp(sum of nats / sum of tokens) over rows (..., n, 2); infinite when it is too large for a float."""
    with np.errstate(over="ignore"):
        return np.exp(rate(rows))
