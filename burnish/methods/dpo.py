"""Direct preference optimisation: make the chosen answer likelier than the rejected one, against a frozen reference.

The reference is the model as it stands before the first step; its log-likelihoods are worked out once, then
(`train/reference.py`) and come with the batch, so that no second model is held.

Sources: Rafailov et al. 2023, Direct Preference Optimization, eq. 7; label smoothing: Mitchell 2023 (cDPO), eq. 3;
ipo: Azar et al. 2023, eq. 17, of log-likelihoods per token as its authors measured it (TRL, dpo_trainer);
the sft term: Pang et al. 2024, Iterative Reasoning Preference Optimization, eq. 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn.functional import logsigmoid

from burnish.kinds import setting
from burnish.methods._losses import answers
from burnish.models.model import Outputs
from burnish.tokens.batch import Batch

MODELS = ("decoder", "encoder-decoder")
HEAD = "language"
TARGET = "pairs"


@dataclass(frozen=True)
class Settings:
    """Keys of `method:` when its kind is dpo."""

    beta: float = setting(0.1, "pull towards the reference; larger stays closer", 0.001, 2)
    loss: Literal["sigmoid", "ipo"] = setting("sigmoid", "sigmoid: DPO; ipo: bounded, for near-certain preferences")
    label_smoothing: float = setting(0.0, "share of the pairs taken to be the wrong way round (sigmoid)", 0, 0.49)
    sft: float = setting(0.0, "weight of the chosen answer's own minus log-likelihood per token", 0, 10)


def weight(batch: Batch) -> float:
    """How many pairs a batch holds."""
    return float(batch.rows)


def loss(outputs: Outputs, batch: Batch, settings: Settings) -> Tensor:
    """Sum over pairs of the loss in nats; a pair's likelihoods are sums over its answers' tokens."""
    said, counts = answers(outputs, batch)  # (P, 2)
    ratio = said - batch.extras["reference"].to(said.dtype)
    if settings.loss == "ipo":
        each = ratio / counts.clamp_min(1)
        told = (each[:, 0] - each[:, 1] - 1 / (2 * settings.beta)) ** 2
    else:
        told = preference(settings.beta * (ratio[:, 0] - ratio[:, 1]), settings)
    if settings.sft:
        told = told - settings.sft * said[:, 0] / counts[:, 0].clamp_min(1)
    return told.sum()


def preference(margin: Tensor, settings: Settings) -> Tensor:
    """Minus log-probability that the chosen answer wins by this margin, or that it was taken for the other one.

    >>> from torch import tensor
    >>> preference(tensor([0.0, 1.0, 2.0]), Settings())
    tensor([0.6931, 0.3133, 0.1269])
    """
    wrong = settings.label_smoothing
    return -(1 - wrong) * logsigmoid(margin) - wrong * logsigmoid(-margin)
