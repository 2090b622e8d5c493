"""Share of pairs of which the model finds the answer that people chose likelier, as a whole, than the other one.

The likelihood is of all tokens together and of the answer's end: how often the model itself would say one of the two
rather than the other.  Short answers have an advantage there, which `preference-accuracy-per-byte` takes away.
"""

from __future__ import annotations

from collections.abc import Sequence

from burnish.metrics._ratio import mean
from burnish.records import LETTERS, Example, Prediction

FOR = ("prefer",)
NEEDS = "label"
HIGHER = True
RANGE = (0.0, 1.0)
KIND = "proportion"

value = mean


def components(example: Example, prediction: Prediction, labels: Sequence[str]) -> tuple[float, ...]:
    """(1,) when the better answer wins, else (0,): also where both are equally likely."""
    told = prediction.loglikelihoods
    tie = told is not None and told[0] == max(told[1:])
    return (float(prediction.label == LETTERS[0] and not prediction.problem and not tie),)
