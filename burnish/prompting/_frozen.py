"""What rungs on frozen features share: the features themselves, standardised by the training rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from burnish.errors import DataError
from burnish.generate import engine
from burnish.generate.answer import Answerer
from burnish.records import Example
from burnish.tokens.encode import RowProblem, Tokens


def features(answerer: Answerer, rows: Sequence[Example]) -> Tensor:
    """(N, H) mean hidden states of the rows' texts; a text that is too long is cut at its end."""
    encoding = replace(answerer.encoding, target="label", too_long="cut-prompt", labels={}, multi=False)
    tokens: list[Tokens] = []
    for row in rows:
        try:
            tokens.append(encoding.encode(replace(row, label=None))[0][0])
        except RowProblem as problem:
            raise DataError(problem.what, str(row.where), problem.do) from None
    return engine.features(answerer.model, tokens, answerer.budget, answerer.pad)


def targets(answerer: Answerer, rows: Sequence[Example]) -> Tensor:
    """(N, C): one-hot or multi-hot classes; (N, 1) numbers for regress."""
    contract = answerer.contract
    if contract.goal == "regress":
        return torch.tensor([[float(row.label)] for row in rows if isinstance(row.label, float | int)])
    told = torch.zeros(len(rows), len(contract.labels))
    for i, row in enumerate(rows):
        for name in row.label if isinstance(row.label, tuple) else (str(row.label),):
            told[i, contract.labels.index(name)] = 1.0
    return told


def unfit(goal: str, shape: str) -> str:
    """Why frozen features cannot serve; '' when they can."""
    if shape != "labelled" or goal not in ("classify", "regress"):
        return "frozen features need labelled rows"
    return ""
