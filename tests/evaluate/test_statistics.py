"""Intervals cover what they say, tests are wrong as seldom as they say, and published numbers come out."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.evaluate.statistics import (
    Seeds,
    components,
    holm,
    interval,
    mcnemar_exact,
    mcnemar_mid,
    minimum_detectable,
    paired_difference,
    resampled,
    student_quantile,
    student_tail,
    swap_test,
    wilson,
)


def mean(rows):
    return rows[..., 0].mean(-1)


def rmse(rows):
    return np.sqrt((rows[..., 0] ** 2).mean(-1))


def test_wilson_of_published_cases():
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=5e-5)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)


def test_wilson_equals_scipy():
    stats = pytest.importorskip("scipy.stats")
    for k, n in ((0, 5), (3, 7), (150, 172), (7, 7)):
        want = stats.binomtest(k, n).proportion_ci(0.9, method="wilson")
        assert wilson(k, n, 0.9) == pytest.approx((want.low, want.high), abs=1e-12)


def test_wilson_covers_957_at_20_rows_where_wald_covers_876():
    n, p = 20, 0.9
    chance = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    covered = sum(c for k, c in enumerate(chance) if wilson(k, n)[0] <= p <= wilson(k, n)[1])
    assert covered == pytest.approx(0.957, abs=1e-3)


@given(st.integers(0, 30), st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_mcnemar_is_symmetric_and_the_binomial_test(b, c):
    stats = pytest.importorskip("scipy.stats")
    assert mcnemar_exact(b, c) == mcnemar_exact(c, b)
    want = stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert mcnemar_exact(b, c) == pytest.approx(want, rel=1e-9)


def test_mcnemar_of_the_reference_case_and_of_many_rows():
    assert mcnemar_exact(10, 2) == pytest.approx(0.0386, abs=5e-5)
    assert 0 <= mcnemar_exact(4000, 6000) < 1e-80


def test_paired_difference_of_the_published_case():
    """Bentur et al. 2009 as analysed by Fagerland, Lydersen and Laake 2014: square-and-add -0.507 to -0.026."""
    assert paired_difference(1, 1, 7, 12) == pytest.approx((-0.507, -0.026), abs=5e-4)


@given(st.tuples(*[st.integers(0, 20)] * 4).filter(any))
@settings(max_examples=100, deadline=None)
def test_paired_difference_holds_the_difference_and_turns_with_it(cells):
    both, first, second, neither = cells
    low, high = paired_difference(*cells)
    difference = (first - second) / sum(cells)
    assert -1 - 1e-12 <= low <= difference + 1e-12
    assert difference - 1e-12 <= high <= 1 + 1e-12
    assert paired_difference(both, second, first, neither) == pytest.approx((-high, -low))


@pytest.mark.parametrize("shares", [(0.7, 0.15, 0.1, 0.05), (0.9, 0.05, 0.02, 0.03), (0.3, 0.3, 0.2, 0.2)])
def test_paired_difference_covers(shares):
    draws = np.random.default_rng(0).multinomial(60, shares, size=2000)
    limits = [paired_difference(*map(int, row)) for row in draws]
    covered = np.mean([low <= shares[1] - shares[2] <= high for low, high in limits])
    assert 0.935 <= covered <= 0.99  # cautious where few rows differ


def test_holm_of_the_reference_case():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([]) == ()
    assert holm([0.6, 0.9]) == (1.0, 1.0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_holm_keeps_the_order_and_lies_between_p_and_bonferroni(p):
    corrected = holm(p)
    assert all(a <= b <= min(1.0, a * len(p)) + 1e-12 for a, b in zip(p, corrected, strict=True))
    assert sorted(corrected) == [corrected[i] for i in sorted(range(len(p)), key=lambda i: p[i])]


def test_the_same_seed_gives_the_same_draws_for_two_systems():
    rows = np.random.default_rng(0).normal(size=(30, 1))
    a, b = resampled(rows, mean, 50, seed=4), resampled(rows + 2, mean, 50, seed=4)
    assert b - a == pytest.approx(np.full(50, 2.0))
    assert (a != resampled(rows, mean, 50, seed=5)).any()


@pytest.mark.parametrize(("value", "truth", "least"), [(mean, 0.0, 0.92), (rmse, 1.0, 0.90)])
def test_bootstrap_interval_covers(value, truth, least):
    random, covered = np.random.default_rng(1), 0
    for seed in range(300):
        rows = random.normal(size=(60, 1))
        low, high = interval(resampled(rows, value, 200, seed), len(rows))
        covered += low <= truth <= high
    assert least <= covered / 300 <= 0.98


def test_interval_is_wider_for_few_rows_and_for_more_confidence():
    values = np.random.default_rng(0).normal(size=2000)
    widths = [high - low for low, high in (interval(values, n) for n in (10, 30, 1000))]
    assert widths == sorted(widths, reverse=True)
    assert widths[2] == pytest.approx(2 * 1.96, abs=0.3)
    low, high = interval(values, 30, 0.8)
    assert high - low < widths[1]


def test_student_t_of_the_interval_is_near_scipy():
    stats = pytest.importorskip("scipy.stats")
    values = np.linspace(0, 1, 100_001)
    for n in (10, 20, 100):
        tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1))
        assert interval(values, n)[0] == pytest.approx(tail, abs=2e-4)


def test_swap_test_of_equal_and_of_different_systems():
    rows = np.random.default_rng(0).normal(size=(40, 1))
    assert swap_test(rows, rows, mean, 99, 0) == 1.0
    assert swap_test(rows, rows + 1, mean, 99, 0) == pytest.approx(0.01)


def test_swap_test_is_the_exact_sign_flip_test_when_all_swaps_can_be_counted():
    random = np.random.default_rng(2)
    a, b = random.normal(size=(8, 1)), random.normal(0.6, 1, size=(8, 1))
    flips = np.array(np.meshgrid(*[[-1, 1]] * 8)).reshape(8, -1)
    exact = np.mean(np.abs((b - a)[:, 0] @ flips) >= abs((b - a).sum()) - 1e-12)
    assert swap_test(a, b, mean, 4000, 0) == pytest.approx(exact, abs=0.025)


def test_swaps_that_give_the_same_difference_count_half():
    """One row of four differs: every swap leaves the difference as it is, so p is a half and a half."""
    a, b = np.zeros((4, 1)), np.array([[1.0], [0], [0], [0]])
    assert swap_test(a, b, mean, 999, 0) == pytest.approx(0.5, abs=0.002)


def wrong_claims(value, draw, n, simulations, resamples):
    """How often two equally good systems are called different at .05."""
    random = np.random.default_rng(3)
    claims = 0
    for seed in range(simulations):
        shared = draw(random, n)
        a, b = shared + draw(random, n), shared + draw(random, n)
        claims += swap_test(a, b, value, resamples, seed) <= 0.05
    return claims / simulations


def heavy(random, n):
    return random.standard_t(4, size=(n, 1))


def test_swap_test_is_seldom_wrong():
    assert 0.02 <= wrong_claims(mean, heavy, 25, 400, 59) <= 0.085


@pytest.mark.slow
@pytest.mark.parametrize("value", [mean, rmse])
@pytest.mark.parametrize("n", [20, 100])
def test_swap_test_is_wrong_5_percent_of_the_time(value, n):
    assert wrong_claims(value, heavy, n, 2000, 199) == pytest.approx(0.05, abs=0.01)


def test_minimum_detectable_shrinks_with_rows_and_grows_with_disagreement():
    assert minimum_detectable(100, 0.2) > minimum_detectable(400, 0.2)
    assert minimum_detectable(400, 0.1) < minimum_detectable(400, 0.3)
    assert minimum_detectable(0, 0.2) == minimum_detectable(2, 0.2) == 1.0
    assert 0 < minimum_detectable(50, 0.0) <= 0.1


@pytest.mark.parametrize(("n", "share"), [(120, 0.3), (172, 0.2), (1000, 0.1)])
def test_minimum_detectable_is_found_80_percent_of_the_time(n, share):
    least = minimum_detectable(n, share)
    draws = np.random.default_rng(0).multinomial(n, [(share + least) / 2, (share - least) / 2, 1 - share], size=2000)
    found = np.mean([mcnemar_mid(int(b), int(c)) < 0.05 for b, c, _ in draws])
    assert found == pytest.approx(0.8, abs=0.04)


def test_mid_p_of_the_published_case_and_the_share_of_false_claims():
    """Fagerland, Lydersen and Laake 2013, airway data: exact .0703, mid-p .0391."""
    assert mcnemar_mid(1, 7) == pytest.approx(0.0391, abs=5e-5)
    assert mcnemar_mid(4, 4) == mcnemar_mid(0, 0) == 1.0
    draws = np.random.default_rng(1).multinomial(172, [0.15, 0.15, 0.7], size=4000)
    wrong = {test: np.mean([test(int(b), int(c)) < 0.05 for b, c, _ in draws]) for test in (mcnemar_mid, mcnemar_exact)}
    assert wrong[mcnemar_mid] == pytest.approx(0.05, abs=0.012)
    assert wrong[mcnemar_exact] < 0.042


def test_students_t_equals_scipy():
    stats = pytest.importorskip("scipy.stats")
    for freedom in (0.5, 1, 1.7, 2, 5, 40, 1000, 1e5):
        for t in (0.0, 1e-6, 0.5, 2.0, 8.0, 100.0):
            assert student_tail(t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), abs=1e-10)
        assert student_quantile(0.95, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-9)


def answered(random, n, seeds, wobble):
    """Right or wrong (n, seeds) on rows whose difficulty is drawn anew, and their shares on resamples."""
    chance = random.beta(4, 1, size=(n, 1)) + wobble * random.normal(size=(1, seeds))
    right = (random.random((n, seeds)) < chance).astype(float)
    return right, random.multinomial(n, np.full(n, 1 / n), size=100) / n @ right


@pytest.mark.parametrize(("seeds", "wobble"), [(2, 0.0), (3, 0.0), (3, 0.04), (5, 0.04)])
def test_an_interval_over_seeds_covers_rows_and_seeds(seeds, wobble):
    random, covered, rows_alone = np.random.default_rng(0), 0, 0
    for _ in range(300):
        right, draws = answered(random, 120, seeds, wobble)
        found = components(Seeds(right.mean(0), draws), 120)
        covered += found.low <= 0.8 <= found.high
        alone = components(Seeds(right.mean(0)[:1], draws[:, :1]), 120)
        rows_alone += alone.low <= 0.8 <= alone.high
    assert covered / 300 >= 0.91
    if wobble:
        assert rows_alone / 300 < 0.9 < covered / 300 <= 0.98


def test_what_seeds_answer_differently_row_by_row_is_counted_once():
    """Without a seed's own skill, the error of S seeds is that of the rows over n and of the noise over n S."""
    random = np.random.default_rng(1)
    right, draws = answered(random, 4000, 6, 0.0)
    found = components(Seeds(right.mean(0), draws), 4000)
    rows = 4 / 150 / 4000  # variance of beta(4, 1) over n
    noise = (0.8 * 0.2 - 4 / 150) / 4000
    assert found.data_error**2 == pytest.approx(rows, rel=0.6)
    assert found.data_error**2 + found.seed_error**2 == pytest.approx(rows + noise / 6, rel=0.5)


def test_the_difference_of_two_rungs_over_seeds_turns_with_them():
    random = np.random.default_rng(2)
    one, other = (
        Seeds(*(part.mean(0) if i == 0 else part for i, part in enumerate(answered(random, 80, 3, 0.05)))) for _ in "ab"
    )
    there, back = components(one, 80, other), components(other, 80, one)
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))
    assert there.p == pytest.approx(back.p)
    assert components(one, 80, one).p == 1.0
