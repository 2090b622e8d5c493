"""A search among prompts within a budget: every candidate on a few validation rows, the better half on more, and so on.

In: recipes, a way to ask them, rows, and how many questions may be put to the model.  Out: every candidate with its
score, best first, and a trace of them.  Successive halving (Jamieson and Talwalkar 2016): what one candidate is asked,
all of the same round are asked, so that they are compared on the same rows.  One that is shown to be worse on them
leaves at once (a race; Maron and Moore 1994); where all the questions left would tell none apart, none is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from burnish import kinds, store
from burnish.records import Example, Prediction

FEWEST = 8  # rows below which a score says nothing
ENOUGH = 100  # rows from which on one may give up telling candidates apart
SURE = 2.0  # standard errors of a difference on the same rows
Goodness = tuple[float, float]
Ask = Callable[[Mapping[str, Any], Sequence[Example]], tuple[dict[str, list[Prediction]], int]]


@dataclass(eq=False)
class Tried:
    """One candidate: its recipe, answers by variant (plain, calibrated), and how many questions they took."""

    stage: str
    recipe: Mapping[str, Any]
    answers: dict[str, list[Prediction]] = field(default_factory=dict)
    asked: int = 0
    scores: dict[str, Goodness] = field(default_factory=dict)

    @property
    def best(self) -> str:
        """The variant that does better; plain among equals."""
        return max(self.scores, key=lambda name: self.scores[name])

    @property
    def goodness(self) -> Goodness:
        return self.scores[self.best]

    @property
    def said(self) -> Sequence[Prediction]:
        return self.answers[self.best]

    @property
    def rows(self) -> int:
        return len(next(iter(self.answers.values()), ()))


@dataclass
class Search:
    """What is asked of candidates, and the questions that are left.

    metric, labels: how answers are judged.  trial: rows to try on.  ask: (recipe, rows) -> answers by variant, and how
    many questions that was.  left: questions that may still be asked.  tell: progress in words.  price: questions that
    one row of a recipe takes.
    """

    metric: str
    labels: Sequence[str]
    trial: Sequence[Example]
    ask: Ask
    left: int
    tell: Callable[[str], None]
    price: Callable[[Mapping[str, Any]], int] = lambda recipe: 1
    tried: list[Tried] = field(default_factory=list)
    skipped: int = 0

    def among(self, stage: str, recipes: Iterable[Mapping[str, Any]], share: float, whole: bool = False) -> list[Tried]:
        """Candidates best first, asked with `share` of what is left; `whole`: all on the same rows, none given up."""
        alive = [Tried(stage, recipe) for recipe in recipes]
        budget = int(self.left * share)
        dearest = max((self.price(item.recipe) for item in alive), default=1)
        most = max(budget // (dearest * min(FEWEST, len(self.trial))), 1)
        if len(alive) > most:  # an even choice, the first and the last among them
            self.skipped += len(alive) - most
            alive = [alive[i] for i in np.unique(np.linspace(0, len(alive) - 1, most).round().astype(int))]
        self.tried += alive
        rounds = 1 if whole else max(int(np.ceil(np.log2(len(alive)))), 1)  # the last is between two
        done: list[Tried] = []
        for number in range(rounds):
            more = budget // ((rounds - number) * sum(self.price(item.recipe) for item in alive))
            size = min(max(alive[0].rows + more, 1), len(self.trial))
            for place, item in enumerate(alive):
                self.tell(f"{stage}: candidate {place + 1} of {len(alive)} on {size} rows")
                budget -= self._ask(item, size)
            alive.sort(key=lambda item: item.goodness, reverse=True)  # stable: the first of equals is cheaper
            if size == len(self.trial) or number == rounds - 1:
                break
            half = alive[: (len(alive) + 1) // 2]
            reach = min(size + budget // sum(self.price(item.recipe) for item in half), len(self.trial))
            kept = self._hopeful(half, reach)
            alive, done = kept, [item for item in alive if item not in kept] + done
            if len(alive) == 1:
                break
        return alive + done

    def _hopeful(self, alive: Sequence[Tried], reach: int) -> list[Tried]:
        """The leader and those not shown to be worse; the leader alone where even `reach` rows would not tell."""
        leader, *others = alive
        gaps = [self._gap(leader, item) for item in others]
        shrunk = SURE * float(np.sqrt(leader.rows / reach))
        if leader.rows >= ENOUGH and all(gap <= shrunk * error for gap, error in gaps):
            return [leader]
        return [leader, *(item for item, (gap, error) in zip(others, gaps, strict=True) if gap <= SURE * error)]

    def _gap(self, one: Tried, other: Tried) -> tuple[float, float]:
        """How much better one candidate is than the other on the rows of both, and its standard error (jackknife)."""
        gap = one.goodness[0] - other.goodness[0]
        if one.rows < FEWEST:
            return gap, np.inf
        module, rows = kinds.load("metrics", self.metric), self.trial[: one.rows]
        told = [
            module.components(*pair, self.labels) for item in (one, other) for pair in zip(rows, item.said, strict=True)
        ]
        tables = np.array(told, float).reshape(2, len(rows), -1)
        first, second = np.array([module.value(np.delete(tables, i, axis=1)) for i in range(len(rows))]).T
        error = float(np.sqrt((len(rows) - 1) * (first - second).var()))
        return gap, error if error == error else np.inf

    def _ask(self, item: Tried, size: int) -> int:
        new = self.trial[item.rows : size]
        if not new:
            return 0
        answers, asked = self.ask(item.recipe, new)
        for name, part in answers.items():
            item.answers.setdefault(name, []).extend(part)
        item.scores = {
            name: goodness(self.metric, self.trial[: len(said)], said, self.labels)
            for name, said in item.answers.items()
        }
        item.asked += asked
        self.left -= asked
        return asked

    @property
    def higher(self) -> bool:
        """Whether more of the metric is better."""
        return bool(kinds.load("metrics", self.metric).HIGHER)

    def value(self, told: Goodness) -> float:
        """The metric in its own sign."""
        return round(told[0] if self.higher else -told[0], 4)

    def keep(self, folder: Path | None, brief: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> None:
        """Write search.jsonl: a line for each candidate, in the order they were tried."""
        if folder is not None:
            store.write_jsonl(folder / "search.jsonl", (self._line(item, brief) for item in self.tried))

    def _line(self, item: Tried, brief: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> dict[str, Any]:
        scores = {name: self.value(told) for name, told in item.scores.items()}
        return {"stage": item.stage, **brief(item.recipe), "rows": item.rows, "asked": item.asked, "scores": scores}


def goodness(metric: str, rows: Sequence[Example], said: Sequence[Prediction], labels: Sequence[str]) -> Goodness:
    """(the metric with its sign turned so that more is better, mean log-likelihood) for choosing among candidates."""
    module = kinds.load("metrics", metric)
    value = module.value(np.array([module.components(r, p, labels) for r, p in zip(rows, said, strict=True)], float))
    sure = [
        np.log(max((p.probabilities or {}).get(str(r.label), 1.0), 1e-9)) - (p.nll or 0.0)
        for r, p in zip(rows, said, strict=True)
    ]
    value = float(value if module.HIGHER else -value)
    return value if value == value else -np.inf, float(np.mean(sure))


def some(rows: Sequence[Example], most: int, *seed: int) -> list[Example]:
    """At most so many rows, drawn at random: a file may be sorted by class."""
    return [rows[int(i)] for i in np.random.default_rng(seed).permutation(len(rows))[:most]]
