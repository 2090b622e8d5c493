"""A text (or two) with a class, with several classes, or with a number.

Roles: text, pair, and one of label (a class; a list of columns means one 0/1 column a class), labels (several
classes in one cell: a JSON list, or text cut at `;` or `|`) and number.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from burnish.data.rows import (
    Columns,
    ShapeProblem,
    Values,
    absent,
    cells,
    fold,
    kind,
    mostly,
    number,
    one,
    pick,
    plain,
    text_of,
)
from burnish.records import Example, Label, Where

ORDER = 40
GOALS = ("classify", "regress")
ROLES = ("text", "pair", "label", "labels", "number")
NEEDS = (("text",), ("label", "labels", "number"))
TEXTS = (
    *("text", "sentence", "review", "tweet", "comment", "message", "utterance", "headline", "question", "query"),
    *("review text", "content", "body", "description", "abstract", "smiles", "document", "prompt", "input", "title"),
)
PAIRS: tuple[tuple[str, str], ...] = (
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
)
PAIRS = (*PAIRS, ("texta", "textb"), ("question", "passage"), ("question", "sentence"), ("query", "passage"))
LABELS = (
    *("label", "labels", "category", "class", "intent", "sentiment", "topic", "stars", "rating", "score", "emotion"),
    *("target", "gold", "gold label", "tag", "tags", "categories", "classes", "genre", "grade", "y", "answer"),
)
IDS = ("id", "idx", "index", "uid", "uuid", "key", "row", "url", "date", "time", "timestamp", "split", "file", "")
NAMING = (
    "id",
    "ids",
    "idx",
    "uid",
    "uuid",
    "guid",
    "date",
    "time",
    "datetime",
    "timestamp",
    "tstamp",
    "ts",
    "at",
    "url",
)
UNWRITTEN = ("nan", "NaN", "inf", "-inf")  # what programs write where there is no number
SAMPLE: dict[str, Any] = {"text": "The soup was cold and the waiter colder.", "label": "negative"}


def guess(columns: Sequence[str], rows: Sequence[Values]) -> dict[str, str | list[str]] | None:
    """Rows with a text and something that looks like its class, classes or number."""
    usable = [column for column in columns if not _names_the_row(rows, column)]
    flags = [column for column in usable if _flag(rows, column)]
    found: dict[str, str | list[str]] = {}
    for first, second in PAIRS:
        one_, two = pick(usable, (first,)), pick(usable, (second,))
        if one_ and two:
            found = {"text": one_, "pair": two}
            break
    text = found.get("text") or pick(usable, TEXTS) or _wordiest(usable, rows)
    if text is None:
        return None
    rest = [column for column in usable if column not in (text, found.get("pair"))]
    label = pick(rest, LABELS)
    if label is None and len(flags) > 1:
        return {"text": text, **found, "label": [column for column in flags if column in rest]}
    if label is None:
        likely = [column for column in rest if _class_like(rows, column) or _numeric(cells(rows, column))]
        label = likely[0] if len(likely) == 1 else None
    return None if label is None else {"text": text, **found, "label": label}


def _names_the_row(rows: Sequence[Values], column: str) -> bool:
    """Whether a column tells which row it is: called so, or called like a name or a time and no class."""
    if fold(column) in {fold(name) for name in IDS}:
        return True
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", column)
    return bool(words) and words[-1].casefold() in NAMING and not _class_like(rows, column)


def _flag(rows: Sequence[Values], column: str) -> bool:
    return mostly(cells(rows, column), lambda value: _bit(value) is not None)


def _bit(value: object) -> bool | None:
    """True or False for 1 and 0 as any file writes them; None for anything else."""
    told = (plain(value) or "").strip().casefold()
    return {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}.get(told)


def _wordiest(columns: Sequence[str], rows: Sequence[Values]) -> str | None:
    """The column with the longest text on average; none when a column holds nothing but numbers or lists."""
    lengths = {}
    for column in columns:
        words = [value for value in cells(rows, column) if isinstance(value, str) and number(value) is None]
        if words:
            lengths[column] = sum(map(len, words)) / len(words)
    return max(lengths, key=lambda column: lengths[column]) if lengths else None


def _class_like(rows: Sequence[Values], column: str) -> bool:
    found = [plain(value) for value in cells(rows, column)]
    if None in found or len(set(found)) < 2:
        return False
    return len(set(found)) <= max(2, len(found) / 3) and max(len(value or "") for value in found) <= 60


def _numeric(found: Sequence[Any]) -> bool:
    """Whether cells look measured, not counted: all numbers, some not whole, many different."""
    found = [value for value in found if plain(value) not in UNWRITTEN]
    real = [value for value in map(number, found) if value is not None]
    if len(real) < 0.9 * len(found) or all(value.is_integer() for value in real):
        return False
    return len(set(real)) >= min(10, max(2, len(real) / 2))


def settle(columns: Columns, rows: Sequence[Values], goal: str) -> dict[str, str | list[str]]:
    """Decide what `label` is: a number when the goal is to regress (or it looks measured), several classes, or one."""
    settled = dict(columns)
    if goal == "classify" and "number" in settled:
        settled["label"] = settled.pop("number")
    column = settled.get("label")
    if isinstance(column, str):
        found = cells(rows, column)
        if goal == "regress" or (not goal and _numeric(found)):
            settled["number"] = settled.pop("label")
        elif any(isinstance(value, list) for value in found) or _separated(found):
            settled["labels"] = settled.pop("label")
    return settled


def _separated(found: Sequence[Any]) -> bool:
    """Whether cells are clearly lists: cut at `;` or `|` they give few names that come again and again."""
    if (
        not all(isinstance(value, str) for value in found)
        or sum(bool(re.search(r"[;|]", value)) for value in found) < 2
    ):
        return False
    parts = [part for value in found for part in _cut(value)]
    return len(set(parts)) < len(set(found)) and len(set(parts)) <= len(parts) / 2 and max(map(len, parts)) <= 40


def _cut(cell: str) -> list[str]:
    return [part.strip() for part in re.split(r"[;|]", cell) if part.strip()]


def to_example(values: Values, columns: Columns, where: Where) -> Example:
    """The text, its pair, and the label as text, tuple or float; blank 0/1 columns are listed in meta.unknown."""
    text = text_of(values, one(columns, "text"))
    pair = text_of(values, one(columns, "pair")) if "pair" in columns else None
    meta: dict[str, Any] = {}
    label: Label
    if "number" in columns:
        label = _number(values, one(columns, "number"))
    elif "labels" in columns:
        label = _several(values, one(columns, "labels"))
    elif isinstance(columns["label"], list):
        label, unknown = _flags(values, columns["label"])
        meta = {"unknown": unknown} if unknown else {}
    else:
        label = _one(values, columns["label"])
    return Example("labelled", where, text=text, pair=pair, label=label, meta=meta)


def _one(values: Values, column: str) -> str:
    if isinstance(values.get(column), list):
        raise ShapeProblem("is a list where other rows have one class", column, "write one class in every row")
    text = text_of(values, column)
    if text in UNWRITTEN:
        raise ShapeProblem(f'is "{text}", which is no class', column, "fill it in, or remove the row")
    return text


def _number(values: Values, column: str) -> float:
    text_of(values, column)
    found = number(values[column])
    if found is None:
        raise ShapeProblem(
            f'"{plain(values[column])}"'[:60] + " is not a finite number", column, "write a number like 3.5"
        )
    return found


def _several(values: Values, column: str) -> tuple[str, ...]:
    if column not in values:
        raise absent(values, column)
    cell = values[column]
    if isinstance(cell, list):
        parts = [plain(part) for part in cell]
        if any(part is None or not part.strip() for part in parts):
            raise ShapeProblem("holds something that is not a class", column, "write a list of names")
        return tuple(dict.fromkeys(str(part) for part in parts))
    if isinstance(cell, dict):
        raise ShapeProblem(f"is {kind(cell)}, not a list of classes", column, "write a list of names")
    return tuple(dict.fromkeys(_cut(plain(cell) or "")))


def _flags(values: Values, names: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    chosen, unknown = [], []
    for name in names:
        if name not in values:
            raise absent(values, name)
        cell = values[name]
        if cell is None or (isinstance(cell, str) and not cell.strip()):
            unknown.append(name)
        elif (bit := _bit(cell)) is None:
            raise ShapeProblem(f'"{plain(cell)}"'[:60] + " is neither 0 nor 1", name, "write 0, 1 or nothing")
        elif bit:
            chosen.append(name)
    if len(unknown) == len(names):
        raise ShapeProblem("every class is blank", names[0], "write 0 or 1 in one column, or remove the row")
    return tuple(chosen), unknown
