"""Would more data help?  Scores at growing shares of the data become a power law and what twice the data would bring.

In: training rows of each point and the scores of the same resampled test rows at every point.  Out: a Learning.
Error falls as c + a n^-b in the number of rows n (Hestness et al. 2017, Deep Learning Scaling is Predictable,
Empirically; Rosenfeld et al. 2020); the uncertainty comes from refitting to every resampling of the test rows, the same
rows for all points.  What another seed or another draw of the training rows would change is not in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHARES = (0.125, 0.25, 0.5)  # of the training rows; the whole is the rung itself
EXPONENTS = np.linspace(
    0.05, 2.0, 40
)  # published curves of real tasks lie between .07 and .5; 1 is what statistics allows
FEWEST = 32  # training rows below which an eighth of them is not worth training on


@dataclass(frozen=True)
class Learning:
    """A rung's learning curve: rows and value of each point, what the law says at twice the rows, and a sentence.

    gain, low, high: change of the metric's value that twice the data would bring (positive: better), with its interval.
    sure: whether the interval leaves out that it would bring nothing.  curve: the law, for drawing, as (rows, value).
    """

    rung: str
    metric: str
    points: tuple[dict[str, float], ...]
    gain: float
    low: float
    high: float
    sure: bool
    sentence: str
    curve: tuple[tuple[float, float], ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def fit(sizes: Sequence[float], errors: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """(c, a, b) of the least-squares power law through each row of errors (R, points), with a >= 0 and c >= 0."""
    n = np.asarray(sizes, float) / max(sizes)
    told: list[tuple[NDArray[np.float64], ...]] = []
    for b in EXPONENTS:
        x = n**-b
        spread = x - x.mean()
        a = np.maximum((errors * spread).sum(1) / (spread**2).sum(), 0.0)
        c = errors.mean(1) - a * x.mean()
        through = np.maximum((errors * x).sum(1) / (x**2).sum(), 0.0)  # the best with c = 0
        a, c = np.where(c < 0, through, a), np.maximum(c, 0.0)
        loss = ((errors - c[:, None] - a[:, None] * x) ** 2).sum(1)
        told.append((loss, c, a))
    losses = np.stack([item[0] for item in told])
    best = losses.argmin(0)
    pick = np.arange(errors.shape[0])
    c, a = (np.stack([item[place] for item in told])[best, pick] for place in (1, 2))
    return c, a, EXPONENTS[best]


def learning(
    rung: str,
    metric: str,
    sizes: Sequence[int],
    values: Sequence[float],
    draws: NDArray[np.float64],
    higher: bool,
    best: float,
    confidence: float = 0.95,
    points: bool = False,
) -> Learning:
    """The curve of one rung.

    sizes: training rows of each point, growing.  values: the metric on all test rows.  draws: (R, points) the metric on
    resampled test rows.  best: the metric's best possible value (0 for an error).  points: told in percentage points.
    """
    sign = 1.0 if higher else -1.0
    errors = sign * (best - np.vstack([np.asarray(values, float)[None], draws]))
    c, a, b = fit(sizes, errors)
    gains = a * (1 - 2.0**-b)
    tail = (1 - confidence) / 2
    gain, low, high = float(gains[0]), *(float(x) for x in np.quantile(gains[1:], (tail, 1 - tail)))
    rises = sign * (draws[:, -1] - draws[:, 0])  # a law always falls: the curve itself must be shown to
    sure = bool(low > 0 and np.quantile(rises, tail) > 0)
    told = tuple({"rows": float(n), "value": float(v)} for n, v in zip(sizes, values, strict=True))
    at = np.geomspace(min(sizes), 2 * max(sizes), 40)
    law = best - sign * (c[0] + a[0] * (at / max(sizes)) ** -b[0])
    line = tuple((float(x), float(y)) for x, y in zip(at, law, strict=True))
    return Learning(
        rung, metric, told, gain, low, high, sure, _sentence(gain, low, high, sure, metric, sizes, higher, points), line
    )


def _sentence(
    gain: float, low: float, high: float, sure: bool, metric: str, sizes: Sequence[int], higher: bool, points: bool
) -> str:
    scale, unit = (100, " points") if points else (1, "")
    sign = "+" if higher else "−"
    grown = f"from {sizes[0]:,} to {sizes[-1]:,} training rows"
    around = f"{scale * low:.2g} to {scale * high:.2g}"
    if not sure:
        most = f"at most {sign}{scale * high:.2g}{unit}" if np.isfinite(high) else "any amount"
        return (
            f"Whether more data would help cannot be told: {grown}, {metric} is not shown to get better, and twice the "
            f"data could bring nothing or {most}."
        )
    return f"Twice the data would bring about {sign}{scale * gain:.2g}{unit} of {metric} ({around}), judging {grown}."
