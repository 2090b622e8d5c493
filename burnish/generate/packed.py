"""Rows behind a prefix as one pack, without padding or mask, where branch.cpp can do the attention (branches.py).

The prefix's keys and values are read where they are, by every row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from burnish.generate.behind import Behind
from burnish.generate.places import Places
from burnish.generate.tree import Blocks
from burnish.models import attention, kernels
from burnish.models.branches import WIDE, Branches
from burnish.models.layout import rounded
from burnish.models.model import Model, bare

TOGETHER = 2048  # ids of a pack from which on a larger one is no faster


def fits(model: Model) -> bool:
    """Whether a model's type and device are the kernel's."""
    weight = next(model.hf.parameters())
    known = model.hf.dtype in kernels.ENDINGS and weight.device.type == "cpu" and kernels.compiled() is not None
    return known and model.takes_positions


def groups(model: Model, rows: Behind, budget: int) -> Iterator[list[int]]:
    """Rows as they come, in packs of at most `budget` ids."""
    group: list[int] = []
    filled = 0
    for i, size in enumerate(rows.sizes):
        if group and filled + size > min(budget, TOGETHER):
            yield group
            group, filled = [], 0
        group.append(i)
        filled += size
    if group:
        yield group


def run(model: Model, rows: Behind) -> Places:
    """What rows say at their places, row after row."""
    seat = model.seat
    ids, positions, places = [], [], []
    start = 0
    for row, asked, tree in rows.each():
        ids += [row, tree.ids.numpy()]
        positions += [np.arange(len(row)), len(row) + tree.depth.numpy()]
        places += [start + asked, start + len(row) + np.arange(len(tree))]
        start += len(row) + len(tree)
    more = rounded(start) - start  # products come in few shapes
    ids.append(np.full(more, rows.pad))
    positions.append(np.zeros(more, np.int64))
    position_ids = _joined(positions)[None] + len(rows.prefix.ids)
    inputs: dict[str, Any] = {"input_ids": _joined(ids)[None], "position_ids": position_ids}
    kept = _joined(places)
    was = seat.layout, seat.positions
    seat.layout, seat.positions = _branches(rows), position_ids[0]
    try:
        with attention.unmasked():
            if model.lays_bare and model.takes_keep:
                with bare(model.hf.get_output_embeddings()) as head:
                    told = model.hf(**inputs, use_cache=False, logits_to_keep=kept).logits[0]
                return Places(told, head)
            keep = {"logits_to_keep": kept} if model.takes_keep else {}
            told = model.hf(**inputs, use_cache=False, **keep).logits[0]
            return Places(told if model.takes_keep else told[kept])
    finally:
        seat.layout, seat.positions = was


def _joined(parts: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def _branches(rows: Behind) -> Branches:
    """What each place sees: of its row all before it, of its tree what leads to it."""
    blocks, counts, keys, masks = [], [], [], []
    start = 0
    for row, _, tree in rows.each():
        size = len(row)
        for part, at in ((Blocks.chain(size), start), (tree.blocks, start + size)):
            first = at + WIDE * np.arange(len(part.many))
            until = first if at == start else np.full(len(first), start + size)
            blocks.append(np.stack([first, part.many, np.full(len(first), start), until], 1))
            counts.append(part.counts)
            keys.append(part.keys + at)
            masks.append(part.masks)
        start += size + len(tree)
    ends = np.cumsum(np.concatenate([[0], *counts]))
    return Branches(rows.prefix.layers, *map(_joined, (blocks, [ends], keys, masks)))
