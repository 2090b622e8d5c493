"""Spearman's rank correlation: whether larger was said where larger is true."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from burnish.metrics._numbers import correlation, filled, gold_and_said

FOR = ("regress",)
NEEDS = "number"
HIGHER = True
RANGE = (-1.0, 1.0)
KIND = "aggregate"

components = gold_and_said


def value(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson of average ranks of rows (..., n, 2); 0 where either side is constant; missing: far end of gold."""
    gold, said = filled(rows)
    return correlation(_ranks(gold), _ranks(said))


def _ranks(column: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1 along the last axis, ties sharing their mean rank."""
    order = column.argsort(axis=-1)
    ordered = np.take_along_axis(column, order, axis=-1)
    place, edge = np.arange(column.shape[-1]), np.ones((*column.shape[:-1], 1), dtype=bool)
    steps = ordered[..., 1:] != ordered[..., :-1]
    first = np.maximum.accumulate(np.where(np.concatenate([edge, steps], axis=-1), place, 0), axis=-1)
    ends = np.where(np.concatenate([steps, edge], axis=-1), place, len(place))
    last = np.minimum.accumulate(ends[..., ::-1], axis=-1)[..., ::-1]
    ranks = np.empty(column.shape)
    np.put_along_axis(ranks, order, (first + last) / 2 + 1, axis=-1)
    return ranks
