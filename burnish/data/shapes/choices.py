"""A question and what may follow it, one of which is right: ARC, HellaSwag, PIQA, OpenBookQA, MMLU, Winogrande.

Roles: question (asked as `Question: ...` and `Answer:`), context (what a choice goes on from; before a question, what
it is about) or blank (a sentence with one `_` that a choice fills); choices (a column with a list, or a column each);
and the right one: answer (its text), letter (A, B ... or the row's own names), index (from 0) or number (from 1).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from burnish.data.rows import Columns, ShapeProblem, Values, absent, cells, kind, mostly, one, pick, plain, text_of
from burnish.records import LETTERS, Example, Message, Where

ORDER = 15
GOALS = ("choose",)
ROLES = ("question", "context", "blank", "choices", "answer", "letter", "index", "number")
RIGHT = ("answer", "letter", "index", "number")
NEEDS = (("question", "context", "blank"), ("choices",), RIGHT)
QUESTIONS = ("question", "goal")
CONTEXTS = ("query", "ctx", "context", "question stem", "stem", "passage", "article", "prompt", "sent1")
LISTS = ("choices", "options", "endings", "candidates", "answers")
ANSWERS = (
    *("answer key", "answer", "gold", "label", "correct answer", "correct option", "correct choice", "correct"),
    *("answer index", "answer idx", "correct index", "gold index", "target"),
)
# one column for each choice: sol1, option_a, ending0, answerB, A
FAMILY = re.compile(r"(sol|solution|option|opt|choice|ending|answer|ans|candidate|)[\W_]*([a-z]|\d)", re.IGNORECASE)
SAMPLE: dict[str, Any] = {
    "question": "Which of these keeps a kite up?",
    "choices": ["the string", "the wind", "the tail"],
    "answer": "the wind",
}


def guess(columns: Sequence[str], rows: Sequence[Values]) -> dict[str, str | list[str]] | None:
    """Rows with a question or a beginning, choices in a list or in columns called alike, and the right one."""
    several: str | list[str] | None = pick(columns, LISTS)
    if several is None or not mostly(cells(rows, str(several)), lambda cell: _listed(cell) is not None):
        several = _family(columns, rows)
    if not several:
        return None
    rest = [column for column in columns if column not in several and column != several]
    found: dict[str, str | list[str]] = {"choices": several}
    blank = pick(rest, ("sentence",))
    if blank and mostly(cells(rows, blank), lambda cell: str(cell).count("_") == 1):
        found["blank"] = blank
    else:
        asked = (("question", pick(rest, QUESTIONS)), ("context", pick(rest, CONTEXTS)))
        found |= {role: name for role, name in asked if name}
    right = pick([column for column in rest if column not in found.values()], ANSWERS)
    if right is None or len(found) == 1 or any(plain(cell) is None for cell in cells(rows, right)):
        return None
    return {**found, "answer": right}


def _family(columns: Sequence[str], rows: Sequence[Values]) -> list[str]:
    """Columns whose names differ in a number or letter alone, which counts up from 0, 1 or A."""
    families: dict[str, dict[str, str]] = {}
    for column in columns:
        told = FAMILY.fullmatch(column)
        if told and (told[1] or told[2].isupper()):
            families.setdefault(f"{told[1].casefold()}{told[2].isdigit()}", {})[told[2].casefold()] = column
    for family in families.values():
        ends = sorted(family)
        steps = [ord(end) - ord(ends[0]) for end in ends]
        if len(ends) > 1 and ends[0] in "01a" and steps == list(range(len(ends))):
            found = [family[end] for end in ends]
            if all(plain(cell) is not None for column in found for cell in cells(rows, column)):
                return found
    return []


def settle(columns: Columns, rows: Sequence[Values], goal: str) -> dict[str, str | list[str]]:
    """Decide how the whole file names the right choice: by a letter, a number from 0 or from 1, or its own text."""
    settled = dict(columns)
    if "answer" not in settled:
        return settled
    column, known = one(columns, "answer"), []
    for row in rows:
        told = plain(row.get(column))
        try:
            texts, names = _choices(row, columns)
        except ShapeProblem:
            continue
        if told is not None and told.strip():
            known.append((told.strip(), texts, names))
    role = _naming(known)
    if role != "answer":
        settled[role] = settled.pop("answer")
    return settled


def _naming(known: Sequence[tuple[str, Sequence[str], Sequence[str]]]) -> str:
    """The role that a file's answers have, told as (answer, texts of the choices, their names)."""
    if mostly(known, lambda row: row[0] in row[2]):
        return "letter"
    if mostly(known, lambda row: row[0].isascii() and row[0].isdigit()):
        places = [(int(told), len(texts)) for told, texts, _ in known if told.isascii() and told.isdigit()]
        if not any(place == 0 for place, _ in places) and any(place == many for place, many in places):
            return "number"
        if any(place == 0 for place, _ in places) or not mostly(known, lambda row: row[0] in row[1]):
            return "index"
    return "answer"


def to_example(values: Values, columns: Columns, where: Where) -> Example:
    """User: the question.  Assistant: the right choice.  label: its letter."""
    asked = question(values, columns, where)
    at = _right(values, columns)
    turns = (*asked.messages, Message("assistant", asked.choices[at]))
    return Example("choices", where, turns, label=LETTERS[at], choices=asked.choices)


def question(values: Values, columns: Columns, where: Where) -> Example:
    """The row without its answer: what is asked when it is not known."""
    texts, _ = _choices(values, columns)
    if "blank" in columns:
        before, rest = _halves(values, one(columns, "blank"))
        texts = [f"{text}{rest}" for text in texts]
        return Example("choices", where, (Message("user", before),), choices=tuple(texts))
    parts = [text_of(values, one(columns, "context")).strip()] if "context" in columns else []
    if "question" in columns:
        parts.append(f"Question: {text_of(values, one(columns, 'question')).strip()}\nAnswer:")
    return Example("choices", where, (Message("user", "\n".join(parts)),), choices=tuple(texts))


def _halves(values: Values, column: str) -> tuple[str, str]:
    """(what stands before the blank, what stands after it)."""
    text = text_of(values, column)
    if text.count("_") != 1:
        raise ShapeProblem("has not exactly one _", column, "mark the one place that a choice fills with _")
    before, _, after = text.partition("_")
    if not before.strip():
        raise ShapeProblem("begins with its blank", column, "say it so that something stands before the _")
    return before.strip(), after.rstrip()


def _choices(values: Values, columns: Columns) -> tuple[list[str], list[str]]:
    """(texts, names) of a row's choices; raises ShapeProblem unless they are two or more, and different."""
    wanted = columns["choices"]
    field = wanted if isinstance(wanted, str) else wanted[0]
    if isinstance(wanted, str):
        if wanted not in values:
            raise absent(values, wanted)
        listed = _listed(values[wanted])
        if listed is None:
            what = f"is {kind(values[wanted])}, not a list of texts"
            raise ShapeProblem(what, wanted, 'write ["first choice", "second choice", ...]')
        texts, names = listed
    else:
        told = [plain(values.get(column)) or "" for column in wanted]
        while told and not told[-1].strip():  # a row may have fewer than the others
            told.pop()
        texts, names = told, []
    texts = [text.strip() for text in texts]
    if len(texts) < 2:
        raise ShapeProblem(f"holds {len(texts)} of at least two choices", field, "add the others, or remove the row")
    if len(texts) > len(LETTERS):
        raise ShapeProblem(f"holds {len(texts)} choices, more than there are letters", field, "remove some")
    for at, text in enumerate(texts):
        if not text:
            raise ShapeProblem(f"choice {LETTERS[at]} is empty", field, "fill it in, or remove the row")
        if text in texts[:at]:
            what = f"choices {LETTERS[texts.index(text)]} and {LETTERS[at]} are the same"
            raise ShapeProblem(what, field, "make them different, or remove the row")
    return texts, names or list(LETTERS[: len(texts)])


def _listed(cell: object) -> tuple[list[str], list[str]] | None:
    """(texts, names) of a list of texts, of {"text": [...], "label": [...]}, of such pairs, or of JSON of one."""
    if isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{"):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            return None
    if isinstance(cell, Mapping):
        texts, names = cell.get("text"), cell.get("label")
    elif isinstance(cell, (list, tuple)) and any(isinstance(part, Mapping) for part in cell):
        pairs = [part if isinstance(part, Mapping) else {} for part in cell]
        texts, names = [part.get("text") for part in pairs], [part.get("label") for part in pairs]
    else:
        texts, names = cell, None
    if not isinstance(texts, (list, tuple)) or any(plain(text) is None for text in texts):
        return None
    told = [str(plain(text)) for text in texts]
    own = [(plain(name) or "").strip() for name in names] if isinstance(names, (list, tuple)) else []
    usable = len(own) == len(told) and all(own) and len(set(own)) == len(own)
    return told, own if usable else []


def _right(values: Values, columns: Columns) -> int:
    """Which choice is the right one, from 0."""
    role = next(role for role in RIGHT if role in columns)
    column, (texts, names) = one(columns, role), _choices(values, columns)
    told, last = text_of(values, column).strip(), len(texts) - 1
    if role in ("index", "number"):
        first = int(role == "number")
        if told.isascii() and told.isdigit() and first <= int(told) <= last + first:
            return int(told) - first
        raise ShapeProblem(f'"{told[:60]}" is no number from {first} to {last + first}', column, "mend it")
    among = texts if role == "answer" else names
    if told in among:
        return among.index(told)
    shown = f"one of {', '.join(names)}" if role == "letter" else "one of the choices, word for word"
    raise ShapeProblem(f'"{told[:60]}" is none of the choices', column, f"write {shown}")
