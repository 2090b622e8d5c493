"""What a run will need: arithmetic by hand, the choice of a micro-batch, remedies that work."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish import kinds
from burnish.train import costs, estimate, standard
from burnish.train.costs import FIT, Fit
from burnish.train.terms import Linear, Machine, Rows, Shape, Side, Work

RATES = {(64, 64): (1e10, 2e10, 5e9)}
MACHINE = Machine(1e12, 3e8, 1e12, RATES)
PLAIN = Fit(**{item.name: 0.0 for item in fields(Fit)})


def rows(*lengths: int) -> Rows:
    told = np.array(lengths, np.int64)
    return Rows(told, np.zeros_like(told), told // 2)


def work(lengths: tuple[int, ...] = (100, 200, 300, 60), blocks: int = 4, wide: int = 64, **own: Any) -> Work:
    """A full tuning of a model of square matrices: four to a block, and a head over 1,000 words."""
    linears = (Linear(wide, wide, 4 * blocks, trained=True), Linear(wide, 1000, at="supervised", trained=True))
    size = blocks * 4 * wide * wide + 1000 * wide
    side = Side(8.0 * wide * blocks, 8.0 * wide, float(wide * blocks), 8.0 * wide * blocks, 4 * blocks, wide * blocks)
    shape = Shape(size, size, 0, 4 * size, linears, side, calls=8 * blocks)
    told = rows(*lengths)
    return replace(Work(shape, told, told, 2, 10, 2, 2, 5 * int(told.ids.sum())), **own)


# --- arithmetic ----------------------------------------------------------------------------------------------


def test_seconds_by_hand() -> None:
    one = replace(work((100,), 1), batch_size=1, steps=1, validation=rows())
    bare = replace(one, shape=replace(one.shape, linears=(Linear(64, 64, trained=True),), calls=0))
    told = costs.seconds(bare, 1024, False, MACHINE, replace(PLAIN, arithmetic=1.0))
    flops = 2 * 64 * 64 * 100
    assert told["step"] == pytest.approx(flops / 1e10 + flops / 2e10 + flops / 5e9)
    again = costs.seconds(bare, 1024, True, MACHINE, replace(PLAIN, arithmetic=1.0))
    assert again["step"] - told["step"] == pytest.approx(flops / 1e10)  # recomputation is one more forward
    frozen = Linear(64, 64, trained=False, rank=4)
    low = costs.seconds(
        replace(bare, shape=replace(bare.shape, linears=(frozen,))),
        1024,
        False,
        MACHINE,
        replace(PLAIN, arithmetic=1.0),
    )
    more = 2 * 4 * 128 * 100
    assert low["step"] == pytest.approx((flops + more) / 1e10 + (flops + more) / 2e10 + more / 5e9)


def test_memory_by_hand() -> None:
    one = work(validation=rows(10))
    told = costs.memory(one, 1024, False, MACHINE, replace(PLAIN, kept=1.0))
    size = one.shape.trained
    assert told["weights"] == 4 * size
    assert told["gradients"] == 4 * size
    assert "best weights" not in told  # on disk; but of a model that is cut over processes
    assert costs.memory(replace(one, ranks=2), 1024, False, MACHINE)["best weights"] == 2 * size
    assert told["optimizer"] == 8 * size
    assert told["process"] == 3e8
    assert told["activations"] == 4 * one.shape.ids.kept * 500  # the two longest rows
    half = costs.memory(replace(one, element=2), 1024, False, MACHINE, replace(PLAIN, kept=1.0))
    assert half["weights"] == 4 * size  # rounded ones and the bits that they lack
    assert half["gradients"] == 4 * size
    assert half["activations"] == told["activations"] / 2
    assert costs.memory(replace(one, optimizer="adamw-8bit"), 1024, False, MACHINE)["optimizer"] == 2 * size


def test_a_frozen_base_takes_the_bytes_of_its_arithmetic() -> None:
    """It is read so, piece by piece: of no tensor are there ever four bytes a number."""
    one = work(element=2)
    told = costs.memory(replace(one, shape=replace(one.shape, trained=0)), 1024, False, MACHINE)
    assert told["weights"] == 2 * one.shape.parameters


def test_a_quantised_base_lies_in_four_bits() -> None:
    one = work(element=2)
    frozen = replace(one, shape=replace(one.shape, trained=0))
    small = replace(frozen, shape=replace(frozen.shape, quantised=frozen.shape.parameters))
    told = [costs.memory(item, 1024, False, MACHINE)["weights"] for item in (frozen, small)]
    assert told[1] / told[0] == pytest.approx(0.258, abs=1e-3)


@pytest.mark.parametrize("name", [item.name for item in fields(Fit)])
def test_every_constant_moves_a_figure(name: str) -> None:
    one = work(element=2, blocks=40)
    changed = replace(FIT, **{name: getattr(FIT, name) * 2 + 1})
    machines = [replace(MACHINE, memory=4e8, pace=pace) for pace in (1.0, 1.1)]
    told = [[estimate.estimate(one, machine, fit=fit).to_json() for machine in machines] for fit in (FIT, changed)]
    head = Linear(10**4, 10**5, at="supervised")  # where reading the weights is the peak
    files = replace(one, shape=replace(one.shape, parameters=10**9, trained=0, linears=(*one.shape.linears, head)))
    large = replace(one, shape=replace(one.shape, trained=10**9))  # where the optimizer's step is
    more = [
        [costs.memory(item, 1024, False, MACHINE, fit)["peak"] for item in (files, large)] for fit in (FIT, changed)
    ]
    assert told[0] != told[1] or more[0] != more[1]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 1000).map(lambda length: 2 * length), min_size=1, max_size=30),
    st.integers(1, 40),
    st.sampled_from([128, 512, 2048, 8192]),
    st.booleans(),
)
def test_more_never_needs_less(lengths: list[int], blocks: int, cut: int, recompute: bool) -> None:
    one = work(tuple(lengths), blocks, element=2)

    def needs(item: Work, size: int = cut, again: bool = recompute) -> tuple[float, float]:
        same = replace(FIT, kernel=0.0, compiling=0.0)  # fewer micro-batches have fewer shapes to compile for
        peak = costs.memory(item, size, again, MACHINE, same)["peak"]
        return peak, costs.seconds(item, size, again, MACHINE, same)["all"]

    peak, took = needs(one)
    deeper, longer = needs(work(tuple(lengths), blocks + 1, element=2)), needs(replace(one, steps=one.steps + 1))
    assert deeper[0] > peak
    assert deeper[1] > took
    assert longer[1] > took
    assert needs(one, cut * 2)[0] >= peak - 1
    assert needs(work(tuple(2 * length for length in lengths), blocks, element=2))[0] >= peak - 1e-3 * peak
    kept, saved = (needs(one, cut, again) for again in (False, True))
    assert saved[1] >= kept[1]
    assert saved[0] <= kept[0] or blocks < 4


@pytest.mark.parametrize("rung", kinds.names("adapters"))
def test_every_trained_rung_is_weighed_without_a_folder(rung: str) -> None:
    assert costs.memory(standard.work(0, rung, 2), 512, True, MACHINE)["peak"] > MACHINE.resident


# --- the choice and the remedies -------------------------------------------------------------------------------


def test_the_micro_batch_does_not_hang_on_a_stop_watch() -> None:
    slow = replace(MACHINE, products={(64, 64): (1.0, 1.0, 1.0)}, stream=1.0, call=1.0)
    assert estimate.choose(work(), MACHINE) == estimate.choose(work(), slow)
    large, small = (
        estimate.choose(work(blocks=1, wide=16), MACHINE),
        estimate.choose(work(blocks=30, wide=800), MACHINE),
    )
    assert large[0] > small[0] == estimate.LEAST  # calls weigh more where there is little to multiply


def test_less_memory_means_smaller_micro_batches_and_then_recomputation() -> None:
    one = work((400,) * 40, 30, batch_size=40)
    seen = []
    for room in np.linspace(1.2e9, 4.2e8, 30):
        told = estimate.choose(one, replace(MACHINE, memory=float(room)))
        if told not in seen:
            seen.append(told)
    cuts = [cut for cut, again in seen if not again]
    assert cuts == sorted(cuts, reverse=True)
    assert len(cuts) > 1
    assert [again for _, again in seen] == sorted(again for _, again in seen)
    assert seen[-1][1]


def test_what_the_user_sets_is_taken() -> None:
    assert estimate.choose(work(micro_tokens=333), MACHINE)[0] == 333


def limited(room: float, **own: Any) -> tuple[Work, Machine]:
    one = work((2000, 1500, *(100 for _ in range(30))), 30, batch_size=8, **own)
    return one, replace(MACHINE, memory=room)


@pytest.mark.parametrize("splits", [False, True])
def test_every_remedy_makes_it_fit(splits: bool) -> None:
    one, machine = limited(5.9e8, micro_tokens=8192, recomputes=False, splits=splits)
    light = replace(one, shape=replace(one.shape, trained=1000), micro_tokens=0)
    light = replace(light, shape=replace(light.shape, ids=replace(light.shape.ids, kept=10.0, largest=1.0)))
    told = estimate.estimate(one, machine, {"lora": light})
    assert told.verdict == "does not fit"
    kinds_ = {"--rung" if item.rung else item.set[0].partition("=")[0]: item for item in told.remedies}
    assert set(kinds_) >= {"--rung", "data.max_length"}
    for item in told.remedies:
        changed = light if item.rung else one
        for override in item.set:
            name, _, value = override.partition("=")
            if name == "data.max_length":
                limit = int(value)
                over = int((one.train.ids > limit).sum())
                assert item.rows_cut == over
                assert f"{over:,} of 32" in item.text
                lengths = [
                    min(limit, length - at) if splits else length
                    for length in one.train.ids.tolist()
                    for at in (range(0, length, limit) if splits else [0])
                    if splits or length <= limit
                ]
                changed = replace(changed, train=rows(*lengths), validation=rows(*lengths))
        assert estimate.estimate(changed, machine).verdict == "fits"


def test_a_budget_that_is_too_large_is_left_to_burnish() -> None:
    one = work((100,) * 300, 30, batch_size=300, micro_tokens=30000, recomputes=False)
    room = 1.2 * costs.memory(replace(one, micro_tokens=0), 128, False, MACHINE)["peak"]
    machine = replace(MACHINE, memory=room)
    told = estimate.estimate(one, machine)
    assert told.verdict == "does not fit"
    assert told.remedies[0].set == ("train.micro_tokens=0",)
    assert estimate.estimate(replace(one, micro_tokens=0), machine).verdict == "fits"


def test_where_nothing_helps_nothing_is_promised() -> None:
    one, machine = limited(1e6)
    assert estimate.estimate(one, machine).verdict == "does not fit"
    assert estimate.remedies(one, machine, {}) == ()


def test_tight_lies_between() -> None:
    peak = costs.memory(work(micro_tokens=512), 512, True, MACHINE)["peak"]
    told = [
        estimate.estimate(work(micro_tokens=512), replace(MACHINE, memory=peak * share)).verdict
        for share in (0.99, 1.01, 1.2)
    ]
    assert told == ["does not fit", "tight", "fits"]


def test_too_little_disk_does_not_fit_either() -> None:
    assert estimate.estimate(work(), replace(MACHINE, disk=1e3)).verdict == "does not fit"


def test_a_larger_machine_tunes_a_larger_base() -> None:
    def made(number: int, rung: str, element: int) -> Work:
        return work(blocks=number + 1, wide=200 * (number + 1), element=element)

    rooms = [1e6, 2e9, 1e11, 1e13]
    found = [standard.largest("full", replace(MACHINE, memory=room), 2, made) for room in rooms]
    sizes = [one.parameters for one in found]
    assert sizes == sorted(sizes)
    assert (found[0].name, found[-1].name) == ("", standard.SIZES[-1][0])
    assert all(one.peak * (1 + FIT.memory) <= room for one, room in zip(found, rooms, strict=True))
