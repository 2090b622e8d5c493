"""Does the verdict keep its promises?  Equal systems called different, and planted differences found, both counted.

    python benchmarks/verdict.py [--draws 2000] [--json]

A/A: every rung is the same model on rows drawn anew (each row has its own difficulty, which all rungs share); the
verdict should say that tuning makes a difference in 5 +- 2 % of the climbs.  A/B, a quarter as many climbs: the trained
rung is better by just the smallest difference that the verdict says these rows can show; about 80 % should be found.
The last line with --json is one JSON object: case -> share.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from burnish.evaluate import scores, verdict
from burnish.records import Comparison, Example, Prediction, RungResult, Verdict, Where

LABELS = ("good", "bad")
TRAINED = ("lora", "full")
CLAIM = re.compile("Tuning (pays|does not pay)")
RESAMPLES = 400
WRONG = 0.2685  # share of rows that the model of the simulation gets wrong


@dataclass(frozen=True)
class Case:
    """metric over n rows; rungs beside the floor; seeds of a trained one; how much a seed moves its skill."""

    metric: str
    n: int
    rungs: tuple[str, ...] = ("few-shot", "lora")
    seeds: int = 1
    wobble: float = 0.0

    def __str__(self) -> str:
        seeds = f", {self.seeds} seeds" if self.seeds > 1 else ""
        return f"{self.metric}, n = {self.n}, {len(self.rungs)} rungs{seeds}"


NULLS = (
    Case("accuracy", 60),
    Case("accuracy", 172),
    Case("accuracy", 600),
    Case("accuracy", 172, ("zero-shot", "few-shot", "lora", "full")),
    Case("f1-macro", 172),
    Case("rmse", 100),
    Case("bits-per-byte", 40),
    Case("bits-per-byte", 40, ("zero-shot", "few-shot", "lora", "full")),
    Case("accuracy", 172, seeds=3, wobble=0.03),
)
PLANTED = (
    Case("accuracy", 120),
    Case("accuracy", 600),
    Case("accuracy", 172, ("zero-shot", "few-shot", "lora", "full")),
    Case("bits-per-byte", 40),
    Case("rmse", 100),
)


def climbed(case: Case, random: np.random.Generator, better: float = 0.0) -> tuple[Verdict, tuple[Comparison, ...]]:
    """One climb on rows drawn anew; trained rungs are `better` in the metric's unit (0: all are one model)."""
    examples, hard = _rows(case, case.n, random)
    floor = [Prediction(row.id, "", label=LABELS[0], number=0.0, nll=9.0, tokens=1, bytes=1) for row in examples]
    skills = {rung: [better] * case.seeds if rung in TRAINED else [0.0] for rung in case.rungs}
    skills = {
        rung: [own + random.normal() * case.wobble * (rung in TRAINED) for own in skills[rung]] for rung in skills
    }
    said = {rung: [_said(case, examples, hard, own, random) for own in skills[rung]] for rung in case.rungs}
    named = {"baseline": floor, **{rung: own[0] for rung, own in said.items()}}
    seeds = {rung: own[1:] for rung, own in said.items()}
    labels = LABELS if case.metric in ("accuracy", "f1-macro") else ()
    results = [
        RungResult(name, (scores.score(case.metric, examples, own, labels, 0.95, 50, 0, seeds.get(name, ())),))
        for name, own in named.items()
    ]
    draw = int(random.integers(1 << 30))
    pair = _chosen(case, skills, labels, random)
    pairs = scores.compare_all(named, case.metric, examples, labels, 0.95, RESAMPLES, draw, seeds, pair)
    goal = {"task": "classify", "metric": case.metric, "target": None}
    return verdict.decide(goal, results, pairs, case.n, trained=TRAINED), pairs


def _rows(case: Case, n: int, random: np.random.Generator) -> tuple[list[Example], np.ndarray]:
    hard = random.normal(size=n)
    rows = [Example("labelled", Where("rows.csv", i), id=str(i), label=_gold(case, i, hard)) for i in range(n)]
    return rows, hard


def _chosen(
    case: Case, skills: Mapping[str, Sequence[float]], labels: Sequence[str], random: np.random.Generator
) -> tuple[str, str]:
    """The best of either side on validation rows, half as many as test rows."""
    examples, hard = _rows(case, case.n // 2, random)

    def value(rung: str) -> float:
        said = _said(case, examples, hard, skills[rung][0], random)
        found = scores.score(case.metric, examples, said, labels, resamples=2)
        return found.value if found.higher else -found.value

    sides = [rung for rung in case.rungs if rung not in TRAINED], [rung for rung in case.rungs if rung in TRAINED]
    asked, tuned = (max(side, key=value) for side in sides)
    return asked, tuned


def _gold(case: Case, row: int, hard: np.ndarray) -> str | float:
    return LABELS[row % 2] if case.metric in ("accuracy", "f1-macro") else float(20 + 5 * hard[row])


def _said(
    case: Case, examples: Sequence[Example], hard: np.ndarray, gain: float, random: np.random.Generator
) -> list[Prediction]:
    """What one model says: right with a chance that falls with a row's difficulty, or off by so much."""
    if case.metric in ("accuracy", "f1-macro"):
        chance = 1 / (1 + np.exp(-1.4 + 1.5 * hard))
        chance = chance + gain * (1 - chance) / WRONG if gain > 0 else chance * (1 + gain / (1 - WRONG))
        right = random.random(len(hard)) < chance
        return [
            Prediction(row.id, "", label=str(row.label) if fine else LABELS[row.label == LABELS[0]])
            for row, fine in zip(examples, right, strict=True)
        ]
    if case.metric == "rmse":
        off = random.normal(size=len(hard)) * (2 - gain)
        return [Prediction(r.id, "", number=float(r.label) + x) for r, x in zip(examples, off, strict=True)]  # type: ignore[arg-type]
    bits = 1.5 + 0.3 * hard + 0.1 * random.normal(size=len(hard)) - gain
    return [
        Prediction(row.id, "", nll=float(own) * 100 * np.log(2), tokens=30, bytes=100)
        for row, own in zip(examples, bits, strict=True)
    ]


def claims(case: Case, draws: int, better: float = 0.0, seed: int = 0) -> float:
    """Share of climbs whose verdict says that tuning makes a difference."""
    random = np.random.default_rng([seed, case.n])
    return float(np.mean([bool(CLAIM.search(climbed(case, random, better)[0].sentence)) for _ in range(draws)]))


def any_claim(case: Case, draws: int) -> float:
    """Share of climbs in which any two rungs are called different after Holm, the floor left aside."""
    random = np.random.default_rng([1, case.n])
    return float(
        np.mean(
            [any(item.p_holm < 0.05 for item in climbed(case, random)[1] if item.a != "baseline") for _ in range(draws)]
        )
    )


def stated(case: Case, draws: int) -> float:
    """The smallest difference that the verdict's own note says these rows can show, on average over A/A climbs."""
    random = np.random.default_rng([2, case.n])
    found = []
    for _ in range(draws):
        told = " ".join(climbed(case, random)[0].notes)
        match = re.search(r"under ([\d.]+)( points)? cannot", told)
        assert match, told
        found.append(float(match[1]) / (100 if match[2] else 1))
    return float(np.mean(found))


def table(draws: int) -> Mapping[str, float]:
    """Every case as a line; case -> share."""
    told = {}
    print(f"{'A/A, ' + str(draws) + ' climbs each':52} tuning differs   any pair (Holm)")
    for case in NULLS:
        told[f"null {case}"] = claims(case, draws)
        print(f"{case!s:52} {told[f'null {case}']:13.1%} {any_claim(case, draws):17.1%}", flush=True)
    print(f"\n{'A/B, as much better as the verdict can see':52} stated           found")
    for case in PLANTED:
        least = stated(case, 60)
        told[f"planted {case}"] = claims(case, max(draws // 4, 1), least)
        print(f"{case!s:52} {least:13.3f} {told[f'planted {case}']:17.1%}", flush=True)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    told = table(asked.draws)
    if asked.json:
        print(json.dumps(told))


if __name__ == "__main__":
    main()
