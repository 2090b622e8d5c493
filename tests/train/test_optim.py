"""The rate of every step as a table, and each optimizer against its formula in double precision."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from burnish.task import Train
from burnish.train import optim

TABLES = [  # 6 steps, peak 1, floor 0.1; (0.55 = the mean of peak and floor)
    ("constant", 0, [1, 1, 1, 1, 1, 1]),
    ("constant", 3, [1 / 3, 2 / 3, 1, 1, 1, 1]),
    ("linear", 0, [0.85, 0.7, 0.55, 0.4, 0.25, 0.1]),
    ("linear", 2, [0.5, 1, 0.775, 0.55, 0.325, 0.1]),
    ("cosine", 0, [0.9397114, 0.775, 0.55, 0.325, 0.1602886, 0.1]),
    ("cosine", 2, [0.5, 1, 0.8681981, 0.55, 0.2318019, 0.1]),
]


@pytest.mark.parametrize(("schedule", "warmup", "table"), TABLES)
def test_the_rate_of_every_step(schedule, warmup, table):
    told = Train(schedule=schedule, warmup=warmup, floor=0.1)
    assert [optim.rate(step, 6, told, 1.0) for step in range(1, 7)] == pytest.approx(table, abs=1e-7)
    assert [optim.rate(step, 6, told, 3e-4) for step in range(1, 7)] == pytest.approx(3e-4 * np.array(table), abs=1e-10)


@pytest.mark.parametrize(
    ("warmup", "steps", "count"), [(0.05, 100, 5), (0.05, 6, 0), (0.5, 7, 4), (1, 10, 1), (3, 2, 2), (0, 9, 0)]
)
def test_warmup_is_a_share_below_one_and_a_count_from_one(warmup, steps, count):
    assert optim.warmup_steps(steps, Train(warmup=warmup)) == count


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 300),
    st.floats(0, 20),
    st.sampled_from(["linear", "cosine", "constant"]),
    st.floats(0, 1),
)
def test_the_rate_rises_to_the_peak_and_falls_to_the_floor(steps, warmup, schedule, floor):
    told = Train(schedule=schedule, warmup=warmup, floor=floor)
    rates = [optim.rate(step, steps, told, 2.0) for step in range(1, steps + 1)]
    rising = optim.warmup_steps(steps, told)
    assert all(0 <= rate <= 2.0 + 1e-12 for rate in rates)
    assert rates[:rising] == sorted(rates[:rising])
    assert rates[rising:] == sorted(rates[rising:], reverse=True)
    if rising:
        assert rates[0] == pytest.approx(2.0 / rising)
    if rising < steps:
        assert rates[-1] == pytest.approx(2.0 if schedule == "constant" else 2.0 * floor)


def parameters() -> dict[str, nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    shapes = {"layer.weight": (4, 3), "layer.bias": (4,), "norm.weight": (3,), "embed.weight": (5, 3)}
    return {name: nn.Parameter(torch.randn(shape, generator=draw)) for name, shape in shapes.items()}


def by_hand(kind, w, g, state, rate, decay, betas, step):
    """One update in double precision.  Kingma & Ba 2014, algorithm 1; Loshchilov & Hutter 2019, algorithm 2; SGD
    with momentum as torch has it (no dampening: the buffer starts as the gradient)."""
    if kind != "adamw":
        g = g + decay * w
    if kind == "sgd":
        state["b"] = g if step == 1 else betas[0] * state["b"] + g
        return w - rate * state["b"]
    state["m"] = betas[0] * state.get("m", 0) + (1 - betas[0]) * g
    state["v"] = betas[1] * state.get("v", 0) + (1 - betas[1]) * g * g
    m, v = state["m"] / (1 - betas[0] ** step), state["v"] / (1 - betas[1] ** step)
    shrunk = w * (1 - rate * decay) if kind == "adamw" else w
    return shrunk - rate * m / (np.sqrt(v) + 1e-8)


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("l1", [0.0, 0.05])
def test_twenty_steps_equal_the_formula(kind, decay, l1):
    """Decay and L1 act on the two matrices and leave the bias and the norm alone."""
    told = Train(optimizer=kind, weight_decay=decay, l1=l1, betas=[0.8, 0.95], schedule="linear", warmup=4)
    params = parameters()
    hand = {name: value.detach().double().numpy().copy() for name, value in params.items()}
    states = {name: {} for name in hand}
    optimizer = optim.build(params, told)
    draw = np.random.default_rng(1)
    for step in range(1, 21):
        rate = optim.rate(step, 20, told, 0.02)
        for group in optimizer.param_groups:
            group["lr"] = rate
        for name, value in params.items():
            gradient = draw.normal(size=value.shape).astype(np.float32)
            value.grad = torch.from_numpy(gradient.copy())
            matrix = value.ndim == 2
            pulled = gradient.astype(float) + (l1 * np.sign(hand[name]) if matrix else 0)
            own = decay if matrix else 0
            hand[name] = by_hand(kind, hand[name], pulled, states[name], rate, own, (0.8, 0.95), step)
        if l1:
            optim.add_l1(params, l1)
        optimizer.step()
    for name, value in params.items():
        np.testing.assert_allclose(value.detach().numpy(), hand[name], rtol=1e-6, atol=1e-6)


def test_only_matrices_decay():
    groups = optim.build(parameters(), Train(weight_decay=0.3)).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(2, 0.3), (2, 0.0)]
    only_matrices = {name: value for name, value in parameters().items() if value.ndim == 2}
    assert len(optim.build(only_matrices, Train()).param_groups) == 1


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_its_state_goes_to_tensors_and_back(kind, momentum):
    """Three steps, then three more from restored tensors: bit for bit the same as six."""
    told = Train(optimizer=kind, betas=[momentum, 0.99])

    def step(params, optimizer, n):
        for value in params.values():
            value.grad = torch.full_like(value, 0.1 * n) * value.detach()
        optimizer.step()

    first = parameters()
    optimizer = optim.build(first, told)
    for n in range(1, 4):
        step(first, optimizer, n)
    second = {name: nn.Parameter(value.detach().clone()) for name, value in first.items()}
    again = optim.build(second, told)
    optim.restore(again, second, optim.state_tensors(optimizer, first))
    for n in range(4, 7):
        step(first, optimizer, n)
        step(second, again, n)
    assert all(torch.equal(first[name], second[name]) for name in first)
