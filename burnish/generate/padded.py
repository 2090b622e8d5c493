"""Rows behind a prefix as one padded batch under an explicit mask: for every device, type and library.

Each row's keys and values are its own copy of the prefix's and then its own, so that any attention can read them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from burnish.generate.behind import Behind
from burnish.generate.places import Places
from burnish.generate.tree import Tree
from burnish.models.model import Model

STEP = 4  # places of a row, its tree counted, are a multiple: vectors of 16 numbers then begin and end with rows
STEADY = 8  # rows of a matrix product, for each thread, from which on no row's sums depend on how many there are
CELLS = 1 << 26  # logits held at once


@dataclass(frozen=True)
class Grid:
    """Rows padded to `width` columns T, enough for each row and its tree."""

    rows: Behind
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), self.width

    def ids(self) -> Tensor:
        """(B, T)."""
        told = torch.full(self.shape, self.rows.pad)
        for line, (row, _, tree) in zip(told, self.rows.each(), strict=True):
            line[: len(row)] = torch.from_numpy(row.astype(np.int64))
            line[len(row) : len(row) + len(tree)] = tree.ids
        return told

    def wanted(self) -> Tensor:
        """(B, T) whether a place is asked."""
        told = torch.zeros(self.shape, dtype=torch.bool)
        for line, (row, asked, tree) in zip(told, self.rows.each(), strict=True):
            line[torch.from_numpy(asked.astype(np.int64))] = True
            line[len(row) : len(row) + len(tree)] = True
        return told

    def positions(self) -> Tensor:
        """(B, T): a tree stands where its row's own ids end; padding is at the beginning."""
        told = torch.zeros(self.shape, dtype=torch.long)
        for line, (row, _, tree) in zip(told, self.rows.each(), strict=True):
            line[: len(row)] = torch.arange(len(row))
            line[len(row) : len(row) + len(tree)] = len(row) + tree.depth
        return told + len(self.rows.prefix.ids)

    def mask(self) -> Tensor:
        """(B, 1, T, P + T) whether a place reads another."""
        told = torch.ones(self.width, self.width, dtype=torch.bool).tril().repeat(len(self.rows), 1, 1)
        for square, (row, _, tree) in zip(told, self.rows.each(), strict=True):
            own = slice(len(row), len(row) + len(tree))
            square[own, : len(row)] = True
            square[own, own] = tree.sees
        return torch.nn.functional.pad(told, (len(self.rows.prefix.ids), 0), value=True)[:, None]


def groups(model: Model, rows: Behind, budget: int) -> Iterator[list[int]]:
    """Rows of one width and alike in having a tree, in groups of at most `budget` ids, the prefix counted with each.

    Width hangs on the row alone, and so do its sums.  A group also holds at most CELLS logits.
    """
    before = len(rows.prefix.ids)
    forms = [(_width(model, before, row, tree), len(tree) > 0) for row, _, tree in rows.each()]
    cells = [(len(asked) + len(tree)) * model.base.vocabulary for _, asked, tree in rows.each()]
    group: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: forms[i], reverse=True):
        full = group and (
            forms[group[0]] != forms[i]
            or (len(group) + 1) * (before + forms[i][0]) > budget
            or sum(cells[j] for j in group) + cells[i] > CELLS
        )
        if full:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def _width(model: Model, before: int, row: np.ndarray, tree: Tree) -> int:
    """Columns of a row and its tree."""
    width = -(-(len(row) + len(tree)) // STEP) * STEP
    return min(width, model.base.context - before) if model.base.context and not len(tree) else width


def run(model: Model, rows: Behind) -> Places:
    """What one group's rows say at their places, row after row."""
    row, _, tree = next(rows.each())
    steady, width = STEADY * torch.get_num_threads(), _width(model, len(rows.prefix.ids), row, tree)
    more = max(-(-steady // width) - len(rows), 0)  # the first row again, so that no product is of another kind
    told = _logits(model, Grid(rows.some([*range(len(rows)), *[0] * more]), width), steady)
    return Places(told[: sum(len(asked) + len(tree) for _, asked, tree in rows.each())])


def _logits(model: Model, grid: Grid, steady: int) -> Tensor:
    """(N, V) logits at the asked places."""
    device = model.device
    wanted = grid.wanted()
    kept = wanted.flatten().clone()
    if kept.sum() < steady:  # some that nobody asks, so that the head's product is of the usual kind
        kept[torch.nonzero(~kept)[: steady - int(kept.sum()), 0]] = True
    inputs: dict[str, Any] = {"input_ids": grid.ids().to(device), "past_key_values": grid.rows.prefix.lent()}
    inputs["use_cache"] = bool(grid.rows.prefix.ids)
    if any(map(len, grid.rows.trees)):
        mask = grid.mask().to(device)
        if model.hf.config._attn_implementation == "eager":
            kind = next(model.hf.parameters()).dtype
            mask = torch.zeros(mask.shape, dtype=kind, device=device).masked_fill(~mask, torch.finfo(kind).min)
        inputs |= {"attention_mask": mask, "position_ids": grid.positions().to(device)}
    if model.takes_keep:
        told = model.hf(**inputs, logits_to_keep=kept.view(wanted.shape).to(device)).logits
    else:
        told = model.hf(**inputs).logits.flatten(0, 1)[kept.to(device)]
    told = told[wanted.flatten()[kept].to(device)]
    return told
