"""Rows worth reading: what one rung fixed and broke against another, what is still wrong, what is like them.

In: test rows, what rungs said about them, training rows.  Out: Listings for the report and for `burnish compare`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from burnish.evaluate import plain
from burnish.evaluate.confusion import NO_ANSWER
from burnish.metrics import exact_match
from burnish.metrics._text import gold
from burnish.prompting._pool import Bm25
from burnish.records import LETTERS, Example, Label, Prediction

SHOWN = 20  # rows of a list; the rest are counted
NEAREST = 2  # training rows shown with a test row
LABELS = ("classify", "choose")  # goals whose answers are labels
RIGHT_OR_WRONG = (*LABELS, "extract", "answer")

Said = Mapping[str, Mapping[str, Prediction]]  # rung -> example id -> prediction
Near = Callable[[Example], tuple[str, ...]]


def nearest_to(train: Sequence[Example]) -> Near:
    """A function that gives the training rows most like a row, with their labels, by BM25; nothing without rows."""
    index = Bm25([row.surface for row in train]) if train else None

    @cache
    def found_for(place: str) -> tuple[str, ...]:
        assert index is not None
        found = index.scores(place)
        order = sorted(range(len(train)), key=lambda i: -found[i])[:NEAREST]
        return tuple(_shown(train[i]) for i in order if found[i] > 0)

    return lambda row: found_for(row.surface) if index else ()


def _shown(row: Example) -> str:
    answer = row.answer if row.label is None or row.choices else _label(row.label)
    return f"{plain.line(_asked(row), 160)} → {plain.line(answer, 60)}"


def right(task: str, example: Example, prediction: Prediction) -> bool | None:
    """Whether an answer is the gold one, texts word for word; None where the task has no right or wrong."""
    if task not in RIGHT_OR_WRONG or isinstance(example.label, (int, float)):
        return None
    if task in LABELS:
        return not prediction.problem and _label(prediction.label) == _label(example.label)
    return exact_match.components(example, prediction, ()) == (1.0,) if gold(example) else None


def _label(label: Label | None) -> str:
    if isinstance(label, (tuple, list)):
        return ", ".join(sorted(label)) or "(none)"
    return NO_ANSWER if label is None else str(label)


@dataclass(frozen=True)
class Row:
    """One test row in a list: its text, the gold answer, what rungs answered, and the training rows most like it.

    cited: for each answer, where the passages in its prompt stand.
    """

    where: str
    text: str
    gold: str
    answers: tuple[str, ...]
    note: str = ""
    near: tuple[str, ...] = ()
    cited: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Listing:
    """Rows worth reading, the first of `total`; `columns` are the rungs whose answers stand in each row."""

    anchor: str
    title: str
    told: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    total: int


@dataclass(frozen=True)
class Change:
    """What one rung answers better and worse than another."""

    a: str
    b: str
    fixed: Listing
    broken: Listing
    still: int


def changes(
    task: str, pairs: Sequence[tuple[str, str]], examples: Sequence[Example], said: Said, near: Near
) -> list[Change]:
    """For each pair, the rows that the second fixed and broke and how many neither has; none where nothing is right."""
    found = []
    for a, b in pairs:
        both = [row for row in examples if row.id in said[a] and row.id in said[b]]
        gains = [(_gain(task, row, said[a][row.id], said[b][row.id]), row) for row in both]
        if not any(gain is not None for gain, _ in gains):
            continue
        numeric = any(isinstance(row.label, (int, float)) for row in both)
        words = ("is closer than", "is further off than") if numeric else ("is right, not", "is wrong, not")
        titles = ("Rows brought closer", "Rows moved away") if numeric else ("Rows fixed", "Rows broken")
        how = ", word for word" if all(row.label is None for row in both) else ""
        made = []
        for title, verb, sign in zip(titles, words, (1, -1), strict=True):
            rows = sorted(
                ((gain * sign, row) for gain, row in gains if gain and gain * sign > 0), key=lambda pair: -pair[0]
            )
            shown = tuple(_row(row, (a, b), said, near) for _, row in rows[:SHOWN])
            told = f"{b} {verb} {a}{how}: {len(rows):,} of {len(both):,} rows."
            made.append(Listing("fixed" if sign > 0 else "broken", title, told, (a, b), shown, len(rows)))
        still = (
            0
            if numeric
            else sum(not right(task, row, said[a][row.id]) and not right(task, row, said[b][row.id]) for row in both)
        )
        found.append(Change(a, b, made[0], made[1], still))
    return found


def _gain(task: str, example: Example, before: Prediction, after: Prediction) -> float | None:
    """How much better the second answer is: 1, 0 or -1 where there is right and wrong, else the fall in error."""
    if isinstance(example.label, (int, float)):
        errors = [abs(item.number - example.label) if item.number is not None else math.inf for item in (before, after)]
        return 0.0 if errors[0] == errors[1] else errors[0] - errors[1]
    was, now = right(task, example, before), right(task, example, after)
    return None if was is None or now is None else float(now) - float(was)


def wrong(task: str, rung: str, examples: Sequence[Example], said: Said, near: Near) -> list[Listing]:
    """Rows that a rung still gets wrong, the surest first; of numbers those furthest off."""
    told = [row for row in examples if row.id in said[rung]]
    if told and isinstance(told[0].label, (int, float)):
        ranked = sorted(told, key=lambda row: -_error(row, said[rung][row.id]))
        rows, title, words = ranked, "Rows furthest off", f"{rung}, all {len(told):,} rows by their error."
    else:
        judged = [(right(task, row, said[rung][row.id]), row) for row in told]
        if not any(fine is not None for fine, _ in judged):
            return []
        rows = sorted((row for fine, row in judged if fine is False), key=lambda row: -_sure(said[rung][row.id]))
        title = "Rows still wrong"
        words = f"{rung} is wrong on {len(rows):,} of {len(told):,} rows"
        sure = any(said[rung][row.id].probabilities for row in rows)
        words += "; the surest answers come first." if sure else "."
    shown = tuple(_row(row, (rung,), said, near) for row in rows[:SHOWN])
    return [Listing("wrong", title, words, (rung,), shown, len(rows))]


def _error(example: Example, prediction: Prediction) -> float:
    if prediction.number is None or not isinstance(example.label, (int, float)):
        return math.inf
    return abs(prediction.number - example.label)


def _sure(prediction: Prediction) -> float:
    return max((prediction.probabilities or {}).values(), default=0.0)


def _row(example: Example, rungs: Sequence[str], said: Said, near: Near) -> Row:
    gold = plain.setting(example.label) if isinstance(example.label, float) else _label(example.label)
    every = {_answer(items[example.id], sure=False) for items in said.values() if example.id in items}
    alike = len(every) == 1 and len(said) > 1 and gold not in every and isinstance(example.label, str)
    return Row(
        str(example.where),
        _asked(example),
        example.answer if example.label is None else gold,
        tuple(_answer(said[rung][example.id]) for rung in rungs),
        f"all {len(said)} rungs answer this: is the gold label right?" if alike else "",
        near(example),
        tuple(said[rung][example.id].sources or () for rung in rungs),
    )


def _asked(example: Example) -> str:
    turns = example.prompt
    if len(turns) == 1:
        choices = example.choices if example.shape == "choices" else ()
        return "\n".join([turns[0].content, *map("{}. {}".format, LETTERS, choices)])
    told = "\n".join(f"{turn.role}: {turn.content}" for turn in turns) or example.text
    return told if example.pair is None else f"{told}\n\n{example.pair}"


def _answer(prediction: Prediction, sure: bool = True) -> str:
    if prediction.problem:
        return f"{NO_ANSWER}: {prediction.problem}"
    if prediction.number is not None:
        return plain.number(prediction.number)
    if prediction.label is None:
        return prediction.text or NO_ANSWER
    told = _label(prediction.label)
    return f"{told} ({_sure(prediction):.2f})" if sure and prediction.probabilities else told
