"""What rows have in common is run once: a prefix of all of them, and the beginnings of answers to one prompt.

In: a Model, the ids of rows, and which places are asked.  Out: what it says at those places and nowhere else, equal to
what each row alone would give.  Every rung that prompts profits, because the prefix is found and not declared.

A row's answers of several tokens follow their prompt as the branches of one tree (tree attention; Miao et al. 2023,
SpecInfer, section 4).  How a model can be run so is tried once (`ability`), never assumed: as a pack (packed.py), as
padded rows (padded.py), or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from burnish.generate import packed, padded
from burnish.generate.behind import Behind
from burnish.generate.places import Places
from burnish.generate.prefix import NOTHING, SHORTEST, Prefix, common, read
from burnish.generate.tree import Tree
from burnish.models.model import Model

Ability = Literal["none", "chain", "tree", "packed"]
WINDOWS = ("sliding_window", "window_size", "attention_chunk_size")


def scores(trees: Sequence[Tree], told: Places) -> list[np.ndarray]:
    """(C,) log-probabilities of each tree's answers: a row's places are its prompt's end and then its tree's ids, tree
    after tree."""
    nodes = np.cumsum([0, *(1 + len(tree) for tree in trees)])
    firsts = np.cumsum([0, *(tree.many for tree in trees)])
    node = torch.cat([tree.node + int(at) for tree, at in zip(trees, nodes, strict=False)])
    answer = torch.cat([tree.answer + int(at) for tree, at in zip(trees, firsts, strict=False)])
    each = told.odds(node, torch.cat([tree.token for tree in trees])).cpu()
    return np.split(torch.zeros(int(firsts[-1]), dtype=torch.float64).index_add_(0, answer, each).numpy(), firsts[1:-1])


def passes(model: Model, rows: Behind, budget: int) -> Iterator[tuple[list[int], Places]]:
    """Run rows a group at a time: which rows, and what they say at their places, row after row.

    A group holds at most `budget` ids; one row always fits.
    """
    longest = len(rows.prefix.ids) + max(rows.sizes, default=0)
    how = packed if ability(model, longest) == "packed" else padded
    for group in how.groups(model, rows, budget):
        yield group, how.run(model, rows.some(group))


_KNOWN: WeakKeyDictionary[nn.Module, dict[tuple[str, bool], bool]] = WeakKeyDictionary()


@torch.no_grad()
def ability(model: Model, longest: int) -> Ability:
    """How a model may be run on rows of up to `longest` ids: rows behind a prefix (chain), trees too (tree), those also
    as a pack, or none of it."""
    if model.base.kind != "decoder":
        return "none"
    known = _KNOWN.setdefault(model.hf, {})

    def can(how: ModuleType, branching: bool) -> bool:
        key = how.__name__, branching
        if key not in known:
            known[key] = _tried(model, how, branching)
        return known[key]

    windows = [value for name in WINDOWS if isinstance(value := getattr(model.hf.config, name, None), int)]
    if not can(padded, True):
        return "chain" if can(padded, False) else "none"
    if any(longest > value for value in windows):
        return "chain"
    return "packed" if packed.fits(model) and can(packed, True) else "tree"


def _tried(model: Model, how: ModuleType, branching: bool) -> bool:
    """Whether a prefix and a tree give the logits of plain rows."""
    ids = [i * 7 % model.base.vocabulary for i in range(12)]
    first, own = ids[:4], [np.array(ids[4:8]), np.array(ids[6:10])]
    paths = [[], ids[9:10], ids[9:11], ids[11:12]] if branching else [[]]
    tree = Tree.of([[*path, 0] for path in paths])
    try:
        asked = [np.array([len(row) - 1]) for row in own]
        told = how.run(model, Behind(read(model, first), own, asked, [tree, tree])).logits()
        wanted = []
        for row in own:
            for path in paths:
                whole = torch.tensor([[*first, *row.tolist(), *path]], device=model.device)
                wanted.append(model.hf(input_ids=whole, use_cache=False).logits[0, -1].float())
        plain = torch.stack(wanted)
        rough = 1e-4 if next(model.hf.parameters()).dtype == torch.float32 else 5e-2
        return bool((told - plain).abs().max() <= rough * plain.abs().max())
    except Exception:  # a model that cannot be run so says it in its own way; plain rows are always there
        return False


__all__ = ["NOTHING", "SHORTEST", "Behind", "Prefix", "Tree", "ability", "common", "passes", "read", "scores"]
