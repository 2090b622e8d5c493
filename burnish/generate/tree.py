"""Answers to one prompt as a tree, and which places of a row see which, sixteen at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from torch import Tensor

from burnish.models.branches import WIDE


@dataclass(frozen=True)
class Blocks:
    """Places of a stretch in blocks of up to sixteen, and what of the stretch itself each block sees.

    many: (B,) places in each block.  counts: (B,) how many of keys, masks are of it.  keys: (K,) places from the
    stretch's beginning.  masks: (K,) a bit for each place of the block that sees the key.
    """

    many: np.ndarray
    counts: np.ndarray
    keys: np.ndarray
    masks: np.ndarray

    @staticmethod
    def of(sees: np.ndarray) -> Blocks:
        """Of (Q, Q) whether a place sees another."""
        size = len(sees)
        blocks = -(-size // WIDE)
        whole = np.zeros((blocks * WIDE, size), np.int64)
        whole[:size] = sees
        masks = (whole.reshape(blocks, WIDE, size) << np.arange(WIDE)[:, None]).sum(1)  # (B, Q)
        block, key = np.nonzero(masks)
        many = np.minimum(WIDE, size - WIDE * np.arange(blocks))
        return Blocks(many, np.bincount(block, minlength=blocks), key, masks[block, key])

    @staticmethod
    @cache
    def chain(size: int) -> Blocks:
        """Of a row: what lies before a block is a stretch that all of it see, and is not told here."""
        whole = Blocks.of(np.tri(WIDE, dtype=bool))
        many = np.minimum(WIDE, size - WIDE * np.arange(-(-size // WIDE)))
        keys = np.arange(size)
        return Blocks(many, many, keys, whole.masks[keys % WIDE])


@dataclass(frozen=True)
class Tree:
    """Answers to one prompt; what several begin with stands once, and an answer's last id need not be read.

    ids: (Q,) parents before children.  depth: (Q,) from 0.  sees: (Q, Q) whether a node's past holds another.
    answer, node, token: (M,) every id of every answer, and where it is predicted: node 0 is the prompt's end, i + 1
    the tree's i-th id.
    """

    ids: Tensor
    depth: Tensor
    sees: Tensor
    answer: Tensor
    node: Tensor
    token: Tensor
    many: int

    @staticmethod
    def of(answers: Sequence[Sequence[int]]) -> Tree:
        """The tree of these answers."""
        nodes: dict[tuple[int, ...], int] = {(): 0}
        asked = []
        for number, answer in enumerate(map(tuple, answers)):
            for end in range(len(answer)):
                asked.append((number, nodes.setdefault(answer[:end], len(nodes)), answer[end]))
        paths = list(nodes)[1:]
        sees = np.eye(len(paths), dtype=bool)
        for i, path in enumerate(paths):
            if len(path) > 1:
                sees[i] |= sees[nodes[path[:-1]] - 1]
        depth = torch.tensor([len(path) - 1 for path in paths], dtype=torch.long)
        ids = torch.tensor([path[-1] for path in paths], dtype=torch.long)
        answer, node, token = torch.tensor(asked, dtype=torch.long).reshape(-1, 3).unbind(1)
        return Tree(ids, depth, torch.from_numpy(sees), answer, node, token, len(answers))

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def blocks(self) -> Blocks:
        """Which of its nodes see which."""
        return Blocks.of(self.sees.numpy())


BARE = Tree.of([])
