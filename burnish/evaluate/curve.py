"""Would more data help?  Scores at growing shares of the data become a power law and what twice the data would bring.

In: training rows of each point and the scores of the same resampled test rows at every point.  Out: a Learning.
Error falls as c + a n^-b in the number of rows n (Hestness et al. 2017, Deep Learning Scaling is Predictable,
Empirically; Rosenfeld et al. 2020).  Four points do not fix three parameters, so all laws that agree with them are
weighed by how well they do (Bayes, on a grid).  The uncertainty covers which test rows were drawn (resampled, the same
for all points) and what another seed or another draw of the training rows would change: known from the rung's seeds
where it has several, else between 1 and 16 % of the error.
Measured on planted laws (tests/evaluate/test_curve.py repeats some, docs/log.md): the 95 % interval holds the truth in
93 to 100 % of 18 kinds of curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from burnish.evaluate.scores import Scoring
from burnish.evaluate.statistics import Seeds

Numbers = NDArray[np.float64]

SHARES = (0.125, 0.25, 0.5)  # of the training rows; the whole is the rung itself
# Published curves of real tasks lie between .07 and .5; 1 is what statistics allows.
EXPONENTS = np.geomspace(0.05, 2.0, 32)
WOBBLE = np.geomspace(0.01, 0.16, 9)  # standard deviation of a training, as a share of the mean error
DRAWS = 60  # of (c, a) for each exponent and wobble
FEWEST = 32  # training rows below which an eighth of them is not worth training on


@dataclass(frozen=True)
class Learning:
    """A rung's learning curve: rows and value of each point, what the law says at twice the rows, and a sentence.

    gain, low, high: change of the metric's value that twice the data would bring (positive: better), with its interval.
    sure: whether the points are shown to get better at all.  curve: the law and its interval, for drawing, as (rows,
    value, low, high).
    """

    rung: str
    metric: str
    points: tuple[dict[str, float], ...]
    gain: float
    low: float
    high: float
    sure: bool
    sentence: str
    curve: tuple[tuple[float, float, float, float], ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Laws:
    """Laws c + a (n / largest n)^-b that the points allow, and how much each weighs; wobble: of one training; (K,)."""

    c: Numbers
    a: Numbers
    b: Numbers
    wobble: Numbers
    weight: Numbers

    def at(self, share: Numbers, levels: Sequence[float]) -> Numbers:
        """Quantiles of the error at shares of the largest n, shape (levels, shares)."""
        return np.stack([self.quantiles(self.c + self.a * one**-self.b, levels) for one in share], axis=1)

    def quantiles(self, values: Numbers, levels: Sequence[float]) -> Numbers:
        """Weighted quantiles of one number per law."""
        order = values.argsort()
        reached = self.weight[order].cumsum() / self.weight.sum()
        return values[order][np.minimum(np.searchsorted(reached, levels), len(values) - 1)]


def fit(sizes: Sequence[float], errors: Numbers, rows: Numbers, last: Seeds) -> Laws:
    """The laws with a >= 0 and c >= 0, weighed by their likelihood; all exponents and wobbles are as likely before.

    errors: of each point (P,).  rows: their covariance by the draw of test rows (P, P).  last: the seeds of the last.
    """
    share, scale, many = np.asarray(sizes, float) / max(sizes), float(np.abs(errors).mean()) or 1.0, len(last.values)
    noise, scatter = 0.0, 0.0
    if many > 1:
        noise = float((last.draws - last.draws.mean(axis=1, keepdims=True)).var(axis=0).sum()) / (many - 1)
        scatter = float(np.var(last.values, ddof=1))
    normal = np.random.default_rng(0).normal(size=(DRAWS, 2))
    told: list[tuple[Numbers, ...]] = []
    for wobble in WOBBLE * scale:
        precision = np.linalg.inv(rows + wobble**2 * np.diag([*[1.0] * (len(errors) - 1), 1 / many]))
        known = (many - 1) / 2 * (-np.log(wobble**2 + noise) - scatter / (wobble**2 + noise))  # chi-squared
        for b in EXPONENTS:
            x = np.stack([np.ones_like(share), share**-b], axis=1)
            inner = x.T @ precision @ x
            mean = np.linalg.solve(inner, x.T @ precision @ errors)
            off = errors - x @ mean
            likely = known - off @ precision @ off / 2 + _half_log_det(precision) - _half_log_det(inner)
            drawn = mean + np.linalg.solve(np.linalg.cholesky(inner).T, normal.T).T
            told.append((*drawn.T, np.full(DRAWS, b), np.full(DRAWS, wobble), np.full(DRAWS, likely)))
    c, a, b_, tau, likely_ = (np.concatenate(column) for column in zip(*told, strict=True))
    fits = (c >= 0) & (a >= 0)
    if not fits.any():  # no falling law passes near the points: the flat one is the nearest
        a, fits = np.zeros_like(a), np.ones_like(fits)
    weight = np.exp(likely_[fits] - likely_[fits].max())
    return Laws(c[fits], a[fits], b_[fits], tau[fits], weight)


def _half_log_det(matrix: Numbers) -> float:
    return float(np.linalg.slogdet(matrix)[1]) / 2


def learning(rung: str, scoring: Scoring, sizes: Sequence[int], points: Sequence[Seeds]) -> Learning:
    """The curve of one rung.

    sizes: training rows of each point, growing.  points: what was scored at each, the last with all seeds of the rung.
    """
    higher, (least, most) = scoring.module.HIGHER, scoring.module.RANGE
    sign, best = (1.0, most) if higher else (-1.0, least)
    values = np.array([point.values.mean() for point in points])
    draws = np.stack([point.draws.mean(axis=1) for point in points], axis=1)
    rows = np.atleast_2d(np.cov(draws.T))
    laws = fit(sizes, sign * (best - values), rows, points[-1])
    tail = (1 - scoring.confidence) / 2
    wide = tail / 2  # since a curve that came out flat by luck hides what more data would bring
    low, gain, high = (float(x) for x in laws.quantiles(laws.a * (1 - 2.0**-laws.b), (wide, 0.5, 1 - wide)))
    # A law always falls: the points themselves must be shown to, from the first to the last.
    chance = rows[0, 0] + rows[-1, -1] - 2 * rows[0, -1] + laws.wobble**2 * (1 + 1 / len(points[-1].values))
    rise = sign * (values[-1] - values[0]) + np.sqrt(chance) * np.random.default_rng(1).normal(size=len(chance))
    sure = bool(laws.quantiles(rise, (tail,))[0] > 0)
    low = low if sure else 0.0
    told = tuple({"rows": float(n), "value": float(v)} for n, v in zip(sizes, values, strict=True))
    at = np.geomspace(min(sizes), 2 * max(sizes), 24)
    band = best - sign * laws.at(at / max(sizes), (0.5, 1 - wide, wide) if higher else (0.5, wide, 1 - wide))
    line = tuple((float(n), float(a), float(b), float(c)) for n, (a, b, c) in zip(at, band.T, strict=True))
    sentence = _sentence(gain, low, high, sure, scoring, sizes)
    return Learning(rung, scoring.metric, told, gain, low, high, sure, sentence, line)


def _sentence(
    gain: float,
    low: float,
    high: float,
    sure: bool,
    scoring: Scoring,
    sizes: Sequence[int],
) -> str:
    metric, module = scoring.metric, scoring.module
    scale, unit = (100, " points") if module.RANGE == (0.0, 1.0) else (1, "")
    sign = "+" if module.HIGHER else "−"
    grown = f"from {sizes[0]:,} to {sizes[-1]:,} training rows"
    if not sure:
        return (
            f"Whether more data would help cannot be told: {grown} {metric} is not shown to get better, and twice the "
            f"data could bring nothing or up to {sign}{_digits(scale * high)}{unit}."
        )
    around = f"{_digits(scale * low)} to {_digits(scale * high)}, {100 * scoring.confidence:g} % interval"
    return (
        f"Twice the data would bring about {sign}{_digits(scale * gain)}{unit} of {metric} ({around}), judging by "
        f"{len(sizes)} trainings {grown}."
    )


def _digits(value: float) -> str:
    """Two digits; below a hundredth of the unit there is nothing to tell."""
    return f"{value:.2g}" if value >= 0.01 else f"{value:.2f}"
