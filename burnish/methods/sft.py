"""Supervised fine-tuning: learn the answers, given what stands before them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from burnish.kinds import setting
from burnish.methods._losses import of_words
from burnish.models.model import Outputs
from burnish.tokens.batch import Batch

MODELS = ("decoder", "encoder-decoder")
HEAD = "language"
TARGET = "answers"


@dataclass(frozen=True)
class Settings:
    """Keys of `method:` when its kind is sft."""

    label_smoothing: float = setting(
        0.0, "share of each target spread over the whole vocabulary or all classes", 0, 0.9
    )


def weight(batch: Batch) -> float:
    """How many targets a batch holds."""
    return float(batch.weights.sum())


def loss(outputs: Outputs, batch: Batch, settings: Settings) -> Tensor:
    """Sum of weighted minus log-likelihoods of the answer tokens, in nats."""
    return of_words(outputs, settings.label_smoothing)
