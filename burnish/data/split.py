"""Who trains, who chooses, who judges: a stateless function of the seed and the rows' ids.

In: ids, groups, classes and the two shares.  Out: 0 (train), 1 (validation) or 2 (test) for every row.
What holds: the same rows give the same split in any order; a group lies on one side; every class gives its share
to within one row where groups allow it, and keeps a row to train on; test and validation have the rows that their
shares ask for.  Inside a class rows are ranked by a hash, so one row more moves at most eight others, however many
there are: one across each border of its class, and of a class whose rounding tips over.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TRAIN, VALIDATION, TEST = 0, 1, 2
NAMES = ("train", "validation", "test")


def ranks(ids: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """A number for each id that looks random and depends on the id and the seed alone (splitmix64)."""
    values = ids + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def quotas(counts: NDArray[np.int64], share: float, room: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows that each class gives, by largest remainder; never more than its room.  Shape as counts.

    The sum is the share of all rows, rounded, and at least one row when there are three or more.

    >>> quotas(np.array([10, 5]), 0.2, np.array([9, 4]))
    array([2, 1])
    """
    if share <= 0:
        return np.zeros_like(counts)
    rows = int(counts.sum())
    total = max(int(np.floor(rows * share + 0.5)), 1 if rows >= 3 else 0)
    ideal = counts * share
    given: NDArray[np.int64] = np.minimum(np.floor(ideal + 1e-9).astype(np.int64), room)
    for at in np.lexsort((np.arange(len(counts)), -counts, given - ideal)):
        if given.sum() < total and given[at] < room[at]:
            given[at] += 1
    return given


def split(
    ids: NDArray[np.uint64],
    groups: NDArray[np.int64],
    strata: NDArray[np.int64],
    validation: float,
    test: float,
    seed: int,
) -> NDArray[np.int8]:
    """Sides of n rows; all inputs have shape (n,).  strata: which class, numbered in an order that rows do not decide.

    A group counts as one thing with the smallest id of its rows and the class that most of them have.  Groups are
    taken in the order of their ranks and go to test, else to validation, while that brings the side nearer its quota.
    """
    sides = np.zeros(len(ids), np.int8)
    if not len(ids):
        return sides
    _, group = np.unique(groups, return_inverse=True)
    classes, stratum = np.unique(strata, return_inverse=True)
    names = np.full(group.max() + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(names, group, ids)
    sizes = np.bincount(group)
    pairs, numbers = np.unique(group * len(classes) + stratum, return_counts=True)
    common = pairs[np.lexsort((pairs, -numbers, pairs // len(classes)))]
    first = np.concatenate(([True], np.diff(common // len(classes)) > 0))
    stratum = common[first] % len(classes)  # of each group
    counts = np.bincount(stratum, weights=sizes, minlength=len(classes)).astype(np.int64)
    tests = quotas(counts, test, np.maximum(counts - 1, 0))
    validations = quotas(counts, validation, np.maximum(counts - 1 - tests, 0))
    wanted = np.stack((validations, tests), axis=1).tolist()
    side = np.zeros(len(sizes), np.int8)
    for at in np.lexsort((names, ranks(names, seed), stratum)):
        left, size = wanted[stratum[at]], int(sizes[at])
        for column, here in ((1, TEST), (0, VALIDATION)):
            if left[column] * 2 >= size and left[column] > 0:
                left[column] -= size
                side[at] = here
                break
    sides[:] = side[group]
    return sides


def drawn(ids: NDArray[np.uint64], limit: int, seed: int) -> NDArray[np.bool_]:
    """Which rows a limit keeps: those with the lowest ranks, so a larger limit keeps all that a smaller one did."""
    kept = np.ones(len(ids), np.bool_)
    if 0 < limit < len(ids):
        kept[np.lexsort((ids, ranks(ids, seed + 1)))[limit:]] = False
    return kept
