"""What passes between the readers, the shapes and the checks: a row that knows its place, or why there is none.

In: values by column.  Out: text a model can read, or a ShapeProblem that names the field.  Shapes import only this
(and errors and records), so that adding one is one file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from burnish.errors import nearest
from burnish.records import Problem, Where

Values = Mapping[str, Any]
Columns = Mapping[str, str | list[str]]
SHOWN = 1000  # characters of a refused row that dropped.jsonl shows


@dataclass(frozen=True)
class Row:
    """One row as it stands in the file."""

    values: Values
    where: Where


@dataclass(frozen=True)
class Bad:
    """A row that cannot be used: which field, why, what to do, where, and how the row begins.

    last: the file is not read beyond it, so rows are missing and not only broken.
    """

    field: str
    what: str
    do: str
    where: Where
    text: str = ""
    id: str = ""
    last: bool = False

    @property
    def problem(self) -> Problem:
        what = f"{self.field}: {self.what}{'; nothing after it is read' if self.last else ''}"
        return Problem(visible(what), str(self.where), visible(self.do), "error", self.id)


class ShapeProblem(Exception):
    """A row does not fit its shape: what is wrong, with which field, what to do."""

    def __init__(self, what: str, field: str, do: str) -> None:
        super().__init__(f"{field}: {what}")
        self.what, self.field, self.do = what, field, do


def visible(text: str) -> str:
    """Text that any terminal shows as it is: control characters and half characters are spelt out.

    >>> visible("a\\x1b[2J")
    'a\\\\u001b[2J'
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def fold(name: str) -> str:
    """A column's name without case, blanks and punctuation."""
    return re.sub(r"[\W_]+", "", name.casefold())


def pick(columns: Iterable[str], names: Sequence[str]) -> str | None:
    """The column called by the earliest of `names`, whatever its case and punctuation.

    >>> pick(["ID", "Review_Text"], ["text", "review text"])
    'Review_Text'
    """
    folded = {fold(column): column for column in reversed(list(columns))}
    return next((folded[fold(name)] for name in names if fold(name) in folded), None)


def absent(values: Values, column: str) -> ShapeProblem:
    """The problem of a row without `column`; names the key that looks like a slip for it."""
    close = nearest(column, [key for key in values if isinstance(key, str) and len(key) < 100])
    if close:
        return ShapeProblem("is missing", column, f'rename "{close}" to "{column}"')
    return ShapeProblem("is missing", column, f'add "{column}", or name another column under data.columns')


def plain(value: object) -> str | None:
    """A scalar as text (1 is "1", 2.0 is "2", true is "true"); None for lists, objects and nothing."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    if value is None or isinstance(value, (Mapping, list, tuple, set, bytes)):
        return None
    try:
        return str(value)
    except ValueError:  # an integer of more digits than Python turns into text
        return None


def text_of(values: Values, column: str) -> str:
    """The text in a column that must have some; raises ShapeProblem when it is missing, empty or no text."""
    if column not in values:
        raise absent(values, column)
    text = plain(values[column])
    if text is None and values[column] is not None:
        raise ShapeProblem(f"is {kind(values[column])}, not text", column, "write it as text")
    if text is None or not text.strip():
        raise ShapeProblem("is empty", column, "fill it in, or remove the row")
    return text


def optional(values: Values, columns: Columns, role: str) -> str:
    """The text of a column that may be absent or empty."""
    column = columns.get(role)
    if not isinstance(column, str) or values.get(column) in (None, ""):
        return ""
    text = plain(values[column])
    if text is None:
        raise ShapeProblem(f"is {kind(values[column])}, not text", column, "write it as text")
    return text


def one(columns: Columns, role: str) -> str:
    """The one column of a role."""
    column = columns[role]
    if isinstance(column, list):
        raise ShapeProblem(f"takes one column, not {len(column)}", role, "name one column under data.columns")
    return column


def kind(value: object) -> str:
    """What a JSON value is, in words."""
    words = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "empty" if value is None else words.get(type(value), type(value).__name__)


def number(value: object) -> float | None:
    """A finite number from a cell, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if abs(found) < float("inf") else None


def counted(number: int, noun: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def mostly(found: Sequence[Any], test: Callable[[Any], bool]) -> bool:
    """Whether nine of ten cells pass (and there are some): a few bad ones are for the line reports."""
    return bool(found) and sum(map(test, found)) >= 0.9 * len(found)


def cells(rows: Iterable[Values], column: str) -> list[Any]:
    """What a column holds in these rows, without the empty cells."""
    found = (row.get(column) for row in rows)
    return [value for value in found if value is not None and value != ""]
