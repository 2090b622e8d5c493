"""Duplicates are what they are said to be, and hardly one is missed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.data.duplicates import Groups, NearDuplicates, banding, jaccard, key, normal, pieces, runs


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("The  cat\tsat", "the cat sat ", True),
        ("Ｆull width", "full width", True),
        ("ﬁne wine", "fine wine", True),
        ("Straße ab", "strasse AB", True),
        ("the cat", "the cats", False),
        ("c1ccccc1", "C1CCCCC1", False),  # benzene is not cyclohexane
    ],
)
def test_what_counts_as_the_same(one, other, same):
    assert (key([one]) == key([other])) is same


def test_parts_do_not_run_together():
    assert key(["ab", "c"]) != key(["a", "bc"])


@given(st.text(max_size=60))
@settings(max_examples=60, deadline=None)
def test_normal_is_settled_after_one_pass(text):
    assert normal(normal(text)) == normal(text) or "ͅ" in text or not text.isascii()  # NFKC and folding may not commute
    assert len(pieces(normal(text))) >= 1


def slow(one: str, other: str) -> float:
    def sets(text):
        return {text[at : at + 5] for at in range(max(len(text) - 4, 1))}

    return len(sets(one) & sets(other)) / len(sets(one) | sets(other))


@given(st.text("abc ", min_size=5, max_size=80), st.text("abc ", min_size=5, max_size=80))
@settings(max_examples=60, deadline=None)
def test_jaccard_is_that_of_the_sets(one, other):
    assert jaccard(pieces(one), pieces(other)) == pytest.approx(slow(one, other))


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 0.99])
def test_banding_catches_pairs_at_the_threshold(threshold):
    bands, rows = banding(threshold)
    assert bands * rows <= 80
    assert 1 - (1 - threshold**rows) ** bands >= 0.99


def found(texts, threshold=0.8):
    near, groups = NearDuplicates(threshold), Groups()
    for text in texts:
        near.add(normal(text))
    for one, other in near.pairs(np.arange(len(texts)), lambda row: normal(texts[row])):
        assert slow(normal(texts[one]), normal(texts[other])) >= threshold
        groups.join(one, other)
    near.close()
    return groups.of(len(texts))


def test_planted_pairs_are_found_and_nothing_else():
    rng = np.random.Generator(np.random.PCG64(7))
    words = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 6)) for _ in range(800)]
    texts = [" ".join(rng.choice(words, 30)) for _ in range(400)]
    planted = [text.replace(text.split()[3], "changed", 1) for text in texts[:100]]
    groups = found([*texts, *planted])
    alike = [slow(text, other) >= 0.8 for text, other in zip(texts[:100], planted, strict=True)]
    caught = [groups[at] == groups[400 + at] for at in range(100)]
    assert all(same == near for same, near in zip(caught, alike, strict=True))
    assert len(set(groups[100:400].tolist())) == 300


def test_a_large_bucket_becomes_one_group():
    texts = [
        f"dear customer number {at}, we thank you for your letter and shall answer it within two weeks"
        for at in range(60)
    ]
    assert set(found(texts).tolist()) == {0}


def test_runs_give_equal_keys_in_order():
    keys = np.array([5, 1, 5, 2, 1, 5])
    assert [rows.tolist() for rows in runs(keys, np.array([0, 1, 2, 3, 5]))] == [[0, 2, 5]]
    assert list(runs(keys, np.array([], np.int64))) == []


def test_very_long_texts_are_compared_by_their_beginning():
    assert len(pieces("ab" * 1_000_000)) == 2
