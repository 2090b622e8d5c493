"""Rows behind a prefix as one padded batch under an explicit mask: for every device, type and library.

Each row's keys and values are its own copy of the prefix's and then its own, so that any attention can read them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from burnish.generate.places import Places
from burnish.generate.prefix import Prefix
from burnish.generate.tree import Tree
from burnish.models.model import Model

STEP = 4  # places of a row, its tree counted, are a multiple: vectors of 16 numbers then begin and end with rows
STEADY = 8  # rows of a matrix product, for each thread, from which on no row's sums depend on how many there are
CELLS = 1 << 26  # logits held at once


@dataclass(frozen=True)
class Rows:
    """B rows behind a prefix of P ids: each its own ids, then its own tree.

    own: ids after the prefix, at least one each.  asked: the places in `own` whose next id is asked, ascending.
    width: columns T, enough for each row and its tree.
    """

    prefix: Prefix
    own: Sequence[np.ndarray]
    asked: Sequence[np.ndarray]
    trees: Sequence[Tree]
    width: int
    pad: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.own), self.width

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Where each row's tree stands."""
        return [(len(row), len(row) + len(tree)) for row, tree in zip(self.own, self.trees, strict=True)]

    def ids(self) -> Tensor:
        """(B, T)."""
        told = torch.full(self.shape, self.pad)
        for i, (start, end) in enumerate(self.spans):
            told[i, :start] = torch.from_numpy(self.own[i].astype(np.int64))
            told[i, start:end] = self.trees[i].ids
        return told

    def wanted(self) -> Tensor:
        """(B, T) whether a place is asked."""
        told = torch.zeros(self.shape, dtype=torch.bool)
        for i, (start, end) in enumerate(self.spans):
            told[i, torch.from_numpy(self.asked[i].astype(np.int64))] = True
            told[i, start:end] = True
        return told

    def positions(self) -> Tensor:
        """(B, T): a tree stands where its row's own ids end; padding is at the beginning."""
        told = torch.zeros(self.shape, dtype=torch.long)
        for i, (start, end) in enumerate(self.spans):
            told[i, :start] = torch.arange(start)
            told[i, start:end] = start + self.trees[i].depth
        return told + len(self.prefix.ids)

    def mask(self) -> Tensor:
        """(B, 1, T, P + T) whether a place reads another."""
        told = torch.ones(self.width, self.width, dtype=torch.bool).tril().repeat(len(self.own), 1, 1)
        for i, (start, end) in enumerate(self.spans):
            told[i, start:end, :start] = True
            told[i, start:end, start:end] = self.trees[i].sees
        return torch.nn.functional.pad(told, (len(self.prefix.ids), 0), value=True)[:, None]


def groups(
    model: Model,
    prefix: Prefix,
    own: Sequence[np.ndarray],
    asked: Sequence[np.ndarray],
    trees: Sequence[Tree],
    budget: int,
) -> Iterator[list[int]]:
    """Rows of one width and alike in having a tree, in groups of at most `budget` ids, the prefix counted with each.

    Width hangs on the row alone, and so do its sums.  A group also holds at most CELLS logits.
    """
    before = len(prefix.ids)
    forms = [(_width(model, before, row, tree), len(tree) > 0) for row, tree in zip(own, trees, strict=True)]
    cells = [(len(places) + len(tree)) * model.base.vocabulary for places, tree in zip(asked, trees, strict=True)]
    group: list[int] = []
    for i in sorted(range(len(own)), key=lambda i: forms[i], reverse=True):
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


def run(
    model: Model,
    prefix: Prefix,
    own: Sequence[np.ndarray],
    asked: Sequence[np.ndarray],
    trees: Sequence[Tree],
    pad: int = 0,
) -> Places:
    """What one group's rows say at their places, row after row."""
    steady, width = STEADY * torch.get_num_threads(), _width(model, len(prefix.ids), own[0], trees[0])
    more = max(-(-steady // width) - len(own), 0)  # the first row again, so that no product is of another kind
    rows = Rows(prefix, [*own, *own[:1] * more], [*asked, *asked[:1] * more], [*trees, *trees[:1] * more], width, pad)
    told = _logits(model, rows, steady)
    return Places(told[: sum(len(places) + len(tree) for places, tree in zip(asked, trees, strict=True))])


def _logits(model: Model, rows: Rows, steady: int) -> Tensor:
    """(N, V) logits at the asked places."""
    device = model.device
    wanted = rows.wanted()
    kept = wanted.flatten().clone()
    if kept.sum() < steady:  # some that nobody asks, so that the head's product is of the usual kind
        kept[torch.nonzero(~kept)[: steady - int(kept.sum()), 0]] = True
    inputs: dict[str, Any] = {"input_ids": rows.ids().to(device), "past_key_values": rows.prefix.lent()}
    inputs["use_cache"] = bool(rows.prefix.ids)
    if len(rows.trees[0]):
        mask = rows.mask().to(device)
        if model.hf.config._attn_implementation == "eager":
            kind = next(model.hf.parameters()).dtype
            mask = torch.zeros(mask.shape, dtype=kind, device=device).masked_fill(~mask, torch.finfo(kind).min)
        inputs |= {"attention_mask": mask, "position_ids": rows.positions().to(device)}
    if model.takes_keep:
        told = model.hf(**inputs, logits_to_keep=kept.view(wanted.shape).to(device)).logits
    else:
        told = model.hf(**inputs).logits.flatten(0, 1)[kept.to(device)]
    told = told[wanted.flatten()[kept].to(device)]
    return told  # type: ignore[no-any-return]
