"""Share of pairs of which the model finds the chosen answer likelier for its length: log-likelihood per UTF-8 byte.

Bytes and not tokens, so that models with other tokenizers are judged alike.
"""

from __future__ import annotations

from collections.abc import Sequence

from burnish.metrics._ratio import mean
from burnish.records import Example, Prediction

FOR = ("prefer",)
NEEDS = "loglikelihoods"
HIGHER = True
RANGE = (0.0, 1.0)
KIND = "proportion"

value = mean


def components(example: Example, prediction: Prediction, labels: Sequence[str]) -> tuple[float, ...]:
    """(1,) when the better answer wins, else (0,): also where both are equally likely, or nothing is known."""
    told = prediction.loglikelihoods
    if prediction.problem or told is None:
        return (0.0,)
    each = [nats / max(len(text.encode()), 1) for nats, text in zip(told, example.choices, strict=True)]
    return (float(each[0] > max(each[1:])),)
