"""chrF2: F-score of character 1- to 6-grams without white space, recall counting twice; 0 to 100, over the corpus.

Equal to sacrebleu 2.x `nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no`.  Works in any script.
Source: Popović 2015, chrF: character n-gram F-score for automatic MT evaluation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from burnish.metrics._ratio import macro, ratio
from burnish.metrics._text import gold, said
from burnish.records import Example, Prediction

FOR = ("answer", "extract", "chat")
NEEDS = "text"
HIGHER = True
RANGE = (0.0, 100.0)
KIND = "aggregate"

ORDERS = range(1, 7)
RECALL = 2.0


def components(example: Example, prediction: Prediction, labels: Sequence[str]) -> tuple[float, ...]:
    """18 counts: n-grams said, n-grams in the gold text, n-grams in both, for n = 1 to 6."""
    target, answer = ("".join(text.split()) for text in (gold(example), said(prediction)))
    row: list[float] = []
    for order in ORDERS:
        true, told = _grams(target, order), _grams(answer, order)
        row += [told.total() if true else 0, true.total(), (true & told).total()]
    return tuple(row)


def value(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """chrF of the counts (..., n, 18) summed over rows: mean precision and recall over the orders both sides have."""
    counts = rows.sum(axis=-2).reshape(*rows.shape[:-2], len(ORDERS), 3)
    told, true, both = (counts[..., place] for place in range(3))
    have = (told > 0) & (true > 0)
    precision, recall = (macro(both, side, have) for side in (told, true))
    return 100 * ratio((1 + RECALL**2) * precision * recall, RECALL**2 * precision + recall)


def _grams(text: str, order: int) -> Counter[str]:
    return Counter(text[start : start + order] for start in range(len(text) - order + 1))
