"""What few-shot prompting's search brings on real rows: each of its options, and more or fewer questions.

    BURNISH_SHARED=... python benchmarks/prompts.py [SET ...] [--small]
    BURNISH_SHARED=... python benchmarks/prompts.py --budgets [SET ...] [--seeds=3] [--most=3000]
    python benchmarks/prompts.py --simulate [--seeds=40]

sets: sst2, snips, trec, banking77.  The embedded base; test rows are held out of the TRAINING file, so that nobody's
test set is used up.  `--budgets` searches with 100, 300, 1,000 and 3,000 questions from each seed and scores what is
found on the same rows; differences carry an interval over rows and seeds.  `--simulate` asks no model: candidates have
known accuracies, spread as a model's would be that does learn from its prompt, which no model at hand does.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from burnish.artifact import Artifact
from burnish.evaluate.predict import answerer
from burnish.evaluate.scores import Scoring
from burnish.evaluate.statistics import components
from burnish.generate.answer import Answerer
from burnish.models import base as models
from burnish.prompting import few_shot, zero_shot
from burnish.prompting._search import Search, goodness
from burnish.prompting._world import World
from burnish.records import Example, Prediction, Where
from burnish.task import Evaluate
from burnish.tokens import ask
from burnish.tokens.contract import Contract
from burnish.tokens.template import Template
from burnish.tokens.tokenizer import Tokenizer

BUDGET, TEST = 500, 300  # questions of a search; test rows
SMALL = 160, 100
NEAR, FIXED = ["nearest", "mmr"], ["balanced", "random", "diverse"]
PLAIN = {"calibrate": "never", "formats": ["turns"], "orders": 2, "shots": [2, 4]}
TRIALS: dict[str, dict[str, Any]] = {
    "fixed": {**PLAIN, "choose": FIXED},
    "near by words": {**PLAIN, "choose": NEAR},
    "near by vectors": {**PLAIN, "choose": NEAR, "encoder": "base"},
    "calibrated": {**PLAIN, "choose": FIXED, "calibrate": "try"},
    "formats": {**PLAIN, "choose": FIXED, "formats": ["once", "turns", "text", "arrow"]},
    "entropy order": {**PLAIN, "choose": FIXED, "order": "entropy", "orders": 4},
    "all": {"encoder": "base", "shots": [2, 4, 0]},  # with twice the questions
}


@dataclass(frozen=True)
class Rows:
    """The sides of a set, and the base ready to be asked about them."""

    ready: Answerer
    train: Sequence[Example]
    held: Sequence[Example]
    test: Sequence[Example]

    @property
    def labels(self) -> tuple[str, ...]:
        return self.ready.contract.labels


def rows(name: str) -> Iterator[tuple[str, str]]:
    """(text, label) of a set's training file."""
    shared = Path(os.environ["BURNISH_SHARED"], "data")
    if name == "banking77":
        with (shared / "intent-banking77" / "train.csv").open(encoding="utf-8") as stream:
            yield from ((row["text"], row["category"]) for row in csv.DictReader(stream))
        return
    if name == "snips":
        for path in sorted((shared / "intent-snips").glob("train_*.json")):
            for intent, told in json.loads(path.read_text(encoding="utf-8", errors="replace")).items():
                yield from (("".join(part["text"] for part in item["data"]).strip(), intent) for item in told)
        return
    path = shared / ("sentiment-sst2/train.txt" if name == "sst2" else "topic-trec/train.txt")
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        label, _, text = line.partition(" ")
        yield text, {"0": "negative", "1": "positive"}[label] if name == "sst2" else label.partition(":")[0]


def sides(name: str, test: int, held: int, train: int) -> Rows:
    """At most so many rows of each side, the same ones every time."""
    found = models.inspect("burnish-tiny")
    tokenizer = Tokenizer.load(found.folder)
    told = dict.fromkeys(rows(name))
    every = [Example("labelled", Where(name, i + 1), text=text, label=label) for i, (text, label) in enumerate(told)]
    every = [every[i] for i in np.random.default_rng(0).permutation(len(every))]
    labels = tuple(sorted({str(row.label) for row in every}))
    template = Template.choose("auto", "labelled", tokenizer)
    contract = Contract(
        *("classify", "labelled", "answers", template.name, template.text, found.context, "error", "language"),
        labels=labels,
        instruction=ask.instruction("classify", labels),
    )
    ready = answerer(Artifact("zero-shot", found, contract), Evaluate())
    test, held = min(test, len(every) // 3), min(held, len(every) // 3)
    return Rows(ready, every[test + held :][:train], every[test : test + held], every[:test])


def options(name: str, budget: int, test: int) -> dict[str, object]:
    """Accuracy on validation and test rows of every trial, and the spread over orders."""
    of = sides(name, test, 300, 1000)
    zero = list(
        zero_shot.answer(of.ready, zero_shot.choose(World(of.ready, (), (), "accuracy", {})).recipe, {}, of.test)
    )
    own: dict[str, object] = {"zero-shot": {"test": goodness("accuracy", of.test, zero, of.labels)[0]}}
    for trial, settings in TRIALS.items():
        settings = {"budget": budget * (2 if trial == "all" else 1), **settings}
        made = few_shot.choose(World(of.ready, of.train, of.held, "accuracy", settings))
        said = list(few_shot.answer(of.ready, made.recipe, made.tensors, of.test))
        own[trial] = {"test": round(goodness("accuracy", of.test, said, of.labels)[0], 4), **made.shown}
        print(name, trial, json.dumps(own[trial]), flush=True)
    return own


def budgets(name: str, seeds: int, most: int) -> dict[str, object]:
    """Test accuracy by the questions a search may put, from each seed; differences from the largest budget."""
    of = sides(name, 500, 1000, 5000)
    told: dict[str, dict[str, object]] = {}
    said: dict[int, list[list[Prediction]]] = {}
    for budget in (size for size in (100, 300, 1000, 3000) if size <= most):
        said[budget], own = [], []
        for seed in range(seeds):
            clock = time.monotonic()
            made = few_shot.choose(World(of.ready, of.train, of.held, "accuracy", {"budget": budget}, seed))
            seconds = time.monotonic() - clock
            said[budget].append(list(few_shot.answer(of.ready, made.recipe, made.tensors, of.test)))
            test = goodness("accuracy", of.test, said[budget][-1], of.labels)[0]
            own.append({"test": round(test, 4), "seconds": round(seconds, 1), **made.shown})
            print(name, budget, seed, json.dumps(own[-1]), flush=True)
        told[str(budget)] = {"mean": round(float(np.mean([item["test"] for item in own])), 4), "seeds": own}
    scored = {budget: Scoring("accuracy", of.test, of.labels).seeded(every) for budget, every in said.items()}
    largest = scored.pop(max(scored))
    for budget, score in scored.items():
        gap = components(score, len(of.test), largest)
        told[str(budget)]["against_largest"] = [round(part, 4) for part in (gap.value, gap.low, gap.high, gap.p)]
        print(name, budget, "less the largest: difference, low, high, p", told[str(budget)]["against_largest"])
    return {"test_rows": len(of.test), "validation_rows": len(of.held), **told}


def simulated(spread: float, budget: int, seed: int) -> tuple[float, float, float]:
    """True accuracy of what a search chose, of its candidates on average, and of the best of them.

    spread: standard deviation of the accuracy over sets of demonstrations; formats and orders have half of it.
    Whether a candidate is right on a row is a threshold on a normal number, half of which is the row's own.
    """
    draw, rows = np.random.default_rng((seed, 1)), 500
    trial = [Example("labelled", Where("simulated", i), text=str(i), label="yes") for i in range(rows)]
    hard = draw.normal(size=rows)
    accuracy: dict[tuple[int, ...], float] = {(): 0.6}

    def told(recipe: Mapping[str, Any], asked: Sequence[Example]) -> tuple[dict[str, list[Prediction]], int]:
        cut, own = NormalDist().inv_cdf(accuracy[recipe["at"]]), np.random.default_rng((seed, 2, *recipe["at"]))
        noise = own.normal(size=rows)[[row.where.line for row in asked]]
        right = (hard[[row.where.line for row in asked]] + noise) / np.sqrt(2) < cut
        said = [Prediction(row.id, "", label="yes" if fine else "no") for row, fine in zip(asked, right, strict=True)]
        return {"plain": said}, len(asked)

    def near(at: tuple[int, ...], many: int, sd: float) -> list[dict[str, Any]]:
        """Candidates that differ from one in one respect; the first is that one."""
        for i in range(many):
            here = accuracy[at] + draw.normal() * sd * (i > 0 or not at)
            accuracy[*at, i] = float(np.clip(here, 0.05, 0.95))
        return [{"at": (*at, i)} for i in range(many)]

    search = Search("accuracy", ("no", "yes"), trial, told, budget, lambda text: None)
    at: tuple[int, ...] = ()
    for stage, many, sd, share in (("demonstrations", 33, 1.0, 0.5), ("format", 5, 0.5, 0.5), ("order", 4, 0.5, 1.0)):
        at = search.among(stage, near(at, many, sd * spread), share, whole=stage == "order")[0].recipe["at"]
    sets = [value for key, value in accuracy.items() if len(key) == 1]
    return accuracy[at], float(np.mean(sets)), max(accuracy.values())


def main() -> dict[str, object]:
    """Every set that is asked for."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("sets", nargs="*", metavar="SET")
    for flag in ("small", "budgets", "simulate"):
        words.add_argument(f"--{flag}", action="store_true")
    words.add_argument("--seeds", type=int, help="3 for --budgets, 40 for --simulate")
    words.add_argument("--most", type=int, default=3000)
    asked = words.parse_args()
    if asked.simulate:
        many = range(asked.seeds or 40)
        return {
            f"spread {spread}, {budget} questions": dict(
                zip(
                    ("chosen", "mean", "best"),
                    np.mean([simulated(spread, budget, i) for i in many], 0).round(3),
                    strict=True,
                )
            )
            for spread in (0.03, 0.06, 0.1)
            for budget in (100, 300, 1000, 3000)
        }
    if "BURNISH_SHARED" not in os.environ:
        words.error("set BURNISH_SHARED to the folder that holds data/")
    if asked.budgets:
        names = asked.sets or ["sst2", "snips", "banking77"]
        return {name: budgets(name, asked.seeds or 3, asked.most) for name in names}
    size = SMALL if asked.small else (BUDGET, TEST)
    return {name: options(name, *size) for name in asked.sets or ["sst2", "trec", "banking77"]}


if __name__ == "__main__":
    print(json.dumps(main()))
