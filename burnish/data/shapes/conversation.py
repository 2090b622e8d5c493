"""A list of turns: OpenAI `messages`, ShareGPT `conversations` (with `system` and `tools` beside them)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from burnish.data.rows import Columns, Values, absent, cells, one, optional, pick
from burnish.data.shapes._turns import learnable, turns
from burnish.records import Example, Message, Where

ORDER = 10
GOALS = ("chat", "answer", "extract", "write")
ROLES = ("messages", "system", "tools")
NEEDS = (("messages",),)
SAMPLE: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "You are the help desk of a library."},
        {"role": "user", "content": "May I bring the atlas home?"},
        {"role": "assistant", "content": "No, it is for reading here.", "weight": 1},
    ]
}


def guess(columns: Sequence[str], rows: Sequence[Values]) -> dict[str, str | list[str]] | None:
    """Rows with a column of turns, by its name and by what it holds."""
    column = pick(columns, ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns"))
    if column is None or not any(_turns_like(value) for value in cells(rows, column)):
        return None
    found: dict[str, str | list[str]] = {"messages": column}
    for role in ("system", "tools"):
        if (other := pick(columns, (role,))) is not None:
            found[role] = other
    return found


def _turns_like(value: object) -> bool:
    if isinstance(value, str):
        return value.lstrip().startswith("[{")
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def to_example(values: Values, columns: Columns, where: Where) -> Example:
    """The turns, after a system turn made of `system` and `tools` when the row has them."""
    column = one(columns, "messages")
    if column not in values:
        raise absent(values, column)
    messages = learnable(turns(values[column], column), column)
    system, tools = optional(values, columns, "system"), optional(values, columns, "tools")
    if tools.strip() and tools.strip() != "[]":
        system = f"{system}\n\nYou can call these functions:\n{tools}".strip()
    if system.strip():
        messages = (Message("system", system), *messages)
    return Example("conversation", where, messages)
