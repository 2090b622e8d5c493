"""In-context learning: examples in the prompt.  Which, how many, in what format and order is searched on validation.

The chosen prompt is the artifact: `recipe` says it in words that a person may read and edit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from burnish.errors import TaskError
from burnish.generate.answer import Answerer
from burnish.kinds import setting
from burnish.prompting import _asker, _demonstrations, _encoder, _format, _labels
from burnish.prompting._asker import Asker, Recipe
from burnish.prompting._demonstrations import FIXED, NEAR, ORDERS
from burnish.prompting._format import FORMATS, question
from burnish.prompting._pool import Pool, Vectors, bm25
from burnish.prompting._search import Search, Tried, some
from burnish.prompting._world import Chosen, World
from burnish.records import Example, Prediction

COST = 20
STACKS = True  # also on a tuned model that has a language head
MODELS = ("decoder",)
POOL = 5000  # training rows kept to find near ones among
MOST = 256  # demonstrations that `as many as fit` starts from
PROBE = 32  # unlabelled rows by which entropy judges an order


@dataclass(frozen=True)
class Settings:
    """Keys of `few-shot:` in task.yaml."""

    shots: list[int] = setting([2, 4, 8], "numbers of demonstrations to try; 0: as many as fit", low=0, high=256)
    choose: list[str] = setting(
        ["balanced", "nearest", "random", "diverse", "mmr"],
        "ways to choose them to try: random, balanced, diverse, nearest, mmr",
    )
    formats: list[str] = setting(["once", "turns", "text"], "how they stand, to try: once, turns, text, arrow")
    words: dict[str, str] = setting({}, "other words for the labels, to try, e.g. {ENTY: entity}")
    orders: int = setting(4, "random draws of each kind, and orders of the best set, to try", low=1, high=100)
    order: Literal["validation", "entropy"] = setting(
        "validation", "what picks the order: validation rows, or the entropy of answers to unlabelled rows"
    )
    calibrate: Literal["try", "always", "never"] = setting(
        "try", "divide label shares by those of questions without content: where it helps, always or never"
    )
    encoder: str = setting("", "find near rows also by a model's vectors: its folder, or base; empty: by words alone")
    # of candidates whose accuracy scatters by 6 points, 300 questions find one 3.6 points worse (docs/log.md)
    budget: int = setting(1000, "questions put to the model while searching", low=10)


def unfit(kind: str, goal: str, shape: str) -> str:
    """Why this rung makes no sense; '' when it does."""
    return "" if kind in MODELS else f"an {kind} takes no demonstrations"


def choose(world: World) -> Chosen:
    """The best of all candidates on validation rows (training rows if there are none), and how far they spread."""
    settings = Settings(**world.settings)
    rows = some(world.train, POOL, world.seed, 3)
    trial = some(world.validation or rows, settings.budget, world.seed, 5)
    encoder = _encoder.named(settings.encoder, world.root, world.answerer)
    pools: dict[str, Pool] = {"words": bm25(tuple(map(question, rows)))}
    vectors = encoder.vectors(list(map(question, rows))) if encoder else None
    if encoder and vectors is not None:
        pools["encoder"] = Vectors(vectors, encoder.vectors)
    asker = Asker(world.answerer, rows, pools)
    search = _search(asker, settings, world, trial)
    start = _start(asker, settings)
    first = search.among("demonstrations", _sets(settings, asker, world, start), 0.5)
    best = search.among("format", _formats(settings, asker, first[0].recipe), 0.5)[0]
    ordered = _ordered(search, settings, asker, world, best)
    best = ordered[0]
    near = best.recipe["choose"] in NEAR
    by_vectors = near and best.recipe["alike"] == "encoder"
    recipe = {
        **best.recipe,
        "calibrate": best.best == "calibrated",
        "encoder": dict(encoder.reference) if encoder and by_vectors else {},
        "pool": [row.to_json() for row in rows] if near else [],
    }
    search.keep(world.home, _brief)
    tensors = {"pool": torch.from_numpy(vectors)} if vectors is not None and by_vectors else {}
    return Chosen(recipe, _told(search, settings, best, ordered), tensors)


def answer(
    answerer: Answerer, recipe: Recipe, tensors: Mapping[str, Tensor], rows: Sequence[Example]
) -> Iterator[Prediction]:
    """One Prediction for each row, asked with the chosen demonstrations."""
    recipe = _whole(answerer, recipe)
    yield from _asker.loaded(answerer, recipe, tensors).answers(recipe, rows)


def shown(answerer: Answerer, recipe: Recipe, tensors: Mapping[str, Tensor], row: Example) -> Example:
    """A question behind the artifact's demonstrations, for a conversation."""
    recipe = _whole(answerer, recipe)
    asker = _asker.loaded(answerer, recipe, tensors)
    return asker.asked(recipe, row, asker.shown(recipe, [row])[0])[0]


def _whole(answerer: Answerer, recipe: Recipe) -> Recipe:
    """The recipe with what an older or a shortened one leaves unsaid."""
    return {**_plain(answerer.contract.instruction), "demonstrations": [], "pool": [], **recipe}


def _plain(instruction: str) -> dict[str, Any]:
    form = asdict(FORMATS["turns"])
    return {
        "instruction": instruction,
        "format": form,
        "words": {},
        "alike": "words",
        "order": "last",
        "calibrate": False,
    }


# --- candidates ----------------------------------------------------------------------------------------------


def _start(asker: Asker, settings: Settings) -> dict[str, Any]:
    """What candidates share before format and words are searched; TaskError for names that there are not."""
    contract = asker.answerer.contract
    for key, known in (("choose", (*FIXED, *NEAR)), ("formats", tuple(FORMATS))):
        for name in getattr(settings, key):
            if name not in known:
                raise TaskError(f'Unknown few-shot.{key} "{name}"', "few-shot", f"use some of {', '.join(known)}")
    words = settings.words
    if strange := sorted(set(words) - set(contract.labels)):
        raise TaskError(f'few-shot.words names "{strange[0]}", which is no label', "few-shot.words", "use the labels")
    if len({words.get(name, name) for name in contract.labels}) < len(contract.labels):
        raise TaskError("few-shot.words gives two labels the same word", "few-shot.words", "give each its own")
    return {**_plain(contract.instruction), "format": asdict(FORMATS[settings.formats[0]])} if settings.formats else {}


def _sets(settings: Settings, asker: Asker, world: World, start: Recipe) -> list[dict[str, Any]]:
    """Which demonstrations and how many, the cheapest first."""
    document, made = asker.answerer.contract.target == "document", []
    counts = (
        sorted({min(count or _most(asker, start), len(asker.rows)) for count in settings.shots} - {0}) if start else []
    )
    for shots in counts:
        for way in settings.choose:
            for alike in asker.pools:
                told = {**start, "choose": way, "alike": alike, "shots": shots, "seed": 0, "demonstrations": []}
                if way in NEAR and not document:
                    made.append(told)
                if way not in FIXED or (alike == "encoder" and way != "diverse"):
                    continue
                for seed in range(1 if way == "diverse" else settings.orders):
                    drawn = _demonstrations.drawn(
                        way, asker.rows, asker.pools[alike], shots, (world.seed, 4, shots, seed)
                    )
                    made.append({**told, "seed": seed, "demonstrations": [row.to_json() for row in drawn]})
    if not made:
        ways = ", ".join(FIXED if document else (*FIXED, *NEAR))
        raise TaskError("few-shot has nothing to try", "few-shot", f"use {ways} in few-shot.choose, a format and shots")
    return made


def _most(asker: Asker, start: Recipe) -> int:
    """How many demonstrations fit before a question of middling length."""
    if asker.answerer.contract.target == "document":
        return 8
    rows = sorted(asker.rows[:MOST], key=lambda row: len(question(row)))
    form = _format.read(start["format"])
    return max(_format.behind(asker.answerer, form, rows, rows[len(rows) // 2])[1], 1)


def _formats(settings: Settings, asker: Asker, recipe: Recipe) -> list[Recipe]:
    """The same demonstrations in every format and in every set of label words, as they are first."""
    contract = asker.answerer.contract
    if contract.target == "document":
        return [recipe]
    words: list[Mapping[str, str]] = [{}]
    if contract.goal == "classify":
        words += [told for told in (_labels.plainer(contract.labels), settings.words) if told]
    spoken = any(row.messages for row in asker.rows)  # the instruction is a system turn: once it is
    forms = [name for name in settings.formats if not (spoken and name == "turns" and "once" in settings.formats)]
    return [
        {
            **recipe,
            "format": asdict(FORMATS[name]),
            "words": dict(told),
            "instruction": _labels.instruction(asker.answerer, told),
        }
        for name in forms
        for told in words
    ]


def _orders(settings: Settings, world: World, recipe: Recipe) -> list[Recipe]:
    """The same demonstrations in other orders, as they are first."""
    if recipe["choose"] in NEAR:
        return [{**recipe, "order": order} for order in ORDERS[: settings.orders]]
    shown, draw = recipe["demonstrations"], np.random.default_rng((world.seed, 6))
    made = {tuple(range(len(shown))): recipe}
    for _ in range(settings.orders - 1):
        order = tuple(int(i) for i in draw.permutation(len(shown)))
        made.setdefault(order, {**recipe, "demonstrations": [shown[i] for i in order]})
    return list(made.values())


# --- search --------------------------------------------------------------------------------------------------


def _search(asker: Asker, settings: Settings, world: World, trial: Sequence[Example]) -> Search:
    calibrate = settings.calibrate != "never" and asker.answerer.chooses

    def ask(recipe: Recipe, rows: Sequence[Example]) -> tuple[dict[str, list[Prediction]], int]:
        told, asked = asker.variants(recipe, rows, calibrate)
        if calibrate and settings.calibrate == "always":
            told = {"calibrated": told["calibrated"]}
        return told, asked

    def price(recipe: Recipe) -> int:
        return 2 if calibrate and recipe["choose"] in NEAR else 1

    tell = lambda text: world.tell(f"few-shot: {text}")  # noqa: E731
    labels = asker.answerer.contract.labels
    return Search(world.metric, labels, trial, ask, settings.budget, tell, price)


def _ordered(search: Search, settings: Settings, asker: Asker, world: World, best: Tried) -> list[Tried]:
    """The best set in several orders, the best first; by entropy, only the order it picks is tried."""
    orders = _orders(settings, world, best.recipe)
    if settings.order == "entropy" and asker.answerer.contract.target != "document":
        if not asker.answerer.chooses:
            raise TaskError("few-shot.order: entropy needs labels to choose among", "few-shot.order", "use validation")
        used = {item["id"] for item in best.recipe["demonstrations"]}
        probe = [row for row in asker.rows if row.id not in used]
        probe = probe[: max(min(PROBE, search.left // (2 * len(orders))), 1)]
        found = []
        for order in orders:
            told, asked = asker.variants(order, probe, False)
            search.left -= asked
            found.append(_demonstrations.entropy(told["plain"]))
        orders = [orders[max(range(len(orders)), key=lambda i: found[i])]]
    return search.among("order", orders, 1.0, whole=True)


def _brief(recipe: Recipe) -> dict[str, Any]:
    """A recipe as a line of the trace: demonstrations by where they stand."""
    told = {key: value for key, value in recipe.items() if key not in ("demonstrations", "instruction")}
    return {**told, "demonstrations": [f"{item['file']}:{item['line']}" for item in recipe["demonstrations"]]}


def _told(search: Search, settings: Settings, best: Tried, ordered: Sequence[Tried]) -> dict[str, Any]:
    """What the report shows of the search."""
    values = [search.value(item.goodness) for item in search.tried if item.scores]
    orders = [search.value(item.goodness) for item in ordered]
    names = {str(asdict(form)): name for name, form in FORMATS.items()}
    told = {
        "choose": best.recipe["choose"] + (" by vectors" if best.recipe["alike"] == "encoder" else ""),
        "shots": best.recipe["shots"],
        "format": names[str(best.recipe["format"])],
        "order": best.recipe["order"] if best.recipe["choose"] in NEAR else settings.order,
        "words": "given" if not best.recipe["words"] else "other",
        "tried": len(search.tried),
        "asked": settings.budget - search.left,
        "metric": search.metric,
        "validation_best": search.value(best.goodness),
        "validation_mean": round(float(np.mean(values)), 4),
        "validation_worst": min(values) if search.higher else max(values),
        "validation_rows": best.rows,
        "orders_tried": len(orders),
        "orders_mean": round(float(np.mean(orders)), 4),
        "orders_min": min(orders),
        "orders_max": max(orders),
    }
    told |= {name: search.value(score) for name, score in best.scores.items()} if len(best.scores) > 1 else {}
    return told | ({"left_out": search.skipped} if search.skipped else {})
