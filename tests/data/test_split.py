"""What must hold of every split."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.data.split import TEST, TRAIN, VALIDATION, drawn, quotas, split

SEEDS = st.integers(0, 2**31)
SHARES = st.sampled_from([(0.1, 0.2), (0.0, 0.3), (0.25, 0.25), (0.05, 0.05)])


@st.composite
def data(draw, grouped=False):
    n = draw(st.integers(1, 200))
    ids = np.array(draw(st.lists(st.integers(0, 2**64 - 1), min_size=n, max_size=n, unique=True)), np.uint64)
    classes = draw(st.integers(1, 6))
    strata = np.array(draw(st.lists(st.integers(0, classes - 1), min_size=n, max_size=n)), np.int64)
    size = draw(st.integers(1, n)) if grouped else n
    groups = (
        np.array(draw(st.lists(st.integers(0, size - 1), min_size=n, max_size=n)), np.int64)
        if grouped
        else np.arange(n)
    )
    return ids, groups, strata


@settings(max_examples=60, deadline=None)
@given(data(grouped=True), SHARES, SEEDS, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing_and_groups_stay_whole(rows, shares, seed, rng):
    ids, groups, strata = rows
    sides = split(ids, groups, strata, *shares, seed)
    assert (split(ids, groups, strata, *shares, seed) == sides).all()
    order = list(range(len(ids)))
    rng.shuffle(order)
    renamed = groups[order] + 17  # a group's number is not its identity
    assert (split(ids[order], renamed, strata[order], *shares, seed) == sides[order]).all()
    for group in set(groups.tolist()):
        assert len(set(sides[groups == group].tolist())) == 1


@settings(max_examples=60, deadline=None)
@given(data(), SHARES, SEEDS)
def test_shares_are_met_in_all_and_to_within_one_row_in_every_class(rows, shares, seed):
    ids, groups, strata = rows
    sides = split(ids, groups, strata, *shares, seed)
    for side, share in ((VALIDATION, shares[0]), (TEST, shares[1])):
        for stratum, count in Counter(strata.tolist()).items():
            here = int((sides[strata == stratum] == side).sum())
            assert abs(here - share * count) <= 1 + 1e-9
    for stratum in set(strata.tolist()):
        assert (sides[strata == stratum] == TRAIN).any()


def test_the_totals_are_the_shares_of_all_rows():
    ids = np.arange(1, 1001, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    strata = np.arange(1000) % 77
    sides = split(ids, np.arange(1000), strata, 0.1, 0.2, 0)
    assert Counter(sides.tolist()) == {TRAIN: 700, VALIDATION: 100, TEST: 200}


def test_another_seed_is_another_split():
    ids = np.arange(1, 101, dtype=np.uint64)
    zero, one = (split(ids, np.arange(100), np.zeros(100, np.int64), 0.1, 0.2, seed) for seed in (0, 1))
    assert (zero != one).any()


@settings(max_examples=40, deadline=None)
@given(data(), SEEDS, st.integers(0, 2**64 - 1))
def test_one_row_more_moves_at_most_eight_others(rows, seed, new):
    ids, groups, strata = rows
    if new in ids.tolist():
        return
    before = split(ids, groups, strata, 0.1, 0.2, seed)
    more = (np.append(ids, np.uint64(new)), np.arange(len(ids) + 1), np.append(strata, strata[0]))
    after = split(*more, 0.1, 0.2, seed)[:-1]
    assert (before != after).sum() <= 8  # two borders, each one row of its class and one where a rounding tipped over


def test_a_quota_leaves_every_class_a_row_to_train_on():
    assert quotas(np.array([1, 1, 1, 1, 10]), 0.5, np.array([0, 0, 0, 0, 9])).tolist() == [0, 0, 0, 0, 6]
    assert quotas(np.array([4]), 0.1, np.array([3])).tolist() == [1]
    assert quotas(np.array([2]), 0.1, np.array([1])).tolist() == [0]


def test_groups_too_large_for_a_side_train():
    groups = np.array([0] * 50 + list(range(1, 51)))
    sides = split(np.arange(1, 101, dtype=np.uint64), groups, np.zeros(100, np.int64), 0.1, 0.2, 3)
    assert Counter(sides.tolist()) == {TRAIN: 70, VALIDATION: 10, TEST: 20}
    assert set(sides[:50].tolist()) == {TRAIN}


@given(st.integers(0, 50), st.integers(0, 50), SEEDS)
@settings(max_examples=30, deadline=None)
def test_a_larger_limit_keeps_what_a_smaller_one_kept(few, more, seed):
    ids = np.arange(1, 41, dtype=np.uint64)
    few, more = sorted((max(few, 1), max(more, 1)))
    small, large = drawn(ids, few, seed), drawn(ids, more, seed)
    assert small.sum() == min(few, 40)
    assert (large | ~small).all()
