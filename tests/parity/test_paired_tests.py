"""Paired tests and intervals against scipy and statsmodels, where those have them."""

import numpy as np
import pytest

from burnish.evaluate.statistics import holm, interval, mcnemar_exact, mcnemar_mid, resampled, swap_test, wilson

stats = pytest.importorskip("scipy.stats")


def mean(rows):
    return rows[..., 0].mean(-1)


def spread(rows):
    return np.sqrt((rows[..., 0] ** 2).mean(-1))


@pytest.mark.parametrize("value", [mean, spread])
def test_the_swap_test_is_scipys_permutation_test_of_pairs(value):
    random = np.random.default_rng(5)
    a = random.normal(size=(12, 1))
    b = a + random.normal(0.4, 0.8, size=(12, 1))

    def difference(x, y, axis):
        return value(np.moveaxis(y, axis, -1)[..., None]) - value(np.moveaxis(x, axis, -1)[..., None])

    exact = stats.permutation_test((a[:, 0], b[:, 0]), difference, permutation_type="samples", n_resamples=np.inf)
    # of 2^12 swaps all are tried there and 6,000 are drawn here: three standard errors
    assert swap_test(a, b, value, 6000, 0) == pytest.approx(exact.pvalue, abs=0.02)


def test_the_bootstrap_interval_is_scipys_percentile_interval_of_many_rows():
    """The widening for few rows is all that differs: at 400 rows under 1 % of the width."""
    rows = np.random.default_rng(1).exponential(size=(400, 1))
    want = stats.bootstrap((rows[:, 0],), np.mean, n_resamples=6000, method="percentile", rng=np.random.default_rng(0))
    low, high = want.confidence_interval
    assert interval(resampled(rows, mean, 6000, 0), 400) == pytest.approx((low, high), abs=0.06 * (high - low))


def test_mcnemar_wilson_and_holm_equal_statsmodels():
    pytest.importorskip("statsmodels")
    from statsmodels.stats.contingency_tables import mcnemar
    from statsmodels.stats.multitest import multipletests
    from statsmodels.stats.proportion import proportion_confint

    for b, c in ((10, 2), (1, 7), (40, 31), (0, 6)):
        assert mcnemar_exact(b, c) == pytest.approx(mcnemar([[5, b], [c, 9]], exact=True).pvalue, abs=1e-12)
        mid = stats.binomtest(min(b, c), b + c).pvalue - stats.binom.pmf(min(b, c), b + c, 0.5)
        assert mcnemar_mid(b, c) == pytest.approx(mid, abs=1e-12)
    for k, n in ((0, 30), (17, 120), (872, 872)):
        assert wilson(k, n) == pytest.approx(proportion_confint(k, n, method="wilson"), abs=1e-12)
    p = [0.01, 0.04, 0.03, 0.005, 0.2]
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
