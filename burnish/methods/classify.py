"""Classification by a head: cross-entropy over classes, or one sigmoid a class when several may hold."""

from __future__ import annotations

import torch
from torch import Tensor

from burnish.methods._losses import Settings, cross_entropy
from burnish.models.model import Outputs
from burnish.tokens.batch import Batch

MODELS = ("decoder", "encoder", "encoder-decoder")
HEAD = "classes"
TARGET = "label"


def weight(batch: Batch) -> float:
    """How many rows a batch holds."""
    return float(batch.rows)


def loss(outputs: Outputs, batch: Batch, settings: Settings) -> Tensor:
    """Sum over rows of cross-entropy in nats; for several classes the mean over classes of each row's binary ones."""
    assert batch.label is not None
    if batch.label.is_floating_point():  # (B, C) multi-hot
        soft = batch.label * (1 - settings.label_smoothing) + settings.label_smoothing / 2
        told = torch.nn.functional.binary_cross_entropy_with_logits(outputs.logits, soft, reduction="none")
        return told.mean(1).sum()
    ones = torch.ones(len(batch.label), device=batch.label.device)
    return cross_entropy(outputs.logits, batch.label, ones, settings.label_smoothing)
