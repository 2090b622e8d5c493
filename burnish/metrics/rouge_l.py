"""ROUGE-L: F1 of the longest common subsequence of words, mean over rows; no stemming.

Equal to rouge_score's rougeL on ASCII text; letters outside it are kept here (see `_text.words`).
Source: Lin 2004, ROUGE, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

from burnish.metrics._ratio import mean
from burnish.metrics._text import gold, said, words
from burnish.records import Example, Prediction

FOR = ("answer", "extract", "chat")
NEEDS = "text"
HIGHER = True
RANGE = (0.0, 1.0)
KIND = "mean"

value = mean


def components(example: Example, prediction: Prediction, labels: Sequence[str]) -> tuple[float, ...]:
    """(F1,) of one row, 0 to 1; 0 when either side has no words."""
    target, answer = words(gold(example)), words(said(prediction))
    common = _common(target, answer)
    return (2 * common / (len(target) + len(answer)) if common else 0.0,)


def _common(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence.

    Bit i of `unmatched` is 1 while word i of `a` is, so a whole row of the table is three integer operations.
    Source: Hyyrö 2004, Bit-parallel LCS-length computation revisited.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(a)) - 1
    unmatched = full
    for word in b:
        hit = unmatched & places.get(word, 0)
        unmatched = (unmatched + hit | unmatched - hit) & full
    return len(a) - unmatched.bit_count()
