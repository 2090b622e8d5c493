"""What several methods share: cross-entropy as a sum with weights."""

from __future__ import annotations

import torch
from torch import Tensor

from burnish.models.fused import linear_cross_entropy
from burnish.models.model import Outputs


def of_words(outputs: Outputs, smoothing: float = 0.0) -> Tensor:
    """The sum of cross-entropies over the supervised positions of a language head, straight from what it reads."""
    assert outputs.targets is not None
    assert outputs.weights is not None
    if outputs.hidden is None or outputs.head is None:
        return cross_entropy(outputs.logits, outputs.targets, outputs.weights, smoothing)
    head = outputs.head
    return linear_cross_entropy(outputs.hidden, head.weight, head.bias, outputs.targets, outputs.weights, smoothing)


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor, smoothing: float = 0.0) -> Tensor:
    """Sum over positions of weight times minus log-likelihood in nats.

    logits (N, V) float32; targets (N,); weights (N,).  smoothing: share of the target spread evenly over V,
    as torch.nn.functional.cross_entropy does it.

    >>> cross_entropy(torch.zeros(2, 4), torch.tensor([0, 1]), torch.tensor([1.0, 0.0]))
    tensor(1.3863)
    """
    told = torch.nn.functional.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    return (told * weights).sum()
