"""Rows to be answered: the same columns as the training data, without needing the answer.

In: a file and the shape and columns an artifact was made with.  Out: for each row of the file, in its order, the row
as it stands and the Example to ask (or what is wrong with it).  Nothing is dropped or joined: predictions must line
up with the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from burnish import kinds
from burnish.data import readers
from burnish.data.files import Source
from burnish.data.rows import Bad, ShapeProblem, mostly, one
from burnish.errors import DataError
from burnish.records import Example, Message, Problem

# what a bare line stands for
ASKED = {"labelled": "text", "prompt": "prompt", "instruction": "instruction", "preference": "prompt"}
SLIP = ("data.files; names start at the task's folder", "the name")
ANSWER = {"prompt": "completion", "instruction": "output", "labelled": "label"}


@dataclass(frozen=True)
class Question:
    """One row: its columns as read, and the Example to ask or the Problem it has."""

    values: Mapping[str, Any]
    example: Example | None
    problem: Problem | None


def questions(name: str, shape: str, columns: Mapping[str, Any], labels: Sequence[str] = ()) -> Iterator[Question]:
    """Every row of a file or folder; raises DataError when none of them has the columns that are asked for.

    labels: the classes the artifact knows.  Lines of a text file that begin with one are read as `LABEL text`; other
    lines are questions as they stand.
    """
    try:
        sources = readers.find([name])
    except DataError as problem:
        raise DataError(problem.what, problem.where, problem.do.replace(*SLIP)) from None
    mode = readers.text_mode(sources, shape, "", dict(columns))
    if shape in ASKED and mode != "line" and all(source.format == "txt" for source in sources):
        mode = "labelled" if labels and _labelled(sources[0], labels) else "line"
        columns = dict(columns) if mode == "labelled" else {**columns, ASKED[shape]: "line"}
    wanted = {role: column for role, column in columns.items() if role not in _answers(shape)}
    for source in sources:
        rows = readers.read(source, mode)
        first = list(islice(rows, 1))
        if first and not isinstance(first[0], Bad) and not _present(wanted, first[0].values):
            have = ", ".join(first[0].values) or "none"
            raise DataError(
                f"The columns {', '.join(map(str, wanted.values()))} that this artifact reads are not there",
                str(first[0].where),
                f"name the columns as in the training data; this file has: {have}",
            )
        for item in (*first, *rows):
            if isinstance(item, Bad):
                yield Question({}, None, item.problem)
                continue
            try:
                yield Question(item.values, _example(item.values, item.where, shape, columns), None)
            except ShapeProblem as problem:
                told = Problem(f"{problem.field}: {problem.what}", str(item.where), problem.do)
                yield Question(item.values, None, told)


def _labelled(source: Source, labels: Sequence[str]) -> bool:
    """Whether the first lines of a text file begin with classes."""
    head = [item.values["line"] for item in islice(readers.read(source, "line"), 100) if not isinstance(item, Bad)]
    return mostly(head, lambda line: str(line).split(maxsplit=1)[:1] in [[label] for label in labels])


def _answers(shape: str) -> tuple[str, ...]:
    own = {"labelled": ("label", "labels", "number"), "choices": ("answer", "letter", "index", "number")}
    own |= {"preference": ("chosen", "rejected")}
    return {**own, "prompt": ("completion",), "instruction": ("output",)}.get(shape, ())


def _present(wanted: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    flat = [name for column in wanted.values() for name in (column if isinstance(column, list) else [column])]
    return not flat or any(name in values or name == "line" for name in flat[:1])


def _example(values: Mapping[str, Any], where: Any, shape: str, columns: Mapping[str, Any]) -> Example:
    """The row read by its own shape, an absent answer filled in for the reading and taken out again."""
    module = kinds.load("data/shapes", shape)
    if shape == "conversation":
        told = dict(values)
        column = one(columns, "messages")
        turns = told.get(column)
        if isinstance(turns, list) and turns and isinstance(turns[-1], dict):
            last = turns[-1].get("role", turns[-1].get("from"))
            if last not in ("assistant", "gpt"):
                name = ("from", "value", "gpt") if "from" in turns[-1] else ("role", "content", "assistant")
                told[column] = [*turns, {name[0]: name[2], name[1]: "?"}]
        example: Example = module.to_example(told, columns, where)
        return replace(example, messages=_open(example.messages), id="")
    if shape == "labelled":
        text, second = str(values.get(columns["text"]) or ""), columns.get("pair")
        if not text.strip():
            raise ShapeProblem("is empty", str(columns["text"]), "fill it in")
        return Example(shape, where, text=text, pair=str(values.get(second) or "") if second else None)
    if shape == "choices":
        asked: Example = module.question(values, columns, where)
        return asked
    if shape == "preference":
        unknown = {one(columns, role): mark for role, mark in (("chosen", "?"), ("rejected", "-"))}
        ranked: Example = module.to_example({**values, **unknown} if "prompt" in columns else values, columns, where)
        return replace(ranked, messages=ranked.prompt, choices=(), id="")
    answer = columns.get(ANSWER.get(shape, ""))
    told = {**values, answer: "?"} if isinstance(answer, str) else dict(values)
    example = module.to_example(told, columns, where)
    return replace(example, messages=_open(example.messages), id="")


def _open(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    return messages[:-1] if messages and messages[-1].role == "assistant" else messages
