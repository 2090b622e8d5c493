"""Rows to Examples by a guessed or given shape, and `look`: what a file seems to hold.

In: files.  Out: Examples and Bad rows, one after the other; a Guess for `burnish init`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from burnish import kinds
from burnish.data import readers
from burnish.data.files import Source
from burnish.data.guess import SAMPLE, Choice, choose
from burnish.data.readers import TextMode
from burnish.data.rows import SHOWN, Bad, Row, ShapeProblem, counted
from burnish.data.validate import BadRows, check, ordered, told
from burnish.records import Example
from burnish.task import DataSettings

KEPT = 10_000  # problems held in memory
LOOKED = 100_000  # rows that `look` counts
MARKS = ("label", "kto_tag")  # columns of TRL's and LLaMA Factory's KTO data that tell good answers from bad ones
SPOKEN = ("conversation", "prompt", "instruction")  # shapes whose every answer is learned


@dataclass(frozen=True)
class Guess:
    """What `burnish init` writes into a task.yaml.

    task: of goal.task.  labels: rows per class.  rows: those read (at most LOOKED).  first: the first Examples.
    notes: what a person should know.
    """

    shape: str
    columns: dict[str, str | list[str]]
    task: str
    labels: dict[str, int]
    rows: int
    first: tuple[Example, ...]
    notes: tuple[str, ...]
    files: tuple[str, ...]
    problems: int = 0

    def __str__(self) -> str:
        return str(Choice(self.shape, self.columns, tuple(self.columns)))


def look(name: str | Path, shape: str = "auto") -> Guess:
    """Guess what a file, folder, glob or Hub name holds; raises DataError when nothing fits."""
    sources = readers.find([str(name)])
    mode = readers.text_mode(sources, shape, "", {})
    choice, notes = decide(sources, mode, DataSettings(shape=shape), "")
    labels: Counter[str] = Counter()
    first: list[Example] = []
    rows = bad = turns = records = 0
    problem = ""
    for item in islice(load(sources, mode, choice), LOOKED):
        if isinstance(item, Bad):
            bad, problem = bad + 1, problem or told(item.problem)
            continue
        rows += 1
        if len(first) < 5:
            first.append(item)
        for label in item.label if isinstance(item.label, tuple) else (item.label,):
            if isinstance(label, str):
                labels[label] += 1
        turns += sum(turn.role == "assistant" for turn in item.messages) > 1
        records += item.answer.lstrip()[:1] in ("{", "[") and _is_json(item.answer)
    if bad:
        notes.append(f"{counted(bad, 'problem')}; the first: {problem}")
    if rows + bad >= LOOKED:
        notes.append(f"only the first {LOOKED:,} rows were looked at")
    if choice.shape == "labelled":
        task = "regress" if "number" in choice.columns else "classify"
        if task == "classify" and len(labels) > max(50, rows / 3):
            notes.append(f"{len(labels):,} classes for {rows:,} rows: is {choice.columns.get('label')} really a class?")
    elif choice.shape == "document":
        task = "write"
    elif choice.shape == "choices":
        task = "choose"
    elif choice.shape == "preference":
        task = "prefer"
    elif choice.shape == "conversation" and turns:
        task = "chat"
    else:
        task = "extract" if rows and records > 0.9 * rows else "answer"
    counts = {label: labels[label] for label in ordered(labels)}
    files = tuple(source.name for source in sources)
    return Guess(choice.shape, choice.columns, task, counts, rows, tuple(first), tuple(notes), files, bad)


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), (dict, list))
    except (ValueError, RecursionError):
        return False


def decide(sources: Sequence[Source], mode: TextMode, settings: DataSettings, goal: str) -> tuple[Choice, list[str]]:
    """The shape and columns of the first rows; raises BadRows when not one of them can be read."""
    items = (item for source in sources for item in readers.read(source, mode))
    rows: list[Row] = []
    bad: list[Bad] = []
    count = 0
    for item in items:
        if isinstance(item, Row):
            rows.append(item)
            if len(rows) == SAMPLE:
                break
        else:
            count += 1
            if len(bad) < KEPT:
                bad.append(item)
    if not rows:
        raise BadRows([item.problem for item in bad], count)
    choice = choose(rows, settings.shape, settings.columns, goal)
    notes = [str(choice)]
    if mode == "labelled":
        notes.append("text files are read as `LABEL text` lines (guessed)")
    if all(set(row.values) == {str(at) for at in range(1, len(row.values) + 1)} for row in rows):
        notes.append("the first line holds data, not column names: the columns are called 1, 2, 3 ...")
    return choice, notes


def load(sources: Sequence[Source], mode: TextMode, choice: Choice) -> Iterator[Example | Bad]:
    """Every row of the files as an Example, or why it is none."""
    module = kinds.load("data/shapes", choice.shape)
    expand: Callable[..., list[Any]] = getattr(module, "expand", lambda values, columns: [values])
    for source in sources:
        for item in readers.read(source, mode):
            if isinstance(item, Bad):
                yield item
                continue
            try:
                _unwanted(item.values, choice)
                for values in expand(item.values, choice.columns):
                    example = module.to_example(values, choice.columns, item.where)
                    check(example)
                    yield _sourced(example, values, choice.columns)
            except ShapeProblem as problem:
                yield Bad(problem.field[:200], problem.what, problem.do, item.where, _shown(item.values))
            except (RecursionError, UnicodeEncodeError):
                yield Bad(
                    "row", "holds text that cannot be written", "mend or remove it", item.where, _shown(item.values)
                )


def _unwanted(values: Mapping[str, Any], choice: Choice) -> None:
    """Refuse an answer that its row marks as a bad one, as data for KTO does, where the mark is not read."""
    for mark in MARKS if choice.shape in SPOKEN else ():
        if values.get(mark) is False and mark not in choice.columns.values():
            do = "remove the row, or the column if it means something else: a bad answer must not be learned"
            raise ShapeProblem("is false: the answer is marked as a bad one", mark, do)


def _sourced(example: Example, values: Mapping[str, Any], columns: Mapping[str, Any]) -> Example:
    """With the row's `source` column, where it has one that is nothing else: the document its answer stands in."""
    source = values.get("source")
    if not isinstance(source, str) or "source" in columns.values():
        return example
    return replace(example, meta={**example.meta, "source": source.strip()})


def _shown(values: Mapping[str, Any]) -> str:
    """How a row begins, whatever it holds."""
    parts = []
    for name, value in values.items():
        try:
            parts.append(f"{str(name)[:60]}: {str(value)[:SHOWN]}")
        except (ValueError, RecursionError):
            parts.append(f"{str(name)[:60]}: ...")
    return " | ".join(parts)[:SHOWN].encode("utf-8", "replace").decode()
