"""What classes are taken for, and whether a stated certainty can be believed.

In: test rows and what one rung said about them.  Out: a Confusion, a Reliability.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from burnish.records import Example, Prediction

WIDEST = 12  # classes of a whole confusion matrix; with more, only the most confused pairs are shown
NO_ANSWER = "no answer"
BINS = 10


@dataclass(frozen=True)
class Confusion:
    """How often each gold class (first) was answered as each class (second).

    pairs: the most frequent confusions as (gold, said, rows, rows of that gold class), at most 15.
    """

    rung: str
    labels: tuple[str, ...]
    counts: Mapping[tuple[str, str], int]
    pairs: tuple[tuple[str, str, int, int], ...]
    left: int

    @property
    def n(self) -> int:
        return sum(self.counts.values())

    @property
    def golds(self) -> list[str]:
        """The classes that have rows."""
        return [label for label in self.labels if self.of(label)]

    def of(self, gold: str) -> int:
        """Rows of a gold class."""
        return sum(count for (label, _), count in self.counts.items() if label == gold)

    @property
    def small(self) -> bool:
        return len(self.labels) <= WIDEST


def confusion(rung: str, examples: Sequence[Example], said: Mapping[str, Prediction]) -> Confusion:
    """Count gold against answer over the rows with one class each; empty where there are none."""
    rows = [row for row in examples if isinstance(row.label, str) and row.id in said]
    if not rows:
        return Confusion(rung, (), {}, (), 0)
    told = [said[row.id] for row in rows]
    answers = [NO_ANSWER if item.problem or not isinstance(item.label, str) else item.label for item in told]
    golds = [str(row.label) for row in rows]
    counts, of = Counter(zip(golds, answers, strict=True)), Counter(golds)
    wrong = sorted(
        ((gold, answer, count, of[gold]) for (gold, answer), count in counts.items() if gold != answer),
        key=lambda pair: (-pair[2], pair[3], pair[:2]),
    )
    labels = sorted({*golds, *answers}, key=lambda label: (label == NO_ANSWER, label))
    return Confusion(rung, tuple(labels), counts, tuple(wrong[:15]), max(0, len(wrong) - 15))


@dataclass(frozen=True)
class Bin:
    """Answers of like certainty: how sure they were on average, how many were right, how many there are."""

    sure: float
    right: float
    n: int


@dataclass(frozen=True)
class Reliability:
    """Whether of the answers given as 80 % sure about 80 % are right.

    error: expected calibration error, the mean gap between the two over answers, 0 (best) to 1.
    Source: Guo et al. 2017, On Calibration of Modern Neural Networks; bins of equal width.
    """

    rung: str
    bins: tuple[Bin, ...]
    error: float
    n: int


def reliability(rung: str, examples: Sequence[Example], said: Mapping[str, Prediction]) -> Reliability | None:
    """Certainty against truth over the rows with one class and a stated certainty; None where there are none."""
    told = [
        (max(item.probabilities.values()), float(item.label == row.label))
        for row in examples
        if isinstance(row.label, str) and (item := said.get(row.id)) and item.probabilities and not item.problem
    ]
    if not told:
        return None
    sure, right = np.array(told).T
    place = np.minimum((sure * BINS).astype(int), BINS - 1)
    groups = [place == number for number in range(BINS)]
    bins = tuple(Bin(float(sure[own].mean()), float(right[own].mean()), int(own.sum())) for own in groups if own.any())
    gap = sum(own.n * abs(own.sure - own.right) for own in bins) / len(told)
    return Reliability(rung, bins, gap, len(told))
