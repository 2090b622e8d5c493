"""What several methods share: cross-entropy as a sum with weights."""

from __future__ import annotations

import torch
from torch import Tensor


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor, smoothing: float = 0.0) -> Tensor:
    """Sum over positions of weight times minus log-likelihood in nats.

    logits (N, V) float32; targets (N,); weights (N,).  smoothing: share of the target spread evenly over V,
    as torch.nn.functional.cross_entropy does it.

    >>> cross_entropy(torch.zeros(2, 4), torch.tensor([0, 1]), torch.tensor([1.0, 0.0]))
    tensor(1.3863)
    """
    told = torch.nn.functional.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    return (told * weights).sum()
