"""Which rows a step holds, how they are cut and padded: pure in (seed, step), and nothing is lost."""

from collections import Counter

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.tokens.batch import Batch, Batches, by_budget, collate
from burnish.tokens.rows import Tokens

lengths = st.lists(st.integers(1, 30), min_size=1, max_size=40)


def rows_of(sizes: list[int]) -> list[Tokens]:
    """Rows whose first id is their number."""
    draw = np.random.default_rng(0)
    made = []
    for i, size in enumerate(sizes):
        ids = np.concatenate([[i], draw.integers(100, 200, size - 1)]).astype(np.int32)
        made.append(Tokens(ids, draw.random(size).astype(np.float32), f"row{i}", f"f:{i}"))
    return made


def batches_of(sizes: list[int], batch: int = 4, micro: int = 64, seed: int = 1) -> Batches:
    return Batches(rows_of(sizes), batch, micro, seed, pad=0)


def names(step: list[Batch]) -> list[str]:
    return [name for batch in step for name in batch.examples]


@settings(max_examples=40, deadline=None)
@given(sizes=lengths, batch=st.integers(1, 9), seed=st.integers(0, 2**32), steps=st.lists(st.integers(1, 30)))
def test_a_step_is_the_same_whatever_was_run_before(sizes: list[int], batch: int, seed: int, steps: list[int]) -> None:
    one, other = batches_of(sizes, batch, seed=seed), batches_of(sizes, batch, seed=seed)
    for step in steps:
        one.step(step)
    for step in (1, 2, 17):
        for left, right in zip(one.step(step), other.step(step), strict=True):
            assert torch.equal(left.ids, right.ids)
            assert torch.equal(left.weights, right.weights)
            assert left.where == right.where
    going = other(start=3)
    assert [names(next(going)) for _ in range(3)] == [names(one.step(step)) for step in (3, 4, 5)]


@settings(max_examples=40, deadline=None)
@given(sizes=lengths, batch=st.integers(1, 9), seed=st.integers(0, 1000))
def test_an_epoch_holds_every_row_once(sizes: list[int], batch: int, seed: int) -> None:
    batches = batches_of(sizes, batch, seed=seed)
    every = sorted(row.example for row in batches.rows)
    orders = []
    for epoch in range(3):
        steps = range(epoch * batches.per_epoch + 1, (epoch + 1) * batches.per_epoch + 1)
        drawn = [name for step in steps for name in names(batches.step(step))]
        assert sorted(drawn) == every
        assert {epoch} == {at for step in steps for at, _ in batches.drawn(step)}
        orders.append([i for step in steps for _, i in batches.drawn(step)])
    if len(sizes) > 8:
        assert orders[0] != orders[1] != orders[2]
        assert batches_of(sizes, batch, seed=seed + 1).drawn(1) != batches.drawn(1) or batch == 1
    assert sorted(name for batch in batches.once() for name in batch.examples) == every


@settings(max_examples=40, deadline=None)
@given(sizes=lengths, micro=st.integers(1, 200), step=st.integers(1, 9))
def test_cutting_a_step_otherwise_moves_no_row_and_no_weight(sizes: list[int], micro: int, step: int) -> None:
    whole, cut = batches_of(sizes, 8, micro=10**6).step(step), batches_of(sizes, 8, micro=micro).step(step)
    assert len(whole) == 1
    assert Counter(names(whole)) == Counter(names(cut))
    seen = {
        (batch.examples[i], tuple(batch.ids[i][batch.document[i] > 0].tolist()))
        for batch in cut
        for i in range(len(batch.ids))
    }
    row = whole[0]
    assert seen == {(row.examples[i], tuple(row.ids[i][row.document[i] > 0].tolist())) for i in range(len(row.ids))}
    total = sum(float(batch.weights.double().sum()) for batch in cut)
    assert abs(total - float(row.weights.double().sum())) < 1e-9


@settings(max_examples=60, deadline=None)
@given(sizes=lengths, budget=st.integers(1, 120))
def test_groups_keep_to_the_budget_and_lose_no_row(sizes: list[int], budget: int) -> None:
    groups = by_budget(rows_of(sizes), budget)
    assert sorted(i for group in groups for i in group) == list(range(len(sizes)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(sizes[i] for i in group) <= budget


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=6), left=st.booleans())
def test_padding_stands_on_one_side_and_changes_nothing(sizes: list[int], left: bool) -> None:
    rows = rows_of(sizes)
    batch = collate(rows, pad=7, left=left)
    longest = max(sizes)
    assert batch.ids.shape == (len(sizes), longest)
    assert batch.padded == (min(sizes) != longest)
    for i, row in enumerate(rows):
        real = batch.document[i] > 0
        assert batch.ids[i][real].tolist() == row.ids.tolist()
        assert torch.equal(batch.weights[i][real], torch.from_numpy(row.weights))
        assert batch.positions[i][real].tolist() == list(range(len(row.ids)))
        assert bool(real[-1 if left else 0])
        assert batch.ids[i][~real].tolist() == [7] * (longest - sizes[i])
        assert not batch.weights[i][~real].any()
    assert batch.where == tuple(row.where for row in rows)


def test_sources_targets_and_labels_are_carried() -> None:
    zeros = np.zeros(2, np.float32)
    ids = np.array([1, 2], np.int32)
    rows = [
        Tokens(ids, zeros, "a", "f:1", source=np.array([5, 6, 7], np.int32), label=2, targets=np.array([3, 4])),
        Tokens(ids[:1], zeros[:1], "b", "f:2", source=np.array([8], np.int32), label=0, targets=np.array([9])),
    ]
    batch = collate(rows, pad=0, left=True)
    assert batch.source is not None
    assert batch.source.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.source_document is not None
    assert batch.source_document.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.targets is not None
    assert batch.targets.tolist() == [[3, 4], [0, 9]]
    assert batch.label is not None
    assert batch.label.dtype == torch.int64
    numbers = collate([Tokens(ids, zeros, "a", "f:1", label=0.5)], pad=0).label
    assert numbers is not None
    assert numbers.dtype == torch.float32
    vectors = collate([Tokens(ids, zeros, "a", "f:1", label=np.array([0, 1], np.float32))], pad=0).label
    assert vectors is not None
    assert vectors.shape == (1, 2)


def test_noise_depends_on_seed_epoch_and_row_alone() -> None:
    def noise(row: Tokens, generator: np.random.Generator) -> Tokens:
        return Tokens(row.ids, generator.random(len(row.ids)).astype(np.float32), row.example, row.where)

    def drawn(batch: int, micro: int, seed: int, steps: range) -> dict[str, list[float]]:
        batches = Batches(rows_of([3, 5, 2, 8]), batch, micro, seed, 0, noise)
        made = [item for step in steps for item in batches.step(step)]
        return {
            item.examples[i]: item.weights[i][item.document[i] > 0].tolist()
            for item in made
            for i in range(len(item.ids))
        }

    first = drawn(2, 64, 1, range(1, 3))
    assert first == drawn(4, 5, 1, range(1, 2))  # neither the batch size nor the cut matters
    assert first != drawn(2, 64, 1, range(3, 5))  # the next epoch's noise is other noise
    assert first != drawn(2, 64, 2, range(1, 3))


def test_moving_a_batch_keeps_everything() -> None:
    batch = collate(rows_of([2, 3]), pad=0)
    batch.extras["more"] = torch.ones(2)
    moved = batch.to("cpu")
    assert torch.equal(moved.ids, batch.ids)
    assert moved.where == batch.where
    assert torch.equal(moved.extras["more"], torch.ones(2))
