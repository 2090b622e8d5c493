"""A labelled row as a question: how zero-shot, few-shot and sft put a class or number to a language model.

In: an Example with a label and an instruction.  Out: an Example with messages, the label as the answer.
The same words are used by every rung, so that rungs differ in what they learn and not in what they are asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from burnish.records import Example, Message
from burnish.tokens.contract import Contract

SEPARATOR = "; "


def instruction(goal: str, labels: Sequence[str], given: str = "", multi: bool = False) -> str:
    """What the model is told to do: the person's own words, else a plain sentence made from the task.

    labels: the classes; of a number the smallest and the largest, where they are known.
    """
    if given:
        return given
    if goal == "classify" and multi:
        return f"Name every label that fits the text, separated by '{SEPARATOR.strip()}': {', '.join(labels)}."
    if goal == "classify" and labels:
        shown = labels if len(labels) <= 20 else [*labels[:20], "..."]
        return f"Classify the text as {' or '.join(shown) if len(shown) == 2 else 'one of: ' + ', '.join(shown)}."
    if goal == "regress":
        return f"Answer with a number from {labels[0]} to {labels[1]}." if labels else "Answer with a number."
    return ""


def label_text(label: object) -> str:
    """A label as an answer would spell it; a number keeps every digit."""
    if isinstance(label, tuple):
        return SEPARATOR.join(label) if label else "none"
    if isinstance(label, float):
        return repr(label).removesuffix(".0")
    return "" if label is None else str(label)


def as_messages(example: Example, told: str, with_answer: bool = True) -> Example:
    """The same row (same id and place) as one user turn and, if wanted, the label as the answer."""
    if example.messages:
        system = (
            () if not told or any(turn.role == "system" for turn in example.messages) else (Message("system", told),)
        )
        turns = example.messages if with_answer else example.prompt
        return replace(example, messages=(*system, *turns))
    text = example.text if example.pair is None else f"{example.text}\n{example.pair}"
    turns = (Message("user", f"{told}\n\n{text}" if told else text),)
    if with_answer:
        turns = (*turns, Message("assistant", label_text(example.label)))
    return replace(example, messages=turns)


def readable(rows: Iterable[Example], contract: Contract) -> Iterator[Example]:
    """The examples as the contract's target wants them: labelled rows become questions for a language head."""
    if contract.target in ("answers", "all", "pairs"):
        return (as_messages(row, contract.instruction) for row in rows)
    return iter(rows)
