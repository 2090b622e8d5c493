"""A planted power law comes back, what cannot be told is not told, and the interval covers rows and seeds."""

import numpy as np
import pytest

from burnish.evaluate.curve import learning
from burnish.evaluate.scores import Scoring
from burnish.evaluate.statistics import Seeds

SIZES = (125, 250, 500, 1000)


def law(n, c=0.1, a=0.2, b=0.5):
    return c + a * (np.asarray(n, float) / 1000) ** -b


def simulated(n, seed, wobble=0.0, seeds=1, **own):
    """What trainings score whose error follows a law, give or take `wobble`, on n shared test rows."""
    random = np.random.default_rng(seed)
    hard, drawn = random.random(n), random.multinomial(n, np.full(n, 1 / n), size=150) / n
    points = []
    for size in SIZES:
        error = law(size, **own) + wobble * random.normal(size=seeds if size == SIZES[-1] else 1)
        right = (hard[:, None] > error).astype(float)
        right = np.where(random.random(right.shape) < 0.05, 1 - right, right)
        points.append(Seeds(right.mean(0), drawn @ right))
    return points


def found(points, **own):
    return learning("lora", Scoring("accuracy", (), **own), SIZES, points)


def test_a_planted_law_comes_back():
    told = found(simulated(40_000, 0))
    assert told.gain == pytest.approx(0.9 * 0.2 * (1 - 2**-0.5), abs=0.015)
    assert told.curve[-1][0] == pytest.approx(2000)
    assert all(low <= value <= high for _, value, low, high in told.curve)


@pytest.mark.parametrize(("own", "wobble"), [({}, 0.02), ({"c": 0.02, "a": 0.15, "b": 0.2}, 0.01), ({"a": 0.0}, 0.02)])
@pytest.mark.parametrize("seeds", [1, 3])
def test_the_interval_covers_rows_and_seeds(own, wobble, seeds):
    law_ = {"a": 0.2, "b": 0.5, **own}
    truth, inside = 0.9 * law_["a"] * (1 - 2 ** -law_["b"]), 0
    for seed in range(40):
        told = found(simulated(300, seed, wobble, seeds, **own))
        inside += told.low <= truth <= told.high
    assert inside >= 34  # 90 % less what 40 draws may miss (P < .06)


def test_seeds_that_scatter_make_the_interval_wider():
    calm, wild = simulated(2000, 3), simulated(2000, 3)
    for points, spread in ((calm, 0.0), (wild, 0.06)):
        last = points[-1]
        shift = spread * np.array([-1.0, 0.0, 1.0])
        points[-1] = Seeds(last.values + shift, last.draws + shift)
    narrow, wide = found(calm), found(wild)
    assert wide.high - wide.low > 1.2 * (narrow.high - narrow.low)


def test_the_sentence_of_a_rising_curve():
    told = found(simulated(3000, 1))
    assert told.sure
    assert told.sentence.startswith("Twice the data would bring about +")
    assert " points of accuracy (" in told.sentence
    assert "95 % interval), judging by 4 trainings from 125 to 1,000 training rows" in told.sentence


def test_a_flat_curve_cannot_be_told():
    told = found(simulated(300, 2, a=0.0, c=0.3))
    assert not told.sure
    assert told.low == 0
    assert told.sentence.startswith("Whether more data would help cannot be told")


def test_a_curve_that_gets_worse_cannot_be_told():
    told = found(simulated(3000, 2)[::-1])
    assert not told.sure
    assert np.isfinite([told.gain, told.high, *(x for row in told.curve for x in row)]).all()


def test_an_error_falls():
    random = np.random.default_rng(0)
    values = 3 * law(SIZES)
    draws = values * (1 + 0.02 * random.normal(size=(200, 1)) + 0.01 * random.normal(size=(200, 4)))
    points = [Seeds(values[i : i + 1], draws[:, i : i + 1]) for i in range(4)]
    told = learning("lora", Scoring("rmse", ()), SIZES, points)
    assert told.sure
    assert told.low <= 3 * 0.2 * (1 - 2**-0.5) <= told.high
    assert "−" in told.sentence
