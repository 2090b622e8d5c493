"""What rows have in common is run once: a prefix of all of them, and the beginnings of answers to one prompt.

In: a Model, the ids of rows, and which places are asked.  Out: logits at those places and nowhere else, equal to what
each row alone would give.  Every rung that prompts profits, because the prefix is found and not declared.

Rows stand behind the prefix's keys and values and are padded right, so that what a row reads does not depend on its
batch-mates; answers of several tokens follow their prompt as the branches of one tree (tree attention; Miao et al.
2023, SpecInfer, section 4).  Whether a model can be run so is tried once (`ability`), never assumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from burnish.models.model import Model

Ability = Literal["none", "chain", "tree"]
SHORTEST = 8  # ids: a prefix below this saves less than its own pass costs
STEP = 4  # places of a row, its tree counted, are a multiple: vectors of 16 numbers then begin and end with rows
STEADY = 8  # rows of a matrix product, for each thread, from which on no row's sums depend on how many there are
CELLS = 1 << 26  # logits held at once
WINDOWS = ("sliding_window", "window_size", "attention_chunk_size")


class _Lent(DynamicLayer):
    """One layer's keys and values of the prefix, read by every row and not kept per row."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The prefix and then the rows' own, (B, heads, P + T, width)."""
        assert self.keys is not None
        assert self.values is not None
        pairs = ((self.keys, key_states), (self.values, value_states))
        keys, values = (torch.cat([old.expand(len(new), -1, -1, -1), new], 2) for old, new in pairs)
        return keys, values


@dataclass(frozen=True)
class Prefix:
    """ids that all rows begin with, and what each layer made of them: keys and values (1, heads, P, width)."""

    ids: tuple[int, ...] = ()
    layers: tuple[tuple[Tensor, Tensor], ...] = ()

    def lent(self) -> Cache | None:
        """A cache for one pass of any number of rows."""
        return Cache(layers=[_Lent(*layer) for layer in self.layers]) if self.ids else None

    def grown(self, rows: int) -> Cache | None:
        """A cache that `rows` rows go on from, token by token."""
        if not self.ids:
            return None
        told = DynamicCache()
        for place, (keys, values) in enumerate(self.layers):
            told.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), place)
        return told


NOTHING = Prefix()


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
        sees = torch.tensor([[path[: len(other)] == other for other in paths] for path in paths], dtype=torch.bool)
        depth = torch.tensor([len(path) - 1 for path in paths], dtype=torch.long)
        ids = torch.tensor([path[-1] for path in paths], dtype=torch.long)
        answer, node, token = torch.tensor(asked, dtype=torch.long).reshape(-1, 3).unbind(1)
        return Tree(ids, depth, sees.reshape(len(paths), len(paths)), answer, node, token, len(answers))

    def scores(self, logits: Tensor) -> Tensor:
        """(B, C) log-probability of each answer, of (B, 1 + Q, V) logits at the prompt's end and at the tree's ids."""
        node, token = self.node.to(logits.device), self.token.to(logits.device)
        each = logits[:, node, token].double() - logits.logsumexp(-1)[:, node].double()  # (B, M)
        told = torch.zeros(len(logits), self.many, dtype=torch.float64, device=logits.device)
        return told.index_add_(1, self.answer.to(logits.device), each)

    def __len__(self) -> int:
        return len(self.ids)


BARE = Tree.of([])


def common(rows: Sequence[np.ndarray], ends: Sequence[int]) -> int:
    """How many ids all rows begin with, at most the least of `ends`; 0 where it does not pay."""
    if len(rows) < 2:
        return 0
    most = min(ends)
    if most < SHORTEST:
        return 0
    same = (np.stack([row[:most] for row in rows]) == rows[0][:most]).all(0)
    length = most if same.all() else int(same.argmin())
    return length if length >= SHORTEST else 0


def read(model: Model, ids: Sequence[int]) -> Prefix:
    """Run a prefix, once."""
    cache = DynamicCache()
    inputs: dict[str, Any] = {"logits_to_keep": 1} if model.takes_keep else {}
    model.hf(input_ids=torch.tensor([list(ids)], device=model.device), past_key_values=cache, use_cache=True, **inputs)
    return Prefix(tuple(ids), tuple((layer.keys, layer.values) for layer in cache.layers))


@dataclass(frozen=True)
class Rows:
    """B rows behind a prefix of P ids: each its own ids, then a tree that is the same for all.

    own: ids after the prefix, at least one each.  asked: the places in `own` whose next id is asked, ascending.
    width: columns S for a row's own ids.
    """

    prefix: Prefix
    own: Sequence[np.ndarray]
    asked: Sequence[np.ndarray]
    width: int
    tree: Tree = BARE
    pad: int = 0

    @cached_property
    def lengths(self) -> Tensor:
        return torch.tensor([len(row) for row in self.own])

    def ids(self) -> Tensor:
        """(B, S + Q)."""
        told = torch.full((len(self.own), self.width + len(self.tree)), self.pad)
        for i, row in enumerate(self.own):
            told[i, : len(row)] = torch.from_numpy(row.astype(np.int64))
        told[:, self.width :] = self.tree.ids
        return told

    def wanted(self) -> Tensor:
        """(B, S + Q) whether a place is asked."""
        told = torch.zeros(len(self.own), self.width + len(self.tree), dtype=torch.bool)
        for i, places in enumerate(self.asked):
            told[i, torch.from_numpy(places.astype(np.int64))] = True
        told[:, self.width :] = True
        return told

    def positions(self) -> Tensor:
        """(B, S + Q): a tree stands where its row's own ids end."""
        own = torch.arange(self.width).expand(len(self.own), -1)
        return len(self.prefix.ids) + torch.cat([own, self.lengths[:, None] + self.tree.depth], 1)

    def mask(self) -> Tensor:
        """(B, 1, S + Q, P + S + Q) whether a place reads another."""
        before, width, size = len(self.prefix.ids), self.width, len(self.tree)
        told = torch.zeros(len(self.own), 1, width + size, before + width + size, dtype=torch.bool)
        told[..., :before] = True
        told[..., :width, before : before + width] = torch.ones(width, width, dtype=torch.bool).tril()
        own = torch.arange(width) < self.lengths[:, None]  # (B, S)
        told[..., width:, before : before + width] = own[:, None, None]
        told[..., width:, before + width :] = self.tree.sees
        return told


def passes(
    model: Model,
    prefix: Prefix,
    own: Sequence[np.ndarray],
    asked: Sequence[np.ndarray],
    budget: int,
    tree: Tree = BARE,
    pad: int = 0,
) -> Iterator[tuple[list[int], Tensor]]:
    """Run rows (see Rows) a group at a time: which rows, and their (N, V) logits in float32 or more, row after row.

    A row's logits are its own first, then those of its tree.  A group holds at most `budget` ids, the prefix counted
    with each row, and CELLS logits; one row always fits.
    """
    before, steady = len(prefix.ids), STEADY * torch.get_num_threads()
    counts = [len(places) + len(tree) for places in asked]
    size = len(tree)
    widths = [-(-(len(row) + size) // STEP) * STEP - size for row in own]  # hang on a row alone, and so do its sums
    if model.base.context:
        widths = [min(width, model.base.context - before) for width in widths]
    group: list[int] = []
    cells = 0
    order = sorted(range(len(own)), key=lambda i: -widths[i])
    for i, following in zip(order, [*order[1:], None], strict=True):
        group.append(i)
        cells += counts[i] * model.base.vocabulary
        if following is not None and widths[following] == widths[i]:
            full = (len(group) + 1) * (before + widths[i] + len(tree)) > budget
            if not full and cells + counts[following] * model.base.vocabulary <= CELLS:
                continue
        some = group + group[:1] * (-(-steady // (widths[i] + len(tree))) - len(group))
        rows = Rows(prefix, [own[j] for j in some], [asked[j] for j in some], widths[i], tree, pad)
        yield group, _logits(model, rows, steady)[: sum(counts[j] for j in group)]
        group, cells = [], 0


def _logits(model: Model, rows: Rows, steady: int) -> Tensor:
    """(N, V) logits at the asked places."""
    device = model.device
    wanted = rows.wanted()
    kept = wanted.flatten().clone()
    if kept.sum() < steady:  # some that nobody asks, so that the head's product is of the usual kind
        kept[torch.nonzero(~kept)[: steady - int(kept.sum()), 0]] = True
    inputs: dict[str, Any] = {"input_ids": rows.ids().to(device), "past_key_values": rows.prefix.lent()}
    inputs["use_cache"] = bool(rows.prefix.ids)
    if len(rows.tree):
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
    return told if told.dtype == torch.float64 else told.float()


_ABILITIES: WeakKeyDictionary[Any, Ability] = WeakKeyDictionary()


@torch.no_grad()
def ability(model: Model, longest: int) -> Ability:
    """How a model may be run on rows of up to `longest` ids: rows behind a prefix (chain), trees too, or neither."""
    if model.base.kind != "decoder":
        return "none"
    if model.hf not in _ABILITIES:
        _ABILITIES[model.hf] = "tree" if _tried(model, True) else "chain" if _tried(model, False) else "none"
    found = _ABILITIES[model.hf]
    windows = [value for name in WINDOWS if isinstance(value := getattr(model.hf.config, name, None), int)]
    return "chain" if found == "tree" and any(longest > value for value in windows) else found


def _tried(model: Model, branching: bool) -> bool:
    """Whether a prefix and a tree give the logits of plain rows."""
    ids = [i * 7 % model.base.vocabulary for i in range(12)]
    first, own = ids[:4], [np.array(ids[4:8]), np.array(ids[6:10])]
    paths = [[], ids[9:10], ids[9:11], ids[11:12]] if branching else [[]]
    tree = Tree.of([[*path, 0] for path in paths])
    try:
        asked = [np.array([len(row) - 1]) for row in own]
        ((_, told),) = passes(model, read(model, first), own, asked, CELLS, tree)
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
