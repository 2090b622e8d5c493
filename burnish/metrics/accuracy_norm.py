"""Share of multiple-choice rows whose right choice is the likeliest for its length: a long one is no worse for that.

Log-likelihood over letters: `acc_norm` of the Language Model Evaluation Harness (api/task.py of lm-eval 0.4, where
`acc_bytes` counts UTF-8 bytes, which differ for what is not ASCII).  `accuracy` is its `acc`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from burnish.metrics._labels import right
from burnish.metrics._ratio import mean
from burnish.records import LETTERS, Example, Prediction

FOR = ("choose",)
NEEDS = "label"
HIGHER = True
RANGE = (0.0, 1.0)
KIND = "proportion"

value = mean


def components(example: Example, prediction: Prediction, labels: Sequence[str]) -> tuple[float, ...]:
    """(1,) when right, else (0,); an answer without log-likelihoods counts by its letter."""
    if prediction.loglikelihoods:
        rates = np.array(prediction.loglikelihoods) / [len(choice) for choice in example.choices]
        prediction = replace(prediction, label=LETTERS[int(np.argmax(rates))])
    return right(example, prediction, labels)
