"""Supervised fine-tuning: learn the answers, given what stands before them."""

from __future__ import annotations

from torch import Tensor

from burnish.methods._losses import Settings, of_words
from burnish.models.model import Outputs
from burnish.tokens.batch import Batch

MODELS = ("decoder", "encoder-decoder")
HEAD = "language"
TARGET = "answers"


def weight(batch: Batch) -> float:
    """How many targets a batch holds."""
    return float(batch.weights.sum())


def loss(outputs: Outputs, batch: Batch, settings: Settings) -> Tensor:
    """Sum of weighted minus log-likelihoods of the answer tokens, in nats."""
    return of_words(outputs, settings.label_smoothing)
