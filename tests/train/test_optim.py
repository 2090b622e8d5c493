"""The rate of every step as a table, and each optimizer against its formula in double precision."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from burnish.errors import MissingExtra
from burnish.task import Train
from burnish.train import checkpoint, optim

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
            optim.add_l1(optim.Masters(nn.Module(), params, torch.float32), l1)
        optimizer.step()
    for name, value in params.items():
        np.testing.assert_allclose(value.detach().numpy(), hand[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw", "adafactor"])
def test_a_weight_may_get_its_first_gradient_late(kind):
    """An expert that no row went to, a layer that was skipped: the others move on, and it begins when it is asked."""
    together, alone = parameters(), {"layer.weight": parameters()["layer.weight"]}
    for params, steps in ((together, (1, 2)), (alone, (2,))):
        optimizer = optim.build(params, Train(optimizer=kind, weight_decay=0.0))
        for step in steps:
            for name, value in params.items():
                value.grad = None if step == 1 and name == "layer.weight" else torch.ones_like(value)
            optimizer.step()
    torch.testing.assert_close(together["layer.weight"], alone["layer.weight"], rtol=1e-6, atol=1e-6)


def test_only_matrices_decay():
    groups = optim.build(parameters(), Train(weight_decay=0.3)).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(2, 0.3), (2, 0.0)]
    only_matrices = {name: value for name, value in parameters().items() if value.ndim == 2}
    assert len(optim.build(only_matrices, Train()).param_groups) == 1


EVERY = ("sgd", "adam", "adamw", "adafactor", "adamw-8bit")


def wide() -> dict[str, nn.Parameter]:
    """Two matrices and a vector; one matrix is large enough for 8-bit state."""
    draw = torch.Generator().manual_seed(0)
    shapes = {"layer.weight": (128, 96), "small.weight": (5, 3), "norm.weight": (128,)}
    return {name: nn.Parameter(torch.randn(shape, generator=draw)) for name, shape in shapes.items()}


def needs(kind):
    if kind == "adamw-8bit":
        pytest.importorskip("bitsandbytes", reason="the extra 8bit is not installed")


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_its_state_goes_to_tensors_and_back(kind, momentum, tmp_path):
    """Three steps, then three more from a checkpoint: bit for bit the same as six."""
    needs(kind)
    told = Train(optimizer=kind, betas=[momentum, 0.99])

    def step(params, optimizer, n):
        for value in params.values():
            value.grad = torch.full_like(value, 0.1 * n) * value.detach()
        optimizer.step()

    first = wide()
    optimizer = optim.build(first, told)
    for n in range(1, 4):
        step(first, optimizer, n)
    second = {name: nn.Parameter(value.detach().clone()) for name, value in first.items()}
    again = optim.build(second, told)
    checkpoint.save(tmp_path, 3, {"optimizer": optim.state_tensors(optimizer, first)}, {}, {})
    optim.restore(again, second, checkpoint.newest(tmp_path).stream("optimizer"))
    for n in range(4, 7):
        step(first, optimizer, n)
        step(second, again, n)
    assert all(torch.equal(first[name], second[name]) for name in first)


def state_bytes(kind):
    params = wide()
    optimizer = optim.build(params, Train(optimizer=kind))
    for value in params.values():
        value.grad = torch.ones_like(value)
    optimizer.step()
    told = optim.state_tensors(optimizer, params)
    return sum(item.nbytes for key, item in told.items() if key.startswith("layer.weight|"))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("sgd", 128 * 96 * 4),  # momentum
        ("adam", 128 * 96 * 8 + 4),  # two moments, a count
        ("adamw", 128 * 96 * 8 + 4),
        ("adafactor", (128 + 96) * 4 + 4),  # a row and a column
        ("adamw-8bit", 128 * 96 * 2 + 2 * (128 * 96 // 256) * 4 + 2 * 256 * 4 + 8),  # codes, scale a block, code books
    ],
)
def test_its_state_takes_the_memory_it_should(kind, expected):
    needs(kind)
    assert state_bytes(kind) == expected


@pytest.mark.parametrize("kind", EVERY)
def test_a_loss_falls(kind):
    """Least squares on 200 rows, at AdamW's learning rate for all that scale their steps."""
    needs(kind)
    draw = torch.Generator().manual_seed(1)
    inputs, wanted = torch.randn(200, 96, generator=draw), torch.randn(200, 128, generator=draw)
    params = {"w": nn.Parameter(torch.zeros(128, 96))}
    optimizer = optim.build(params, Train(optimizer=kind, weight_decay=0.0))
    for group in optimizer.param_groups:
        group["lr"] = 0.3 if kind == "sgd" else 0.01
    losses = []
    for _ in range(40):
        loss = (nn.functional.linear(inputs, params["w"]) - wanted).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    best = (wanted - inputs @ torch.linalg.lstsq(inputs, wanted).solution).pow(2).mean().item()
    assert losses[-1] - best < 0.25 * (losses[0] - best)


def test_adafactor_equals_its_formula():
    """Shazeer & Stern 2018, algorithm 4 without momentum and relative step size, in double precision."""
    params, eps = {"w": nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))}, 2.0**-23
    hand = params["w"].detach().double().numpy().copy()
    optimizer = optim.build(params, Train(optimizer="adafactor", weight_decay=0.1))
    rows, columns, draw = np.zeros((4, 1)), np.zeros((1, 3)), np.random.default_rng(2)
    for step in range(1, 11):
        gradient = draw.normal(size=(4, 3)).astype(np.float32)
        params["w"].grad = torch.from_numpy(gradient.copy())
        for group in optimizer.param_groups:
            group["lr"] = 0.02
        optimizer.step()
        square, kept = gradient.astype(float) ** 2, step**-0.8
        rows += kept * (square.mean(1, keepdims=True) - rows)
        columns += kept * (square.mean(0, keepdims=True) - columns)
        update = gradient / np.sqrt(np.maximum(rows @ columns / max(rows.mean(), eps), eps * eps))
        update /= max(1.0, np.sqrt((update**2).mean()))
        rate = min(0.02, step**-0.5) * max(1.0, np.sqrt((hand**2).mean()))
        hand = hand * (1 - 0.02 * 0.1) - rate * update
    np.testing.assert_allclose(params["w"].detach().numpy(), hand, rtol=1e-4, atol=1e-5)


def test_without_bitsandbytes_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtra, match="8bit"):
        optim.build(parameters(), Train(optimizer="adamw-8bit"))


@pytest.mark.parametrize(
    ("wanted", "bf16", "amx", "told"),
    [
        ("fp32", True, True, "fp32"),
        ("bf16", False, False, "bf16"),
        ("auto", True, False, "bf16"),
        ("auto", False, True, "bf16"),
        ("auto", False, False, "fp32"),
    ],
)
def test_auto_is_bf16_where_the_machine_has_it(wanted, bf16, amx, told, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert optim.precision(wanted, torch.device("cpu")) == told


@pytest.mark.parametrize(("capability", "told"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_auto_is_bf16_on_cuda_from_ampere_on(capability, told, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert optim.precision("auto", torch.device("cuda")) == told
