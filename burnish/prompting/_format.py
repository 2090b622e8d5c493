"""How demonstrations stand before a question: one readable Format, and the prompt it makes.

In: a question, its demonstrations, a Format.  Out: the question as a conversation, with as many demonstrations as fit.
Demonstrations are earlier turns (read by the same template as everything else), or text inside the question's own turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from burnish.generate.answer import Answerer
from burnish.records import Example, Message
from burnish.tokens import ask


@dataclass(frozen=True)
class Format:
    """turns: demonstrations are earlier turns, each with the instruction if `repeat`, else the first alone.

    Otherwise they are text before the question, `question` and `answer` lines joined by `separator`, the instruction
    first.  {} in `question` and `answer` is the text.
    """

    turns: bool = True
    repeat: bool = True
    question: str = ""
    answer: str = ""
    separator: str = ""


FORMATS: Mapping[str, Format] = {
    "turns": Format(),
    "once": Format(repeat=False),
    "text": Format(False, False, "Text: {}", "Answer: {}", "\n\n"),
    "arrow": Format(False, False, "{}", "=> {}", "\n"),
}


def behind(answerer: Answerer, form: Format, shown: Sequence[Example], row: Example) -> tuple[Example, int]:
    """(the question behind its demonstrations, how many of them fit); the first of them leave first."""

    def asked(kept: int) -> Example:
        return _joined(answerer, form, shown[len(shown) - kept :], row)

    room = answerer.room_for(row)

    def fits(question: Example) -> bool:
        ids = answerer.encoding.prompt_ids(answerer.spoken(question, with_answer=False).messages)
        return len(ids) + room <= answerer.encoding.max_length

    if fits(whole := asked(len(shown))):  # nearly always, and a prompt is long to write
        return whole, len(shown)
    best, low, high = asked(0), 0, len(shown) - 1
    while low < high:  # more demonstrations are never fewer tokens
        kept = (low + high + 1) // 2
        question = asked(kept)
        if fits(question):
            best, low = question, kept
        else:
            high = kept - 1
    return best, low


def question(row: Example) -> str:
    """What stands before the answer: demonstrations must not be found by an answer that is to be given."""
    return "\n".join(turn.content for turn in row.prompt) if row.messages else row.surface


def _joined(answerer: Answerer, form: Format, shown: Sequence[Example], row: Example) -> Example:
    told = answerer.contract.instruction
    spoken = ask.as_messages(row, told, bool(row.messages) or row.label is not None)
    opening = [turn for turn in spoken.messages if turn.role == "system"]
    rest = [turn for turn in spoken.messages if turn.role != "system"]
    if form.turns or not shown:
        turns = [turn for i, item in enumerate(shown) for turn in _turns(item, told if form.repeat or not i else "")]
        if shown and not form.repeat and not row.messages:  # the instruction was given above
            rest = list(ask.as_messages(row, "", row.label is not None).messages)
        return replace(spoken, messages=(*opening, *turns, *rest), shape="conversation")
    last = max(i for i, turn in enumerate(rest) if turn.role == "user")
    asks = ask.as_messages(row, "", False).messages[-1].content if not row.messages else rest[last].content
    parts = [f"{form.question.replace('{}', question(item))}\n{_answer(form, item)}" for item in shown]
    parts.append(f"{form.question.replace('{}', asks)}\n{form.answer.partition('{}')[0].rstrip()}")
    if told and not row.messages:
        parts.insert(0, told)
    rest[last] = replace(rest[last], content=form.separator.join(parts))
    return replace(spoken, messages=(*opening, *rest), shape="conversation")


def _turns(item: Example, told: str) -> list[Message]:
    return [turn for turn in ask.as_messages(item, told).messages if turn.role != "system"]


def _answer(form: Format, item: Example) -> str:
    return form.answer.replace("{}", item.answer if item.messages else ask.label_text(item.label))


def read(told: Mapping[str, Any]) -> Format:
    """A Format as an artifact keeps it; TypeError for a key that there is not."""
    return Format(**told)
