"""A planted power law comes back, and what cannot be told is not told."""

import numpy as np
import pytest

from burnish.evaluate.curve import fit, learning

SIZES = (125, 250, 500, 1000)


def law(n, c=0.1, a=0.2, b=0.5):
    return c + a * (np.asarray(n, float) / 1000) ** -b


def test_a_planted_law_comes_back():
    c, a, b = fit(SIZES, law(SIZES)[None])
    assert (c[0], a[0], b[0]) == pytest.approx((0.1, 0.2, 0.5), abs=0.02)


def simulated(n, seed, sizes=SIZES, **own):
    """Values and draws of an accuracy whose error follows a law, on n shared test rows."""
    random = np.random.default_rng(seed)
    hard = random.random(n)
    right = np.stack([hard > law(size, **own) for size in sizes], axis=1).astype(float)
    right = np.where(random.random(right.shape) < 0.05, 1 - right, right)
    draws = np.array([right[random.integers(0, n, n)].mean(0) for _ in range(300)])
    return right.mean(0), draws


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    truth, inside = 0.9 * 0.2 * (1 - 2**-0.5), 0
    for seed in range(60):
        values, draws = simulated(800, seed)
        found = learning("lora", "accuracy", SIZES, values, draws, True, 1.0)
        inside += found.low <= truth <= found.high
        assert found.low <= found.high
    assert inside >= 51  # 95 % but for what the bounds on c, a and b push aside


def test_the_sentence_of_a_rising_curve():
    values, draws = simulated(3000, 1)
    found = learning("lora", "accuracy", SIZES, values, draws, True, 1.0, points=True)
    assert found.sure
    assert found.sentence.startswith("Twice the data would bring about +")
    assert " points of accuracy (" in found.sentence
    assert "from 125 to 1,000 training rows" in found.sentence
    assert found.curve[-1][0] == pytest.approx(2000)


def test_a_flat_curve_cannot_be_told():
    values, draws = simulated(300, 2, a=0.0, c=0.3)
    found = learning("lora", "accuracy", SIZES, values, draws, True, 1.0, points=True)
    assert not found.sure
    assert found.sentence.startswith("Whether more data would help cannot be told")


def test_an_error_falls():
    random = np.random.default_rng(0)
    values = 3 * law(SIZES)
    draws = values * (1 + 0.02 * random.normal(size=(200, 1)) + 0.01 * random.normal(size=(200, 4)))
    found = learning("lora", "rmse", SIZES, values, draws, False, 0.0)
    assert found.sure
    assert found.gain == pytest.approx(3 * 0.2 * (1 - 2**-0.5), rel=0.2)
    assert "−" in found.sentence
