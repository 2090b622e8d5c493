"""Does the verdict keep its promises?  Equal systems called different, and planted differences found, both counted.

    python benchmarks/verdict.py [--draws 2000] [--only TEXT] [--json]

A/A: every rung is the same model on rows drawn anew (each row has its own difficulty, which all rungs share); the
verdict should say that tuning makes a difference in 5 +- 2 % of the climbs, and in any pair after Holm in at most as
many.  A/B, a quarter as many climbs: the trained rung is better by just the smallest difference that the verdict says
these rows can show; about 80 % should be found.  --only: the cases whose name holds this text.
The last line with --json is one JSON object: case -> share.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from burnish.evaluate import verdict
from burnish.evaluate.scores import Scoring
from burnish.records import Comparison, Example, Prediction, RungResult, Verdict, Where

LABELS = ("good", "bad")
WORDS = ("king", "saw", "fox", "in", "dark", "wood", "and", "ran", "home", "by", "night", "to", "old", "mill", "no")
TRAINED = ("lora", "full")
CLAIM = re.compile("Tuning (pays|does not pay)")
RESAMPLES = 400
WRONG = 0.2685  # share of rows that the model of the simulation gets wrong
ERROR = {"rmse": 1.646, "mae": 1.186}  # of the noise below at scale 1: Student's t with 5 degrees, half of it times 1.5
FOUR = ("zero-shot", "few-shot", "lora", "full")


@dataclass(frozen=True)
class Case:
    """metric over n rows; rungs beside the floor; seeds of a trained one.

    wobble: standard deviation by which a seed moves its rung's skill.  alike: share of rows that all rungs answer the
    same.  openings: so often the test set is opened, each time with rungs trained anew.
    """

    metric: str
    n: int
    rungs: tuple[str, ...] = ("few-shot", "lora")
    seeds: int = 1
    wobble: float = 0.0
    alike: float = 0.0
    openings: int = 1

    def __str__(self) -> str:
        told = f"{self.metric}, n = {self.n}"
        told += f", {len(self.rungs)} rungs" if len(self.rungs) > 2 else ""
        told += f", {self.seeds} seeds (± {self.wobble:g})" if self.seeds > 1 else ""
        told += f", {self.alike:.0%} of answers shared" if self.alike else ""
        return told + (f", opened {self.openings} times" if self.openings > 1 else "")


EVERY = ("accuracy", "exact-match", "f1-macro", "rouge-l", "chrf", "perplexity", "bits-per-byte", "rmse", "mae",
         "pearson", "spearman")  # fmt: skip
NULLS = (
    *(Case(metric, n) for metric in EVERY for n in (30, 120, 872)),
    *(Case(metric, 120, alike=0.8) for metric in ("accuracy", "rouge-l", "rmse", "spearman")),
    *(Case(metric, 120, FOUR) for metric in ("accuracy", "f1-macro", "bits-per-byte", "rmse")),
    *(Case(metric, 120, seeds=3) for metric in ("accuracy", "f1-macro", "rmse")),
    *(Case("accuracy", n, seeds=seeds, wobble=0.03) for n in (120, 872) for seeds in (2, 3, 5)),
    Case("accuracy", 120, FOUR, seeds=3, wobble=0.03),
    *(Case("accuracy", 120, openings=times) for times in (2, 4)),
)
PLANTED = (
    *(Case("accuracy", n) for n in (120, 872)),
    Case("accuracy", 120, FOUR),
    Case("accuracy", 120, seeds=3, wobble=0.03),
    Case("f1-macro", 120),
    Case("bits-per-byte", 120),
    Case("rmse", 120),
    Case("mae", 120),
)
Climbed = tuple[Verdict, tuple[Comparison, ...]]


def climbed(case: Case, random: np.random.Generator, better: float = 0.0) -> list[Climbed]:
    """Climbs on rows drawn anew, one for each opening; trained rungs are `better` in the metric's unit."""
    world = World(case, case.n, random)
    asked = {rung: world.said(random) for rung in case.rungs if rung not in TRAINED}
    return [_opening(case, world, asked, time, random, better) for time in range(1, case.openings + 1)]


def _opening(
    case: Case,
    world: World,
    asked: Mapping[str, list[Prediction]],
    time: int,
    random: np.random.Generator,
    better: float,
) -> Climbed:
    skills = {
        rung: better + case.wobble * random.normal(size=case.seeds) if rung in TRAINED else np.zeros(1)
        for rung in case.rungs
    }
    said = {
        rung: [asked[rung]] if rung in asked else [world.said(random, skill) for skill in skills[rung]]
        for rung in case.rungs
    }
    named = {"baseline": world.floor(), **{rung: own[0] for rung, own in said.items()}}
    seeds = {rung: own[1:] for rung, own in said.items()}
    results = [
        RungResult(name, (Scoring(case.metric, world.rows, LABELS, resamples=50).score(own, seeds.get(name, ())),))
        for name, own in named.items()
    ]
    draw = int(random.integers(1 << 30))
    pair = _chosen(case, skills, random)
    pairs = Scoring(case.metric, world.rows, LABELS, 0.95, RESAMPLES, draw).compare(named, seeds, pair)
    goal = {"task": "classify", "metric": case.metric, "target": None}
    return verdict.decide(goal, results, pairs, case.n, trained=TRAINED, openings=time), pairs


class World:
    """Rows of some difficulty, and what models that find them equally hard say about them."""

    def __init__(self, case: Case, n: int, random: np.random.Generator) -> None:
        self.case, self.n = case, n
        self.hard = random.normal(size=n)
        self.bytes = np.ceil(np.exp(random.normal(5, 0.7, size=n)))
        self.numbers = 20 + 5 * random.normal(size=n)
        self.texts = [list(random.choice(WORDS, size=6)) for _ in range(n)] if self.kind == "text" else []
        self.same = random.random(n) < case.alike
        self.rows = [Example("labelled", Where("rows.csv", i), id=str(i), label=self._gold(i)) for i in range(n)]
        self.shared = self._drawn(random, 0.0)

    @property
    def kind(self) -> str:
        """What a model says about a row: a label, a text, a number or a likelihood."""
        kinds = {"rouge-l": "text", "chrf": "text", "perplexity": "nll", "bits-per-byte": "nll"}
        return "label" if self.case.metric in EVERY[:3] else kinds.get(self.case.metric, "number")

    def _gold(self, row: int) -> str | float:
        if self.kind == "number":
            return float(self.numbers[row])
        return " ".join(self.texts[row]) if self.kind == "text" else LABELS[row % 2]

    def _drawn(self, random: np.random.Generator, gain: float) -> NDArray[np.float64]:
        """Shape (n, k): rightness, words kept, the error of a number, or bits per byte."""
        if self.kind == "number":
            return (random.standard_t(5, size=(self.n, 1)) * (1 + 0.5 * (self.hard[:, None] > 0))) * (
                2 - gain / ERROR.get(self.case.metric, 1)
            )
        if self.kind == "nll":
            return (1.5 + 0.3 * self.hard + 0.1 * random.normal(size=self.n) - gain)[:, None]
        chance = (1 / (1 + np.exp(-1.4 + 1.5 * self.hard)))[:, None]
        chance = chance + gain * (1 - chance) / WRONG if gain > 0 else chance * (1 + gain / (1 - WRONG))
        return (random.random((self.n, 6 if self.kind == "text" else 1)) < chance).astype(float)

    def said(self, random: np.random.Generator, gain: float = 0.0) -> list[Prediction]:
        """What a model says that is better by `gain`."""
        drawn = np.where(self.same[:, None], self.shared, self._drawn(random, gain))
        return [self._prediction(i, own) for i, own in enumerate(drawn)]

    def _prediction(self, row: int, own: NDArray[np.float64]) -> Prediction:
        if self.kind == "number":
            return Prediction(str(row), "", number=float(self.numbers[row] + own[0]))
        if self.kind == "nll":
            size = int(self.bytes[row])
            return Prediction(str(row), "", nll=own[0] * size * math.log(2), tokens=size // 4 + 1, bytes=size)
        if self.kind == "text":
            words = (word if kept else "lost" for word, kept in zip(self.texts[row], own, strict=True))
            return Prediction(str(row), "", text=" ".join(words))
        label = LABELS[row % 2 if own[0] else (row + 1) % 2]
        return Prediction(str(row), "", label=label, text=label)

    def floor(self) -> list[Prediction]:
        """Always the same, and so bad that everything beats it."""
        told = Prediction("", "", text="x", label="neither", number=0.0, nll=1e5, tokens=1, bytes=1)
        return [Prediction(**{**told.__dict__, "id": row.id}) for row in self.rows]


def _chosen(case: Case, skills: Mapping[str, NDArray[np.float64]], random: np.random.Generator) -> tuple[str, str]:
    """The best of either side on validation rows, half as many as test rows."""
    sides = [rung for rung in case.rungs if rung not in TRAINED], [rung for rung in case.rungs if rung in TRAINED]
    if len(case.rungs) == 2:
        return sides[0][0], sides[1][0]
    world = World(case, case.n // 2, random)

    def value(rung: str) -> float:
        found = Scoring(case.metric, world.rows, LABELS, resamples=2).score(world.said(random, skills[rung][0]))
        return found.value if found.higher else -found.value

    asked, tuned = (max(side, key=value) for side in sides)
    return asked, tuned


def claims(case: Case, draws: int, better: float = 0.0, seed: int = 0) -> tuple[float, float]:
    """Shares of climbs in which the (last) verdict says that tuning makes a difference, and in which any verdict does.

    With one opening the second is whether any two rungs are called different after Holm, the floor left aside.
    """
    random = np.random.default_rng([seed, case.n])
    told = []
    for _ in range(draws):
        found = climbed(case, random, better)
        claimed = [bool(CLAIM.search(item.sentence)) for item, _ in found]
        pairs = [item.p_holm < 0.05 for item in found[0][1] if item.a != "baseline"]
        told.append((claimed[-1], any(pairs) if case.openings == 1 else any(claimed)))
    last, any_ = np.mean(told, axis=0)
    return float(last), float(any_)


def stated(case: Case, draws: int) -> float:
    """The smallest difference that the verdict's own note says these rows can show, on average over A/A climbs."""
    random = np.random.default_rng([2, case.n])
    found = []
    for _ in range(draws):
        told = " ".join(climbed(case, random)[0][0].notes)
        match = re.search(r"under ([\d.]+)( points)? cannot", told)
        assert match, told
        found.append(float(match[1]) / (100 if match[2] else 1))
    return float(np.mean(found))


def table(draws: int, only: str = "") -> Mapping[str, float]:
    """Every case as a line; case -> share."""
    told = {}
    print(f"{'A/A, ' + str(draws) + ' climbs each':52} tuning differs   any pair (Holm), or any opening")
    for case in NULLS:
        if only in str(case):
            told[f"null {case}"], any_ = claims(case, draws)
            print(f"{case!s:52} {told[f'null {case}']:13.1%} {any_:17.1%}", flush=True)
    print(f"\n{'A/B, as much better as the verdict can see':52} stated           found")
    for case in PLANTED:
        if only in str(case):
            least = stated(case, 60)
            told[f"planted {case}"], _ = claims(case, max(draws // 4, 1), least)
            print(f"{case!s:52} {least:13.3f} {told[f'planted {case}']:17.1%}", flush=True)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--only", default="")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    told = table(asked.draws, asked.only)
    if asked.json:
        print(json.dumps(told))


if __name__ == "__main__":
    main()
