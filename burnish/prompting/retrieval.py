"""Retrieval (RAG): passages of the person's own documents before each question, numbered and with their source.

How many, how long and found in which way is chosen on validation rows.  The artifact keeps the passages, so that it
answers the same when the documents have moved; what was read out of them lies in BURNISH_HOME and is read again only
where a file's bytes have changed.
Source: Lewis et al. 2020, Retrieval-Augmented Generation for Knowledge-Intensive NLP Tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from burnish.data import documents
from burnish.errors import ArtifactError, TaskError
from burnish.generate.answer import Answerer
from burnish.kinds import setting
from burnish.prompting import _encoder, _labels, _passages
from burnish.prompting._finder import KS, Finder, before
from burnish.prompting._passages import MODES, Hits, Passage
from burnish.prompting._search import Search, some
from burnish.prompting._world import Chosen, World
from burnish.records import Example, Prediction

COST = 22
STACKS = True  # also on a tuned model that has a language head
MODELS = ("decoder", "encoder-decoder")
FORM = {"lead": "", "passage": "[{n}] {source}\n{text}", "separator": "\n\n"}


@dataclass(frozen=True)
class Settings:
    """Keys of `retrieval:` in task.yaml."""

    documents: list[str] = setting([], "files, folders or globs (txt, md, html, pdf, docx) to look answers up in")
    k: list[int] = setting([1, 3], "numbers of passages in a prompt, to try", low=1, high=50)
    chunk: list[int] = setting([60, 150], "longest passage in words, to try", low=10, high=2000)
    encoder: str = setting("", "find passages also by a model's vectors: its folder, or base; empty: by words alone")
    budget: int = setting(600, "questions put to the model while searching", low=10)


def unfit(kind: str, goal: str, shape: str) -> str:
    """Why this rung makes no sense; '' when it does."""
    if kind not in MODELS:
        return f"an {kind} takes no passages"
    return "a text to go on from asks nothing that could be looked up" if shape == "document" else ""


def lacks(settings: Mapping[str, Any]) -> str:
    """What has to be set before this rung can begin; '' when nothing."""
    missing = [name for name in ("documents", "k", "chunk") if not settings[name]]
    return f"it has nothing to look in; set retrieval.{missing[0]}" if missing else ""


def stale(recipe: Mapping[str, Any], settings: Mapping[str, Any], root: str) -> bool:
    """Whether a document has come, gone or changed since the recipe was made."""
    found = documents.find(settings["documents"], root)
    return {item["name"]: item["sha256"] for item in recipe["documents"]} != {
        name: documents.sha256(path) for name, path in found.items()
    }


def choose(world: World) -> Chosen:
    """The number, length and way of finding of passages that do best on validation rows."""
    settings = Settings(**world.settings)
    if missing := lacks(vars(settings)):
        raise TaskError(f"retrieval cannot begin: {missing}", "retrieval", "name files or folders, and numbers")
    world.tell("retrieval: reading documents")
    read = [documents.load(*item) for item in documents.find(settings.documents, world.root).items()]
    encoder = _encoder.named(settings.encoder, world.root, world.answerer)
    trial = some(world.validation or world.train, settings.budget, world.seed, 7)
    finders: dict[tuple[int, str], Finder] = {}
    dense: dict[int, Tensor] = {}
    for size in settings.chunk:
        found = _passages.passages(read, size)
        vectors = _passages.vectors(found, encoder) if encoder else None
        if vectors is not None:
            dense[size] = torch.from_numpy(vectors)
        for mode in MODES if encoder else MODES[:1]:
            finders[size, mode] = Finder(found, _passages.index(found, mode, vectors, encoder))
    contract = world.answerer.contract
    shared = {"instruction": contract.instruction, **FORM}
    hits = {key: finder.hits(trial, contract.goal) for key, finder in finders.items()}
    usable = [key for key in finders if not _worse(hits, *key)]
    recipes = [
        {**shared, "chunk": size, "mode": mode, "k": k} for k in sorted(set(settings.k)) for size, mode in usable
    ]

    def ask(recipe: Mapping[str, Any], rows: Sequence[Example]) -> tuple[dict[str, list[Prediction]], int]:
        told = _answers(world.answerer, recipe, finders[recipe["chunk"], recipe["mode"]], rows)
        return {"plain": told}, len(rows)

    search = Search(
        world.metric, contract.labels, trial, ask, settings.budget, lambda text: world.tell(f"retrieval: {text}")
    )
    best = search.among("passages", recipes, 1.0)[0]
    search.keep(world.home, lambda recipe: _brief(recipe, hits))
    size, mode = best.recipe["chunk"], best.recipe["mode"]
    told = {key: best.recipe[key] for key in ("k", "chunk", "mode")}
    told |= {"documents": len(read), "passages": len(finders[size, mode].passages), "tried": len(search.tried)}
    told |= {"asked": settings.budget - search.left, "metric": world.metric, "validation_rows": best.rows}
    told["validation_best"] = search.value(best.goodness)
    if over := sorted({mode for _, mode in finders} - {mode for _, mode in usable}):
        told["passed_over"] = ", ".join(over)  # shown to find worse than another way
    own = hits[size, mode]
    told |= own.to_json(KS) if own else {"found_by": "nothing: no row has a source, and no answer stands in a passage"}
    by_meaning = encoder is not None and mode != "words"
    recipe = {
        **best.recipe,
        "encoder": dict(encoder.reference) if encoder and by_meaning else {},
        "documents": [{"name": item.name, "sha256": item.sha256} for item in read],
        "passages": [item.to_json() for item in finders[size, mode].passages],
    }
    return Chosen(recipe, told, {"passages": dense[size]} if by_meaning else {})


def answer(
    answerer: Answerer, recipe: Mapping[str, Any], tensors: Mapping[str, Tensor], rows: Sequence[Example]
) -> Iterator[Prediction]:
    """One Prediction for each row, with the sources of the passages it was given."""
    yield from _answers(answerer, recipe, _loaded(answerer, recipe, tensors), rows)


def shown(answerer: Answerer, recipe: Mapping[str, Any], tensors: Mapping[str, Tensor], row: Example) -> Example:
    """A question behind its passages, for a conversation; meta.sources says where they stand."""
    finder = _loaded(answerer, recipe, tensors)
    ready = _labels.worded(answerer, recipe["instruction"], {})
    asked, sources = before(ready, recipe, finder.find([row], recipe["k"])[0], row)
    return replace(asked, meta={**asked.meta, "sources": sources})


def _answers(
    answerer: Answerer, recipe: Mapping[str, Any], finder: Finder, rows: Sequence[Example]
) -> list[Prediction]:
    ready = _labels.worded(answerer, recipe["instruction"], {})
    asked = [before(ready, recipe, found, row) for found, row in zip(finder.find(rows, recipe["k"]), rows, strict=True)]
    told = ready.answer([made for made, _ in asked])
    return [replace(item, sources=tuple(sources)) for item, (_, sources) in zip(told, asked, strict=True)]


def _loaded(answerer: Answerer, recipe: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Finder:
    """The Finder of an artifact; raises ArtifactError where an edited recipe cannot be used."""
    try:
        found = [Passage(**item) for item in recipe["passages"]]
        vectors, encoder = None, None
        if recipe["mode"] != "words":
            vectors, encoder = tensors["passages"].numpy(), _encoder.again(recipe["encoder"], answerer)
            if len(vectors) != len(found):
                raise ValueError(f"there are {len(found)} passages and {len(vectors)} vectors")
        return Finder(found, _passages.index(found, recipe["mode"], vectors, encoder))
    except (KeyError, TypeError, ValueError) as problem:
        told = f"no {problem}" if isinstance(problem, KeyError) else str(problem)
        where = "artifact.json, recipe"
        raise ArtifactError(f"The recipe cannot be used: {told}", where, "mend what was edited") from None


def _worse(hits: Mapping[tuple[int, str], Hits | None], size: int, mode: str) -> bool:
    """Whether another way is shown to find the same passages better: a weak base's answers would not tell."""
    own, others = hits[size, mode], [item for (each, _), item in hits.items() if item and each == size]
    return own is not None and any(item.beats(own) for item in others)


def _brief(recipe: Mapping[str, Any], hits: Mapping[tuple[int, str], Any]) -> dict[str, Any]:
    """A recipe as a line of the trace, with how well its passages are found."""
    own = hits[recipe["chunk"], recipe["mode"]]
    return {key: recipe[key] for key in ("k", "chunk", "mode")} | (own.to_json(KS) if own else {})
