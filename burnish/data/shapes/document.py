"""Running text to learn to write from: a text file, or a column of long texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from burnish.data.rows import Columns, Values, cells, one, pick, text_of
from burnish.records import Example, Where

ORDER = 50
GOALS = ("write",)
ROLES = ("document",)
NEEDS = (("document",),)
SAMPLE: dict[str, Any] = {"document": "The miller had a daughter who could hear the river think."}


def guess(columns: Sequence[str], rows: Sequence[Values]) -> dict[str, str | list[str]] | None:
    """Rows with a column called document, text or the like, or with one column only."""
    column = pick(columns, ("document", "line", "text", "content", "body", "story", "article", "passage"))
    if column is None and len(columns) == 1:
        column = columns[0]
    if column is None or not any(isinstance(value, str) for value in cells(rows, column)):
        return None
    return {"document": column}


def to_example(values: Values, columns: Columns, where: Where) -> Example:
    """The text as it stands."""
    return Example("document", where, text=text_of(values, one(columns, "document")))
