"""The answer of the most alike training rows: few-shot prompting's honest analogue for a model that is not prompted.

Alike by cosine of frozen features; how many neighbours vote is chosen on validation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from burnish.generate.answer import Answerer
from burnish.prompting import _frozen
from burnish.prompting._world import Chosen, World
from burnish.records import Example, Prediction

COST = 25
NEIGHBOURS = (1, 3, 7, 15, 31)


def unfit(kind: str, goal: str, shape: str) -> str:
    """Why this rung makes no sense; '' when it does."""
    return _frozen.unfit(goal, shape)


def choose(world: World) -> Chosen:
    """The number of neighbours with the lowest squared error on the validation rows."""
    rows, held = _frozen.trial(world)
    inputs, targets = _frozen.learnable(world.answerer, rows)
    centre = inputs.mean(0)
    tensors = {"features": _unit(inputs - centre), "targets": targets, "centre": centre}
    near, wanted = _frozen.learnable(world.answerer, held)
    near = _unit(near - centre)
    errors = {k: float(((_vote(near, tensors, k) - wanted) ** 2).mean()) for k in NEIGHBOURS if k <= len(inputs)}
    best = min(errors, key=lambda k: errors[k])
    return Chosen({"neighbours": best}, {"neighbours": best}, tensors)


def answer(
    answerer: Answerer, recipe: Mapping[str, Any], tensors: Mapping[str, Tensor], rows: Sequence[Example]
) -> Iterator[Prediction]:
    """One Prediction for each row."""
    inputs, problems = _frozen.features(answerer, rows)
    told = iter(_vote(_unit(inputs - tensors["centre"]), tensors, int(recipe["neighbours"])).tolist())
    labels, contract = answerer.contract.labels, answerer.contract
    for row, problem in zip(rows, problems, strict=True):
        where = str(row.where)
        if problem:
            yield Prediction(row.id, where, problem=problem)
            continue
        votes = next(told)
        if contract.goal == "regress":
            yield Prediction(row.id, where, number=votes[0])
            continue
        shares = dict(zip(labels, votes, strict=True))
        if contract.multi:
            yield Prediction(row.id, where, label=tuple(n for n in labels if shares[n] > 0.5), probabilities=shares)
        else:
            yield Prediction(row.id, where, label=max(labels, key=lambda name: shares[name]), probabilities=shares)


def _vote(near: Tensor, tensors: Mapping[str, Tensor], k: int) -> Tensor:
    """(N, C) mean target of each row's k most alike training rows."""
    alike = near @ tensors["features"].T
    return tensors["targets"][torch.topk(alike, k, dim=1).indices].mean(1)


def _unit(inputs: Tensor) -> Tensor:
    return torch.nn.functional.normalize(inputs, dim=1)
