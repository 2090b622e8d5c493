"""A linear layer on frozen features: what the base already knows about the classes, without touching it.

Ridge regression for numbers, logistic regression for classes; the strength of the penalty is chosen on validation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from burnish.generate.answer import Answerer, read_head
from burnish.prompting import _frozen
from burnish.prompting._world import Chosen, World
from burnish.records import Example, Prediction
from burnish.tokens.contract import ending

COST = 30
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def unfit(kind: str, goal: str, shape: str) -> str:
    """Why this rung makes no sense; '' when it does."""
    return _frozen.unfit(goal, shape)


def choose(world: World) -> Chosen:
    """Fit with each penalty on the training rows; keep the one with the lowest validation loss."""
    rows, held = _frozen.trial(world)
    inputs, wanted = _frozen.learnable(world.answerer, rows)
    mean, spread = inputs.mean(0), inputs.std(0, correction=0).clamp_min(1e-6)
    contract = world.answerer.contract
    kind = "number" if contract.goal == "regress" else "multi" if contract.multi else "classes"
    centre, scale = torch.zeros(1), torch.ones(1)
    if kind == "number":
        centre, scale = wanted.mean(0), wanted.std(0, correction=0).clamp_min(1e-6)
    held_in, held_out = _frozen.learnable(world.answerer, held)
    held_in, held_out = (held_in - mean) / spread, (held_out - centre) / scale
    best: tuple[float, float, Tensor, Tensor] | None = None
    for penalty in PENALTIES:
        weight, bias = _fit((inputs - mean) / spread, (wanted - centre) / scale, penalty, kind)
        loss = float(_loss(held_in @ weight.T + bias, held_out, kind))
        if best is None or loss < best[0]:
            best = (loss, penalty, weight, bias)
    assert best is not None
    tensors = {"weight": best[2], "bias": best[3], "mean": mean, "spread": spread, "centre": centre, "scale": scale}
    return Chosen({"penalty": best[1]}, {"penalty": best[1], "validation_loss": round(best[0], 4)}, tensors)


def answer(
    answerer: Answerer, recipe: Mapping[str, Any], tensors: Mapping[str, Tensor], rows: Sequence[Example]
) -> Iterator[Prediction]:
    """One Prediction for each row."""
    contract = answerer.contract
    head = ending(contract.goal, contract.multi)
    scale = (float(tensors["centre"][0]), float(tensors["scale"][0])) if head == "number" else (0.0, 1.0)
    spoken = replace(contract, head=head, mean=scale[0], deviation=scale[1])
    inputs, problems = _frozen.features(answerer, rows)
    logits = iter(_logits(inputs, tensors).double().numpy())
    for row, problem in zip(rows, problems, strict=True):
        blank = Prediction(row.id, str(row.where), problem=problem)
        yield blank if problem else read_head(spoken, blank, next(logits))


def _logits(inputs: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    return (inputs - tensors["mean"]) / tensors["spread"] @ tensors["weight"].T + tensors["bias"]


def _loss(logits: Tensor, wanted: Tensor, kind: str) -> Tensor:
    if kind == "number":
        return ((logits - wanted) ** 2).mean()
    if kind == "multi":
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted)
    return torch.nn.functional.cross_entropy(logits, wanted)


def _fit(inputs: Tensor, wanted: Tensor, penalty: float, kind: str) -> tuple[Tensor, Tensor]:
    """Minimise mean loss + penalty / 2 x |W|^2 by L-BFGS from zero: convex, so the start does not matter.

    In double precision: in single, a weak penalty is never seen beside the loss.
    """
    inputs, wanted = inputs.double(), wanted.double()
    weight = torch.zeros(wanted.shape[1], inputs.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(wanted.shape[1], dtype=torch.float64, requires_grad=True)
    exact = {"tolerance_grad": 1e-9, "tolerance_change": 1e-12}
    solver = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe", **exact)

    def closure() -> Tensor:
        solver.zero_grad()
        loss = _loss(inputs @ weight.T + bias, wanted, kind) + penalty / 2 * (weight**2).sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    return weight.detach().float(), bias.detach().float()
