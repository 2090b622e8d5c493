"""What each option of few-shot prompting does on real rows with the embedded base: a small search and 300 test rows.

BURNISH_SHARED=... python benchmarks/prompts.py [SET ...] [--small]     sets: sst2, trec, banking77
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from burnish.artifact import Artifact
from burnish.evaluate.predict import answerer
from burnish.models import base as models
from burnish.prompting import few_shot, zero_shot
from burnish.prompting._search import goodness
from burnish.prompting._world import World
from burnish.records import Example, Where
from burnish.task import Evaluate
from burnish.tokens import ask
from burnish.tokens.contract import Contract
from burnish.tokens.template import Template
from burnish.tokens.tokenizer import Tokenizer

BUDGET, TEST = (160, 100) if "--small" in sys.argv else (500, 300)
NEAR, FIXED = ["nearest", "mmr"], ["balanced", "random", "diverse"]
PLAIN = {"calibrate": "never", "formats": ["turns"], "orders": 2, "shots": [2, 4], "budget": BUDGET}
TRIALS = {
    "fixed": {**PLAIN, "choose": FIXED},
    "near by words": {**PLAIN, "choose": NEAR},
    "near by vectors": {**PLAIN, "choose": NEAR, "encoder": "base"},
    "calibrated": {**PLAIN, "choose": FIXED, "calibrate": "try"},
    "formats": {**PLAIN, "choose": FIXED, "formats": ["once", "turns", "text", "arrow"]},
    "entropy order": {**PLAIN, "choose": FIXED, "order": "entropy", "orders": 4},
    "all": {"budget": 2 * BUDGET, "encoder": "base", "shots": [2, 4, 0]},
}


def rows(name: str) -> Iterator[tuple[str, str]]:
    """(text, label) of a set."""
    shared = Path(os.environ["BURNISH_SHARED"], "data")
    if name == "banking77":
        with (shared / "intent-banking77" / "train.csv").open(encoding="utf-8") as stream:
            yield from ((row["text"], row["category"]) for row in csv.DictReader(stream))
        return
    path = shared / ("sentiment-sst2/train.txt" if name == "sst2" else "topic-trec/train.txt")
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        label, _, text = line.partition(" ")
        yield text, {"0": "negative", "1": "positive"}[label] if name == "sst2" else label.partition(":")[0]


def main(names: list[str]) -> dict[str, object]:
    """Accuracy on validation and test rows of every trial, and the spread over orders."""
    found = models.inspect("burnish-tiny")
    tokenizer = Tokenizer.load(found.folder)
    told: dict[str, object] = {}
    model = None
    for name in names:
        every = [Example("labelled", Where(name, i + 1), text=t, label=y) for i, (t, y) in enumerate(rows(name))]
        every = [every[i] for i in np.random.default_rng(0).permutation(len(every))]
        test, held, train = every[:TEST], every[TEST : TEST + 300], every[TEST + 300 : TEST + 1300]
        labels = tuple(sorted({str(row.label) for row in every}))
        template = Template.choose("auto", "labelled", tokenizer)
        contract = Contract(
            *("classify", "labelled", "answers", template.name, template.text, found.context, "error", "language"),
            labels=labels,
            instruction=ask.instruction("classify", labels),
        )
        ready = answerer(Artifact("zero-shot", found, contract), Evaluate(), model)
        model = ready.model
        world = World(ready, train, held, "accuracy", {})
        zero = list(zero_shot.answer(ready, zero_shot.choose(world).recipe, {}, test))
        own: dict[str, object] = {"zero-shot": {"test": goodness("accuracy", test, zero, labels)[0]}}
        for trial, settings in TRIALS.items():
            made = few_shot.choose(World(ready, train, held, "accuracy", settings))
            said = list(few_shot.answer(ready, made.recipe, made.tensors, test))
            own[trial] = {"test": round(goodness("accuracy", test, said, labels)[0], 4), **made.shown}
            print(name, trial, json.dumps(own[trial]), flush=True)
        told[name] = own
    return told


if __name__ == "__main__":
    chosen = [name for name in sys.argv[1:] if not name.startswith("--")] or ["sst2", "trec", "banking77"]
    print(json.dumps(main(chosen)))
