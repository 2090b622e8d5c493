"""A prompt and its completion, each as text or (as TRL writes them) as a list of turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from burnish.data.rows import (
    Columns,
    ShapeProblem,
    Values,
    absent,
    cells,
    kind,
    mostly,
    one,
    optional,
    pick,
    plain,
    text_of,
)
from burnish.data.shapes._turns import learnable, turns
from burnish.records import Example, Message, Where

ORDER = 30
GOALS = ("answer", "extract", "chat", "write")
ROLES = ("prompt", "completion", "system")
NEEDS = (("prompt",), ("completion",))
PAIRS = (
    (("prompt", "query"), ("completion", "response", "answer", "output", "reply")),
    (("question",), ("answer", "response", "output")),
    (("input", "source", "src"), ("output", "target", "tgt", "response")),
    (("context",), ("continuation", "response")),
    (("document", "article", "dialogue", "story"), ("summary", "highlights")),
)
OTHERS = ("text", "title", "document", "content", "body", "label", "category", "class", "id", "url", "date", "name")
SAMPLE: dict[str, Any] = {"prompt": "What keeps a kite up?", "completion": "The wind, and the pull of its string."}


def guess(columns: Sequence[str], rows: Sequence[Values]) -> dict[str, str | list[str]] | None:
    """Rows with a pair of columns called by usual names, or with nothing but two columns of varied text."""
    system = pick(columns, ("system", "system prompt"))
    rest: dict[str, str | list[str]] = {"system": system} if system else {}
    for prompts, completions in PAIRS:
        prompt, completion = pick(columns, prompts), pick(columns, completions)
        if prompt and completion and _worded(cells(rows, completion)):
            return {"prompt": prompt, "completion": completion, **rest}
    if len(columns) == 2 and not pick(columns, OTHERS) and all(_varied(rows, column) for column in columns):
        return {"prompt": columns[0], "completion": columns[1]}
    return None


def _worded(found: list[Any]) -> bool:
    return mostly(found, lambda value: isinstance(value, (str, list)))


def _varied(rows: Sequence[Values], column: str) -> bool:
    found = cells(rows, column)
    words = [value for value in found if isinstance(value, str) and any(letter.isalpha() for letter in value)]
    return len(words) >= max(2, 0.9 * len(found)) and len(set(words)) > len(words) / 2


def to_example(values: Values, columns: Columns, where: Where) -> Example:
    """User: the prompt.  Assistant: the completion.  Lists of turns are joined as they are."""
    prompt, completion = one(columns, "prompt"), one(columns, "completion")
    system = optional(values, columns, "system")
    head = (Message("system", system),) if system.strip() else ()
    messages = (*head, *_side(values, prompt, "user"), *_side(values, completion, "assistant"))
    return Example("prompt", where, learnable(messages, completion))


def _side(values: Values, column: str, role: str) -> tuple[Message, ...]:
    if column not in values:
        raise absent(values, column)
    value = values[column]
    if isinstance(value, list):
        return turns(value, column)
    if value is not None and plain(value) is None:
        raise ShapeProblem(f"is {kind(value)}, not text", column, "write it as text, or as a list of turns")
    return (Message(role, text_of(values, column)),)
