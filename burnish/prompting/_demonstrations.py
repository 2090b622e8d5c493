"""Which training rows are shown before a question, and in what order.

Fixed ways show every question the same rows: random, balanced (label by label in turn), diverse (k-centre).
The others choose anew for every question: nearest, and mmr (near, but unlike each other).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from burnish.prompting import _pool
from burnish.prompting._pool import Pool
from burnish.records import Example, Prediction

FIXED = ("random", "balanced", "diverse")
NEAR = ("nearest", "mmr")
ORDERS = ("last", "first", "shuffled")  # where the nearest stands


def drawn(way: str, rows: Sequence[Example], pool: Pool, shots: int, seed: Sequence[int]) -> list[Example]:
    """The rows that every question is shown, in the order in which they are shown."""
    draw = np.random.default_rng(seed)
    order = [int(i) for i in draw.permutation(len(rows))]
    if way == "diverse":
        taken = _pool.diverse(pool, shots, order[0])
    elif way == "balanced":
        taken = _balanced(rows, order, shots)
    else:
        taken = order[:shots]
    return [rows[taken[int(i)]] for i in draw.permutation(len(taken))]


def _balanced(rows: Sequence[Example], order: Sequence[int], shots: int) -> list[int]:
    """Places taken label by label in turn (all alike where there are no labels)."""
    by_label: dict[object, list[int]] = {}
    for i in order:
        label = rows[i].label
        by_label.setdefault(None if isinstance(label, float) else label, []).append(i)
    queues, taken = list(by_label.values()), list[int]()
    while len(taken) < min(shots, len(rows)):
        queues = [queue for queue in queues if queue]
        taken += [queue.pop() for queue in queues][: shots - len(taken)]
    return taken


def near(recipe: Mapping[str, Any], rows: Sequence[Example], pool: Pool, query: Any, row: Example) -> list[Example]:
    """The rows shown before this one question, never itself, in the order in which they are shown."""
    scores, shots = pool.scores(query), int(recipe["shots"])
    if recipe["choose"] == "mmr":
        taken = _pool.mmr(pool, scores, shots, [i for i in range(len(rows)) if rows[i].id != row.id])
    else:
        taken = [i for i in _pool.nearest(scores, shots + 1) if rows[i].id != row.id][:shots]
    found = [rows[i] for i in taken]
    if recipe["order"] == "shuffled":
        draw = np.random.default_rng(list(row.id.encode()))
        return [found[int(i)] for i in draw.permutation(len(found))]
    return found if recipe["order"] == "first" else found[::-1]


def entropy(told: Sequence[Prediction]) -> tuple[float, float]:
    """(GlobalE, LocalE) in nats of answers to rows whose labels are not looked at: larger is a better order.

    Entropy of the labels given, and mean entropy of each answer's shares (Lu et al. 2022, Fantastically Ordered
    Prompts, eq. 3 to 6; there the rows are the model's own, here they are training questions).
    """
    counts = Counter(item.label for item in told)
    shares = [list((item.probabilities or {}).values()) for item in told]
    local = [-sum(p * math.log(p) for p in row if p > 0) for row in shares]
    return -sum(n / len(told) * math.log(n / len(told)) for n in counts.values()), float(np.mean(local))
