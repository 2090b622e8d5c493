"""Predictions become scores and comparisons.

In: examples and what one or several rungs said about them.  Out: Score, Comparison, a confusion table.  Every example
must have exactly one prediction: a row without an answer is scored as wrong, never left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from burnish import kinds
from burnish.errors import DataError
from burnish.evaluate import statistics
from burnish.evaluate.statistics import Rows, Seeds
from burnish.metrics._text import gold
from burnish.records import Comparison, Example, Prediction, Score

# rmse: in the label's own unit, so that a person can say what is good enough, and no error escapes it; a correlation
# forgives a wrong offset and scale.  rouge-l: an answer may be worded differently.  bits-per-byte: independent of the
# tokenizer; perplexity is what people know from chat models and stays within one base.
USUAL = {
    "classify": "accuracy",
    "regress": "rmse",
    "choose": "accuracy",
    "prefer": "preference-accuracy",
    "extract": "exact-match",
    "answer": "rouge-l",
    "chat": "perplexity",
    "write": "bits-per-byte",
}


def pick_metric(goal_task: str) -> str:
    """The usual metric of a goal task: what `goal.metric: auto` means."""
    return USUAL[goal_task]


def applicable(goal_task: str, examples: Sequence[Example], predictions: Sequence[Prediction]) -> tuple[str, ...]:
    """Metrics made for the goal task whose material the rows carry, the usual one first.

    A likelihood metric needs every row's likelihood; others need one row that has an answer or says why it has none,
    and those of text a gold text to compare with.
    """

    def has(metric: ModuleType) -> bool:
        given = [getattr(row, metric.NEEDS) is not None for row in predictions]
        if metric.NEEDS == "nll":
            return all(given)
        if metric.NEEDS == "text" and not any(gold(example) for example in examples):
            return False
        return any(given) or any(row.problem for row in predictions)

    names = [name for name in kinds.names("metrics") if goal_task in _metric(name).FOR and has(_metric(name))]
    return tuple(sorted(names, key=lambda name: name != USUAL[goal_task]))


@dataclass(frozen=True)
class Scoring:
    """Rows to be judged by one metric, and how sure to be.

    rows: at least one.  labels: what answers are chosen from, in order.  confidence: of every interval, in (0, 1).
    resamples: of the bootstrap and of random swaps, drawn from `seed`.
    Raises DataError when predictions and rows do not match one to one, or a row cannot be scored.
    """

    metric: str
    rows: Sequence[Example]
    labels: Sequence[str] = ()
    confidence: float = 0.95
    resamples: int = 2000
    seed: int = 0

    @property
    def module(self) -> ModuleType:
        return _metric(self.metric)

    def table(self, said: Sequence[Prediction]) -> Rows:
        """What each row adds to the metric: numbers for each, in their order."""
        if not self.rows:
            raise DataError("There are no rows to score", do="give test rows: data.test or data.test_files")
        pairs = zip(self.rows, joined(self.rows, said), strict=True)
        return np.array([self.module.components(row, own, self.labels) for row, own in pairs], dtype=np.float64)

    def value(self, said: Sequence[Prediction]) -> float:
        return float(self.module.value(self.table(said)))

    def score(self, said: Sequence[Prediction], seeds: Sequence[Sequence[Prediction]] = ()) -> Score:
        """The metric over all rows with its interval: Wilson's for proportions, the bootstrap for the rest.

        seeds: what the same rung said when trained from other seeds; the value is then the mean over all of them, and
        the interval covers rows and seeds.
        """
        rows, *others = [self.table(own) for own in (said, *seeds)]
        module, n = self.module, len(rows)
        if others:
            found = statistics.components(self._seeds([rows, *others]), n, confidence=self.confidence)
            worst, best = module.RANGE
            value, how, low, high = found.value, "rows and seeds", max(found.low, worst), min(found.high, best)
        elif module.KIND == "proportion":
            low, high = statistics.wilson(float(rows.sum()), n, self.confidence)
            return Score(self.metric, float(module.value(rows)), low, high, n, "wilson", module.HIGHER, self.confidence)
        else:
            values = statistics.resampled(rows, module.value, self.resamples, self.seed)
            value, how = float(module.value(rows)), "bootstrap"
            low, high = statistics.interval(values, n, self.confidence)
        low, high = _widened(low, high, module, n, self.confidence)
        return Score(self.metric, value, low, high, n, how, module.HIGHER, self.confidence)

    def compare(
        self,
        named: Mapping[str, Sequence[Prediction]],
        seeds: Mapping[str, Sequence[Sequence[Prediction]]] | None = None,
        claim: Collection[str] = (),
    ) -> tuple[Comparison, ...]:
        """Every pair of rungs, an earlier one as `a`, on the same rows, with Holm's correction over all of them.

        Proportions: McNemar's mid-p and Newcombe's paired interval.  Others: random swaps and a paired bootstrap.
        seeds: rung -> what it said when trained from other seeds; its pairs are then tested over rows and seeds.
        claim: the pair that answers whether tuning makes a difference, chosen without these rows.
        """
        module, seeds = self.module, seeds or {}
        tables = {name: [self.table(said) for said in (own, *seeds.get(name, ()))] for name, own in named.items()}
        drawn: dict[str, Seeds] = {}
        if module.KIND != "proportion" or any(len(rows) > 1 for rows in tables.values()):
            drawn = {name: self._seeds(own) for name, own in tables.items()}

        def compared(a: str, b: str) -> Comparison:
            a_rows, b_rows = tables[a][0], tables[b][0]
            n = len(a_rows)
            if len(tables[a]) + len(tables[b]) > 2:
                found = statistics.components(drawn[b], n, drawn[a], self.confidence)
                return Comparison(a, b, found.value, found.low, found.high, found.p, found.p, n, "rows and seeds")
            if module.KIND == "proportion":
                return _proportions(a, b, a_rows, b_rows, self.confidence)
            difference = float(module.value(b_rows) - module.value(a_rows))
            low, high = statistics.interval(drawn[b].draws[:, 0] - drawn[a].draws[:, 0], n, self.confidence)
            p = statistics.swap_test(a_rows, b_rows, module.value, self.resamples, self.seed)
            return Comparison(a, b, difference, low, high, p, p, n, "random swaps")

        found = [compared(a, b) for a, b in combinations(tables, 2)]
        corrected = statistics.holm([item.p for item in found])
        return tuple(
            replace(item, p_holm=p, claim={item.a, item.b} == set(claim))
            for item, p in zip(found, corrected, strict=True)
        )

    def seeded(self, said: Sequence[Sequence[Prediction]]) -> Seeds:
        """What one rung scores from each of its seeds, on all rows and on the same resamples of them."""
        return self._seeds([self.table(own) for own in said])

    def _seeds(self, tables: Sequence[Rows]) -> Seeds:
        value = self.module.value
        draws = [statistics.resampled(rows, value, self.resamples, self.seed) for rows in tables]
        return Seeds(np.array([value(rows) for rows in tables]), np.stack(draws, axis=1))


def joined(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Prediction]:
    """The predictions in the order of the examples.

    Raises DataError unless each example has exactly one prediction and each prediction its example.
    """
    by_id = {row.id: row for row in predictions}
    wanted = {example.id: example for example in examples}
    again = "predict these rows again; a score over other rows says nothing about these"
    if len(wanted) < len(examples) or len(by_id) < len(predictions):
        raise DataError(
            "Two rows have the same id, so predictions cannot be matched to examples", do="remove duplicates"
        )
    if missing := [example for name, example in wanted.items() if name not in by_id]:
        raise DataError(f"{len(missing)} of {len(wanted)} examples have no prediction", str(missing[0].where), again)
    if strange := [row for name, row in by_id.items() if name not in wanted]:
        raise DataError(f"{len(strange)} predictions belong to no example", strange[0].where, again)
    return [by_id[example.id] for example in examples]


def _metric(name: str) -> ModuleType:
    return kinds.load("metrics", name)


def _widened(low: float, high: float, metric: ModuleType, n: int, confidence: float) -> tuple[float, float]:
    """When no resample differs from a perfect (or the worst) value, what n rows without an exception can show."""
    worst, best = metric.RANGE
    rest = (1 - statistics.wilson(n, n, confidence)[0]) * (best - worst)
    if low == high == best and np.isfinite(rest):
        return low - rest, high
    if low == high == worst and np.isfinite(rest):
        return low, high + rest
    return low, high


def _proportions(a: str, b: str, a_rows: Rows, b_rows: Rows, confidence: float) -> Comparison:
    a_right: NDArray[np.bool_] = a_rows[:, 0] > 0.5
    b_right: NDArray[np.bool_] = b_rows[:, 0] > 0.5
    both, neither = int((a_right & b_right).sum()), int((~a_right & ~b_right).sum())
    fixed, broken = int((b_right & ~a_right).sum()), int((a_right & ~b_right).sum())
    n = len(a_right)
    low, high = statistics.paired_difference(both, fixed, broken, neither, confidence)
    p = statistics.mcnemar_mid(fixed, broken)
    return Comparison(a, b, (fixed - broken) / n, low, high, p, p, n, "mcnemar", fixed, broken)
