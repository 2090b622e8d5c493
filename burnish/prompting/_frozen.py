"""What rungs on frozen features share: the features themselves, and what should be said of them.

To learn from, rows are read as the task's `data.too_long` says; to be answered, a text that is too long is cut at its
end, and a row that cannot be read at all keeps its place with a problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from burnish.errors import DataError
from burnish.generate import engine
from burnish.generate.answer import Answerer
from burnish.prompting._world import World
from burnish.records import Example, Problem
from burnish.tokens.encode import RowProblem
from burnish.tokens.rows import Tokens


def features(answerer: Answerer, rows: Sequence[Example]) -> tuple[Tensor, list[str]]:
    """(M, H) mean hidden states of the rows that can be read, and what is wrong with each of all N ('': nothing)."""
    tokens, problems = _read(answerer, rows, "cut-prompt")
    told = [problem.what if problem else "" for problem in problems]
    return _states(answerer, tokens), told


def learnable(answerer: Answerer, rows: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """(M, H) features and (M, C) targets of the rows to learn from; DataError where one cannot be read nor dropped."""
    tokens, problems = _read(answerer, rows, answerer.contract.too_long)
    for problem in problems:
        if problem and problem.severity == "error":
            raise DataError(problem.what, problem.where, problem.do)
    good = [row for row, problem in zip(rows, problems, strict=True) if not problem]
    if not good:
        raise DataError("No row is left to learn from", str(rows[0].where), "raise data.max_length")
    return _states(answerer, tokens), targets(answerer, good)


def trial(world: World) -> tuple[Sequence[Example], Sequence[Example]]:
    """(rows to fit, rows to choose on): validation, or every fifth training row where there is none."""
    if world.validation or len(world.train) < 5:
        return world.train, world.validation or world.train
    return [row for i, row in enumerate(world.train) if i % 5], world.train[::5]


def _read(answerer: Answerer, rows: Sequence[Example], too_long: str) -> tuple[list[Tokens], list[Problem | None]]:
    encoding = replace(answerer.encoding, target="label", too_long=too_long, labels={}, multi=False)
    tokens: list[Tokens] = []
    problems: list[Problem | None] = []
    for row in rows:
        try:
            tokens.append(encoding.encode(replace(row, label=None))[0][0])
            problems.append(None)
        except RowProblem as bad:
            problems.append(bad.problem)
    return tokens, problems


def _states(answerer: Answerer, tokens: Sequence[Tokens]) -> Tensor:
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
