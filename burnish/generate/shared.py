"""What rows have in common is run once: a prefix of all of them, and the beginnings of answers to one prompt.

In: a Model, the ids of rows, and which places are asked.  Out: logits at those places and nowhere else, equal to what
each row alone would give.  Every rung that prompts profits, because the prefix is found and not declared.

Rows stand behind the prefix's keys and values and are padded right, so that what a row reads does not depend on its
batch-mates; a row's answers of several tokens follow their prompt as the branches of one tree (tree attention; Miao et
al. 2023, SpecInfer, section 4).  Whether a model can be run so is tried once (`ability`), never assumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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


BARE = Tree.of([])


def scores(trees: Sequence[Tree], logits: Tensor) -> list[np.ndarray]:
    """(C,) log-probabilities of each tree's answers, of (N, V) logits: a row's at its prompt's end, then at its tree's
    ids, tree after tree."""
    nodes = np.cumsum([0, *(1 + len(tree) for tree in trees)])
    firsts = np.cumsum([0, *(tree.many for tree in trees)])
    node = torch.cat([tree.node + int(at) for tree, at in zip(trees, nodes, strict=False)]).to(logits.device)
    answer = torch.cat([tree.answer + int(at) for tree, at in zip(trees, firsts, strict=False)]).to(logits.device)
    token = torch.cat([tree.token for tree in trees]).to(logits.device)
    each = logits[node, token].double() - logits.logsumexp(-1)[node].double()
    told = torch.zeros(int(firsts[-1]), dtype=torch.float64, device=logits.device).index_add_(0, answer, each)
    return np.split(told.cpu().numpy(), firsts[1:-1])


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


def passes(
    model: Model,
    prefix: Prefix,
    own: Sequence[np.ndarray],
    asked: Sequence[np.ndarray],
    budget: int,
    trees: Sequence[Tree] = (),
    pad: int = 0,
) -> Iterator[tuple[list[int], Tensor]]:
    """Run rows (see Rows) a group at a time: which rows, and their (N, V) logits in float32 or more, row after row.

    trees: one for each row, or none.  A row's logits are its own first, then those of its tree.  A group holds at most
    `budget` ids, the prefix counted with each row, and CELLS logits; one row always fits.
    """
    before, steady = len(prefix.ids), STEADY * torch.get_num_threads()
    trees = trees or [BARE] * len(own)
    counts = [len(places) + len(tree) for places, tree in zip(asked, trees, strict=True)]
    forms = []  # of each row (columns, whether it has a tree): hang on it alone, and so do its sums
    for row, tree in zip(own, trees, strict=True):
        width = -(-(len(row) + len(tree)) // STEP) * STEP
        most = model.base.context - before if model.base.context and not len(tree) else width
        forms.append((min(width, most), len(tree) > 0))
    group: list[int] = []
    cells = 0
    order = sorted(range(len(own)), key=lambda i: forms[i], reverse=True)
    for i, following in zip(order, [*order[1:], None], strict=True):
        group.append(i)
        cells += counts[i] * model.base.vocabulary
        width = forms[i][0]
        if following is not None and forms[following] == forms[i]:
            full = (len(group) + 1) * (before + width) > budget
            if not full and cells + counts[following] * model.base.vocabulary <= CELLS:
                continue
        some = group + group[:1] * (-(-steady // width) - len(group))
        rows = Rows(prefix, [own[j] for j in some], [asked[j] for j in some], [trees[j] for j in some], width, pad)
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
        ((_, told),) = passes(model, read(model, first), own, asked, CELLS, [tree, tree])
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
