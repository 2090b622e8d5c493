"""What several methods share: cross-entropy as a sum with weights, and how likely each answer of a pair is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from burnish.kinds import setting
from burnish.models.fused import linear_cross_entropy, linear_log_likelihood
from burnish.models.model import Outputs
from burnish.tokens.batch import Batch


@dataclass(frozen=True)
class Settings:
    """Keys of `method:` when its kind is classify or sft."""

    label_smoothing: float = setting(
        0.0, "share of each target spread over the whole vocabulary or all classes", 0, 0.9
    )


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


def answers(outputs: Outputs, batch: Batch) -> tuple[Tensor, Tensor]:
    """(P, 2) log-likelihood in nats of the chosen and the rejected answer of each pair, and (P, 2) their tokens.

    What both begin with counts in both.
    """
    assert outputs.targets is not None
    assert outputs.weights is not None
    assert outputs.row is not None
    if outputs.hidden is None or outputs.head is None:
        each = -torch.nn.functional.cross_entropy(outputs.logits, outputs.targets, reduction="none")
    else:
        head = outputs.head
        each = linear_log_likelihood(outputs.hidden, head.weight, head.bias, outputs.targets)
    told = []
    for values in (each * outputs.weights, (outputs.weights > 0).to(each.dtype)):
        sums = torch.zeros(batch.rows * batch.each, dtype=each.dtype, device=each.device)
        sums = sums.index_add(0, outputs.row, values).view(batch.rows, batch.each)
        told.append(sums if batch.each == 2 else sums[:, :1] + sums[:, 1:])
    return told[0], told[1]
