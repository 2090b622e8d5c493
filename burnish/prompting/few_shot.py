"""In-context learning: examples in the prompt.  How many, which, and in what order is searched on validation rows.

Demonstrations stand as earlier turns of the conversation (for documents: passages before the text), so they are read
by the same template as everything else.  The chosen prompt is the artifact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from burnish import kinds
from burnish.errors import TaskError
from burnish.generate.answer import Answerer
from burnish.kinds import setting
from burnish.prompting._pool import Bm25
from burnish.prompting._world import Chosen, World
from burnish.records import Example, Prediction
from burnish.tokens import ask

COST = 20
MODELS = ("decoder",)
WAYS = ("random", "nearest")
POOL = 5000  # training rows kept to find near ones among


@dataclass(frozen=True)
class Settings:
    """Keys of `few-shot:` in task.yaml."""

    shots: list[int] = setting([2, 4, 8], "numbers of demonstrations to try", low=1, high=256)
    choose: list[str] = setting(["random", "nearest"], "ways to choose them to try: random, nearest")
    orders: int = setting(3, "random draws and orders to try for each number", low=1, high=100)
    rows: int = setting(120, "validation rows that each candidate is tried on", low=1)


def unfit(kind: str, goal: str, shape: str) -> str:
    """Why this rung makes no sense; '' when it does."""
    return "" if kind in MODELS else f"an {kind} takes no demonstrations"


def choose(world: World) -> Chosen:
    """The best of all candidates on validation rows (training rows if there are none), and how far they spread."""
    settings = Settings(**world.settings)
    pool = _some(world.train, POOL, world.seed, 3)
    trial = _some(world.validation or pool, settings.rows, world.seed, 5)
    tried = []
    candidates = list(_candidates(settings, pool, world))
    if not candidates or not set(settings.choose) <= set(WAYS):
        ways = "random" if world.answerer.contract.target == "document" else " and ".join(WAYS)
        raise TaskError("few-shot has nothing to try", "few-shot", f"use {ways} in few-shot.choose, and a shots number")
    for number, recipe in enumerate(candidates):
        world.tell(f"few-shot: candidate {number + 1} of {len(candidates)}")
        predictions = list(_answers(world.answerer, recipe, pool, trial))
        tried.append((_goodness(world.metric, trial, predictions, world.answerer.contract.labels), recipe))
    best, recipe = max(tried, key=lambda item: item[0])  # the first of equals: fewer demonstrations
    sign = 1 if kinds.load("metrics", world.metric).HIGHER else -1
    scores = [score[0] for score, _ in tried]
    told = {
        "choose": recipe["choose"],
        "shots": recipe["shots"],
        "tried": len(tried),
        "metric": world.metric,
        "validation_best": round(sign * best[0], 4),
        "validation_worst": round(sign * min(scores), 4),
        "validation_rows": len(trial),
    }
    kept = [row.to_json() for row in pool] if recipe["choose"] == "nearest" else []
    search = [[sign * score[0], item["choose"], item["shots"], item["seed"]] for score, item in tried]
    return Chosen({**recipe, "pool": kept, "search": search}, told)


def answer(
    answerer: Answerer, recipe: Mapping[str, Any], tensors: Mapping[str, Tensor], rows: Sequence[Example]
) -> Iterator[Prediction]:
    """One Prediction for each row, asked with the chosen demonstrations."""
    yield from _answers(answerer, recipe, [Example.from_json(row) for row in recipe["pool"]], rows)


def shown(answerer: Answerer, recipe: Mapping[str, Any], row: Example) -> Example:
    """A question behind the artifact's demonstrations, for a conversation."""
    pool = [Example.from_json(item) for item in recipe["pool"]]
    index = Bm25([_question(item) for item in pool]) if recipe["choose"] == "nearest" else None
    return ask_with(answerer, recipe, pool, index, row)


def ask_with(
    answerer: Answerer, recipe: Mapping[str, Any], pool: Sequence[Example], index: Bm25 | None, row: Example
) -> Example:
    """The row as a question behind its demonstrations, as many as fit (the least alike, or the first, leave first)."""
    if index is None:
        shown = [Example.from_json(item) for item in recipe["demonstrations"]]
    else:  # the nearest stands last, right before the question
        shown = [pool[i] for i in reversed(index.nearest(_question(row), recipe["shots"] + 1))]
    shown = [item for item in shown if item.id != row.id][-recipe["shots"] :]
    spoken = ask.as_messages(row, answerer.contract.instruction, bool(row.messages) or row.label is not None)
    opening = [turn for turn in spoken.messages if turn.role == "system"]
    rest = [turn for turn in spoken.messages if turn.role != "system"]
    while True:
        turns = []
        for item in shown:
            turns += [
                turn for turn in ask.as_messages(item, answerer.contract.instruction).messages if turn.role != "system"
            ]
        question = replace(spoken, messages=tuple(opening + turns + rest))
        asked = answerer.encoding.prompt_ids(answerer.spoken(question, with_answer=False).messages)
        if not shown or len(asked) + answerer.room <= answerer.encoding.max_length:
            return replace(question, shape="conversation")
        shown = shown[1:]


def _answers(
    answerer: Answerer, recipe: Mapping[str, Any], pool: Sequence[Example], rows: Sequence[Example]
) -> Iterator[Prediction]:
    if answerer.contract.target == "document":
        passages = [Example.from_json(item) for item in recipe["demonstrations"]]
        yield from answerer.documents(rows, _passages(answerer, passages))
        return
    index = Bm25([_question(row) for row in pool]) if recipe["choose"] == "nearest" else None
    yield from answerer.answer([ask_with(answerer, recipe, pool, index, row) for row in rows])


def _passages(answerer: Answerer, passages: Sequence[Example]) -> list[int]:
    """ids of the passages' beginnings, sharing half of the context."""
    share = answerer.encoding.max_length // 2 // max(len(passages), 1)
    ids: list[int] = []
    for row in passages:
        ids += answerer.tokenizer.encode_plain(row.text or row.surface)[:share]
    return ids


def _question(row: Example) -> str:
    """What stands before the answer: demonstrations must not be found by an answer that is to be given."""
    return "\n".join(turn.content for turn in row.prompt) if row.messages else row.surface


def _some(rows: Sequence[Example], most: int, *seed: int) -> list[Example]:
    """At most so many rows, drawn at random: a file may be sorted by class."""
    return [rows[int(i)] for i in np.random.default_rng(seed).permutation(len(rows))[:most]]


def _candidates(settings: Settings, pool: Sequence[Example], world: World) -> Iterator[dict[str, Any]]:
    """Every recipe to try, the cheapest first."""
    document = world.answerer.contract.target == "document"
    for shots in sorted({min(count, len(pool)) for count in settings.shots if pool}):
        for way in settings.choose:
            if way == "nearest" and not document:
                yield {"choose": way, "shots": shots, "seed": 0, "demonstrations": []}
            if way == "random":
                for seed in range(settings.orders):
                    drawn = _drawn(pool, shots, np.random.default_rng([world.seed, 4, shots, seed]))
                    yield {
                        "choose": way,
                        "shots": shots,
                        "seed": seed,
                        "demonstrations": [pool[i].to_json() for i in drawn],
                    }


def _drawn(pool: Sequence[Example], shots: int, draw: np.random.Generator) -> list[int]:
    """Rows drawn label by label in turn (all alike where there are no labels), in random order."""
    order = draw.permutation(len(pool))
    by_label: dict[object, list[int]] = {}
    for i in order:
        label = pool[int(i)].label
        by_label.setdefault(None if isinstance(label, float) else label, []).append(int(i))
    queues = list(by_label.values())
    taken: list[int] = []
    while len(taken) < shots:
        queues = [queue for queue in queues if queue]
        taken += [queue.pop() for queue in queues][: shots - len(taken)]
    return [taken[int(i)] for i in draw.permutation(len(taken))]


def _goodness(
    metric: str, rows: Sequence[Example], predictions: Sequence[Prediction], labels: Sequence[str]
) -> tuple[float, float]:
    """(the goal's metric with its sign turned so that more is better, minus nll) for choosing among candidates."""
    module = kinds.load("metrics", metric)
    value = module.value(
        np.array([module.components(r, p, labels) for r, p in zip(rows, predictions, strict=True)], float)
    )
    sure = [
        np.log(max((p.probabilities or {}).get(str(r.label), 1.0), 1e-9)) - (p.nll or 0.0)
        for r, p in zip(rows, predictions, strict=True)
    ]
    return float(value if module.HIGHER else -value), float(np.mean(sure))
