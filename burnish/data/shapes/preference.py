"""Two answers to one prompt, the better one chosen by a person: DPO pairs as other tools write them.

The prompt is text, a list of turns, or OpenAI's `input`; or there is none and both answers are whole conversations
(lists of turns, or transcripts with `Human:` and `Assistant:`) that part at their last turn.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from burnish.data.rows import Columns, ShapeProblem, Values, absent, cells, kind, one, optional, pick, plain, text_of
from burnish.data.shapes._turns import turns
from burnish.records import Example, Message, Where

ORDER = 5
GOALS = ("prefer",)
ROLES = ("prompt", "input", "chosen", "rejected", "system")
NEEDS = (("chosen",), ("rejected",))
BETTER = ("chosen", "preferred", "preferred output", "preferred response", "chosen response", "chosen messages")
WORSE = ("rejected", "dispreferred", "non preferred output", "non preferred", "rejected response", "rejected messages")
PROMPTS = ("prompt", "instruction", "question", "query", "conversations", "messages", "input")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}  # of a transcript (Bai et al. 2022, hh-rlhf)
SAMPLE: dict[str, Any] = {
    "prompt": "May I bring the atlas home?",
    "chosen": "I am sorry, it is for reading here.",
    "rejected": "No.",
}


def guess(columns: Sequence[str], rows: Sequence[Values]) -> dict[str, str | list[str]] | None:
    """Rows with a column of chosen and one of rejected answers."""
    chosen, rejected = pick(columns, BETTER), pick(columns, WORSE)
    if chosen is None or rejected is None or not cells(rows, rejected):
        return None
    found: dict[str, str | list[str]] = {"chosen": chosen, "rejected": rejected}
    prompt, more, system = pick(columns, PROMPTS), pick(columns, ("input",)), pick(columns, ("system", "system prompt"))
    if prompt is not None:
        found["prompt"] = prompt
    if more is not None and more != prompt:
        found["input"] = more
    if system is not None:
        found["system"] = system
    return found


def to_example(values: Values, columns: Columns, where: Where) -> Example:
    """The prompt's turns and the chosen answer as the last one; choices are (chosen, rejected).

    Only the last answer is learned: earlier assistant turns are what both answers reply to.
    """
    names = one(columns, "chosen"), one(columns, "rejected")
    before = _prompt(values, columns)
    chosen, rejected = (_conversation(values, name, before) for name in names)
    system = optional(values, columns, "system")
    if system.strip():
        chosen, rejected = ((Message("system", system), *told) for told in (chosen, rejected))
    for at, (a, b) in enumerate(zip(chosen[:-1], rejected[:-1], strict=False)):
        if a != b:
            raise _parted(names[1], at)
    if len(chosen) != len(rejected):
        raise _parted(names[1], min(len(chosen), len(rejected)) - 1)
    if len(chosen) == 1:
        raise ShapeProblem("has no turn before the answer", names[0], "add the prompt, or remove the row")
    better, worse = chosen[-1].content, rejected[-1].content
    if better.strip() == worse.strip():
        raise ShapeProblem(f"is the same as {names[0]}", names[1], "remove the row: it prefers nothing")
    prompt = tuple(Message(turn.role, turn.content, 0.0 if turn.role == "assistant" else 1.0) for turn in chosen[:-1])
    return Example("preference", where, (*prompt, Message("assistant", better)), choices=(better, worse))


def _parted(column: str, at: int) -> ShapeProblem:
    return ShapeProblem(
        f"parts from the chosen conversation at turn {at + 1}, before the last answer",
        column,
        "give both the same turns up to the answer that is ranked, or remove the row",
    )


def _prompt(values: Values, columns: Columns) -> tuple[Message, ...]:
    """The turns of the prompt's column; none where the answers are whole conversations."""
    if "prompt" not in columns:
        return ()
    column = one(columns, "prompt")
    value = values.get(column)
    if isinstance(value, Mapping):  # OpenAI's input
        column, value = f"{column}.messages", value.get("messages")
    if isinstance(value, list):
        return turns(value, column)
    text = text_of(values, column)
    if text.lstrip().startswith("Human:"):
        return _transcript(text, column, open_ended=True)
    more = optional(values, columns, "input")
    return (Message("user", f"{text}\n{more}" if more.strip() else text),)


def _conversation(values: Values, column: str, before: tuple[Message, ...]) -> tuple[Message, ...]:
    """The prompt and one answer, which ends it."""
    if column not in values:
        raise absent(values, column)
    value = values[column]
    if isinstance(value, Mapping):  # one turn (LLaMA-Factory)
        value = [value]
    if isinstance(value, list):
        told = turns(value, column)
        told = told if told[0].role != "assistant" else (*before, *told)
    elif value is not None and plain(value) is None:
        raise ShapeProblem(f"is {kind(value)}, not text", column, "write it as text, or as a list of turns")
    else:
        text = text_of(values, column)
        if before:
            told = (*before, Message("assistant", text))
        elif text.lstrip().startswith("Human:"):
            told = _transcript(text, column)
        else:
            raise ShapeProblem(
                "has no prompt", column, 'add a column "prompt", or write a whole conversation here and beside it'
            )
    if told[-1].role != "assistant":
        raise ShapeProblem(f"ends with a {told[-1].role} turn", column, "let it end with the answer")
    return told


def _transcript(text: str, column: str, open_ended: bool = False) -> tuple[Message, ...]:
    """The turns of `Human: ... Assistant: ...`, each after an empty line; an open one may end with an empty answer."""
    parts = re.split(r"(?:^|\n\n)(Human|Assistant):", text.strip())[1:]
    told = [Message(SPEAKERS[name], said.strip()) for name, said in zip(parts[::2], parts[1::2], strict=True)]
    if open_ended and told[-1].role == "assistant" and not told[-1].content:
        told = told[:-1]
    for at, turn in enumerate(told):
        if not turn.content:
            raise ShapeProblem(f"turn {at + 1} is empty", column, "fill it in, or remove the row")
    return tuple(told)
