"""A number from a text: squared error on the standardised target.

The head learns (y - mean) / deviation of the training rows, so that a learning rate fits whatever the unit; the
artifact keeps both and gives answers in the user's unit.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from burnish.models.model import Outputs
from burnish.tokens.batch import Batch

MODELS = ("decoder", "encoder", "encoder-decoder")
HEAD = "number"
TARGET = "label"


@dataclass(frozen=True)
class Settings:
    """regress has no keys of its own."""


def weight(batch: Batch) -> float:
    """How many rows a batch holds."""
    return float(batch.rows)


def loss(outputs: Outputs, batch: Batch, settings: Settings) -> Tensor:
    """Sum over rows of the squared error, in squared standard deviations."""
    assert batch.label is not None
    return ((outputs.logits[:, 0] - batch.label.float()) ** 2).sum()
