"""A few-shot recipe at work: rows in, Predictions out, plain and calibrated.

The same code answers while the recipe is searched and when it is loaded from an artifact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from burnish.errors import ArtifactError
from burnish.generate.answer import Answerer
from burnish.prompting import _demonstrations, _encoder, _format, _labels
from burnish.prompting._demonstrations import NEAR
from burnish.prompting._format import question
from burnish.prompting._pool import Pool, Vectors, bm25
from burnish.records import Example, Prediction

Recipe = Mapping[str, Any]


@dataclass(frozen=True)
class Asker:
    """answerer: the base.  rows: training rows to find near ones among.  pools: indexes over them, by `alike`.

    spoken: the Answerer in the words of each recipe.  leanings: answers to questions without content, each asked once.
    """

    answerer: Answerer
    rows: Sequence[Example]
    pools: Mapping[str, Pool]
    spoken: dict[tuple[object, ...], Answerer] = field(default_factory=dict)
    leanings: dict[tuple[object, ...], Prediction] = field(default_factory=dict)

    def ready(self, recipe: Recipe) -> Answerer:
        """The Answerer in the recipe's words."""
        key = _said(recipe)
        if key not in self.spoken:
            self.spoken[key] = _labels.worded(self.answerer, recipe["instruction"], recipe["words"])
        return self.spoken[key]

    def shown(self, recipe: Recipe, rows: Sequence[Example]) -> list[list[Example]]:
        """The demonstrations of each row, never the row itself."""
        if recipe["choose"] not in NEAR:
            fixed = [Example.from_json(item) for item in recipe["demonstrations"]]
            return [[item for item in fixed if item.id != row.id] for row in rows]
        pool = self.pools[recipe["alike"]]
        queries = pool.queries([question(row) for row in rows])
        return [_demonstrations.near(recipe, self.rows, pool, *each) for each in zip(queries, rows, strict=True)]

    def asked(self, recipe: Recipe, row: Example, shown: Sequence[Example]) -> tuple[Example, list[Example]]:
        """(the row behind its demonstrations, those of them that fit)."""
        words, form = recipe["words"], _format.read(recipe["format"])
        told = [_labels.in_words(item, words) for item in shown]
        made, kept = _format.behind(self.ready(recipe), form, told, _labels.in_words(row, words))
        return made, list(shown[len(shown) - kept :])

    def answers(self, recipe: Recipe, rows: Sequence[Example]) -> list[Prediction]:
        """A Prediction for each row; calibrated where the recipe says so."""
        told = self.variants(recipe, rows, bool(recipe["calibrate"]))[0]
        return told["calibrated" if recipe["calibrate"] else "plain"]

    def variants(
        self, recipe: Recipe, rows: Sequence[Example], calibrate: bool
    ) -> tuple[dict[str, list[Prediction]], int]:
        """(Predictions as the model gives them and, if wanted, calibrated; how many questions were asked)."""
        if self.answerer.contract.target == "document":
            return {"plain": self.answerer.documents(rows, self._passages(recipe))}, len(rows)
        ready, words = self.ready(recipe), recipe["words"]
        prompts, kept = [], []
        for row, shown in zip(rows, self.shown(recipe, rows), strict=True):
            made, fitting = self.asked(recipe, row, shown)
            prompts.append(made)
            kept.append(fitting)
        if not calibrate or not ready.chooses:
            return {"plain": [_labels.in_labels(item, words) for item in ready.answer(prompts)]}, len(rows)
        places: dict[tuple[str, ...], Sequence[Example]] = {}
        keys = [tuple(item.id for item in fitting) for fitting in kept]
        for key, fitting in zip(keys, kept, strict=True):
            places.setdefault(key, fitting)
        texts = blank_texts(recipe)
        blanks = [
            self.asked(recipe, _labels.blank(rows[keys.index(key)], text), fitting)[0]
            for key, fitting in places.items()
            for text in texts
        ]
        new = {(*_said(recipe), item.messages): item for item in blanks}
        new = {key: item for key, item in new.items() if key not in self.leanings}
        together = ready.answer([*prompts, *new.values()])  # what they share runs once
        said = [_labels.in_labels(item, words) for item in together]
        self.leanings.update(zip(new, said[len(rows) :], strict=True))
        found = [self.leanings[*_said(recipe), item.messages] for item in blanks]
        leaning = {key: found[i * len(texts) : (i + 1) * len(texts)] for i, key in enumerate(places)}
        plain = said[: len(rows)]
        fair = [_labels.calibrated(item, leaning[key]) for item, key in zip(plain, keys, strict=True)]
        return {"plain": plain, "calibrated": fair}, len(rows) + len(new)

    def _passages(self, recipe: Recipe) -> list[int]:
        """ids of the passages' beginnings, sharing half of the context."""
        share = self.answerer.encoding.max_length // 2 // max(len(recipe["demonstrations"]), 1)
        ids: list[int] = []
        for item in recipe["demonstrations"]:
            row = Example.from_json(item)
            ids += self.answerer.tokenizer.encode_plain(row.text or row.surface)[:share]
        return ids


def _said(recipe: Recipe) -> tuple[object, ...]:
    """What decides how a recipe's questions are worded and answered, besides their turns."""
    return recipe["instruction"], tuple(sorted(recipe["words"].items()))


def blank_texts(recipe: Recipe) -> Sequence[str]:
    """Questions without content: one where every row has a context of its own, for it is asked once a context."""
    return _labels.BLANK[:1] if recipe["choose"] in NEAR else _labels.BLANK


def loaded(answerer: Answerer, recipe: Recipe, tensors: Mapping[str, Tensor]) -> Asker:
    """The Asker of an artifact; raises ArtifactError where an edited recipe cannot be used."""
    try:
        _format.read(recipe["format"])
        for item in recipe["demonstrations"]:
            Example.from_json(item)
        rows = [Example.from_json(item) for item in recipe["pool"]]
        pools: dict[str, Pool] = {}
        if recipe["choose"] in NEAR and recipe["alike"] == "encoder":
            vectors = tensors["pool"].numpy()
            if len(vectors) != len(rows):
                raise ValueError(f"the pool has {len(rows)} rows and {len(vectors)} vectors")
            pools["encoder"] = Vectors(vectors, _encoder.again(recipe["encoder"], answerer).vectors)
        elif recipe["choose"] in NEAR:
            pools["words"] = bm25(tuple(map(question, rows)))
        return Asker(answerer, rows, pools)
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        told = f"no {problem}" if isinstance(problem, KeyError) else str(problem)
        raise ArtifactError(
            f"The recipe cannot be used: {told}", "artifact.json, recipe", "mend what was edited"
        ) from None
