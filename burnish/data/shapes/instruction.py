"""An instruction, an input that may be empty, and the output: Alpaca, Dolly, Self-Instruct (nested instances)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from burnish.data.rows import Columns, ShapeProblem, Values, cells, kind, one, optional, pick, text_of
from burnish.records import Example, Message, Where

ORDER = 20
GOALS = ("answer", "chat", "extract", "write")
ROLES = ("instruction", "input", "output", "system", "instances")
NEEDS = (("instruction",), ("output", "instances"))
SAMPLE: dict[str, Any] = {
    "instruction": "Put the sentence into the past tense.",
    "input": "The heron waits.",
    "output": "The heron waited.",
}


def guess(columns: Sequence[str], rows: Sequence[Values]) -> dict[str, str | list[str]] | None:
    """Rows with a column called instruction, and an output or a list of instances."""
    instruction = pick(columns, ("instruction",))
    if instruction is None:
        return None
    instances = pick(columns, ("instances",))
    if instances is not None and any(isinstance(value, list) for value in cells(rows, instances)):
        return {"instruction": instruction, "instances": instances}
    output = pick(columns, ("output", "response", "answer", "completion", "target"))
    if output is None:
        return None
    found: dict[str, str | list[str]] = {"instruction": instruction, "output": output}
    for role, names in (("input", ("input", "context")), ("system", ("system", "system prompt"))):
        if (other := pick(columns, names)) is not None:
            found[role] = other
    return found


def expand(values: Values, columns: Columns) -> list[Values]:
    """One row for each of the nested instances."""
    if "instances" not in columns:
        return [values]
    column = one(columns, "instances")
    instances = values.get(column)
    if not isinstance(instances, list) or not instances:
        raise ShapeProblem("is not a list with instances", column, 'write [{"input": ..., "output": ...}]')
    for at, instance in enumerate(instances):
        if not isinstance(instance, Mapping):
            raise ShapeProblem(
                f"is {kind(instance)}, not an object", f"{column}[{at}]", 'write {"input": ..., "output": ...}'
            )
    kept = {key: value for key, value in values.items() if key != column}
    return [{**kept, **instance} for instance in instances]


def to_example(values: Values, columns: Columns, where: Where) -> Example:
    """User: the instruction and, on the next line, the input.  Assistant: the output."""
    nested = "instances" in columns
    instruction = text_of(values, one(columns, "instruction"))
    more = optional(values, {"input": "input"} if nested else columns, "input")
    output = text_of(values, "output" if nested else one(columns, "output"))
    system = optional(values, columns, "system")
    user = Message("user", f"{instruction}\n{more}" if more.strip() else instruction)
    head = (Message("system", system),) if system.strip() else ()
    return Example("instruction", where, (*head, user, Message("assistant", output)))
