"""What is wrong with rows, told all at once: each problem with its file, line, field and what to do.

In: Examples one by one, then the labels of all of them.  Out: Problems (which stop the work or drop the row) and
warnings (which do neither).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from burnish.data.rows import ShapeProblem, counted, number
from burnish.errors import DataError, nearest
from burnish.records import LETTERS, Example, Problem

SHOWN = 20  # problems that a message lists
CLASSES = 10_000  # more different labels than this are no classes
CONTROL = re.compile(r"[\x01-\x08\x0b\x0e-\x1f\x7f]")
DIRECTION = re.compile("[\u202a-\u202e\u2066-\u2069]")


def told(problem: Problem) -> str:
    """`file:line field: reason, what to do` on one line."""
    return f"{problem.where} {problem.what}" + (f", {problem.do}" if problem.do else "")


class BadRows(DataError):
    """Rows that cannot be used; `problems` holds them (the first 10,000 of `count`)."""

    def __init__(self, problems: Sequence[Problem], count: int, listed: str = "", do: str = "") -> None:
        self.problems, self.count = list(problems), count
        where = self.problems[0].where if self.problems else ""
        do = do or "mend them, or set data.on_problem: drop to go on without them"
        super().__init__(f"{counted(count, 'problem')} in the data", where, do)
        self.listed = listed

    def __str__(self) -> str:
        lines = [f"{self.what}:", *(f"  {told(problem)}" for problem in self.problems[:SHOWN])]
        if self.count > SHOWN:
            lines.append(f"  and {self.count - SHOWN:,} more" + (f", all in {self.listed}" if self.listed else ""))
        return "\n".join([*lines, f"  do     {self.do}"])

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "count": self.count, "problems": [item.to_json() for item in self.problems]}


# --- one row -------------------------------------------------------------------------------------------------


def texts(example: Example) -> Iterator[tuple[str, str]]:
    """(field, text) of everything an Example says."""
    for at, turn in enumerate(example.messages):
        yield f"turn {at + 1} ({turn.role})", turn.content
    if example.text:
        yield "text", example.text
    if example.pair is not None:
        yield "pair", example.pair
    for at, choice in enumerate(example.choices):
        yield f"choice {LETTERS[at]}", choice
    for label in example.label if isinstance(example.label, tuple) else (example.label,):
        if isinstance(label, str):
            yield "label", label


def check(example: Example) -> None:
    """Raise a ShapeProblem for what no tokenizer should meet: NUL bytes and half characters."""
    for name, text in texts(example):
        if "\0" in text:
            what = f"holds a NUL byte at letter {text.index(chr(0)) + 1}"
            raise ShapeProblem(what, name, "remove it; if there are many, save the file as UTF-8")
        try:
            text.encode()
        except UnicodeEncodeError as problem:
            what = f"holds half a character (a lone surrogate) at letter {problem.start + 1}"
            raise ShapeProblem(what, name, "write the character whole, or remove it") from None


@dataclass
class Remarks:
    """What a person should know but need not mend: counted by kind, with the first place of each."""

    first: dict[str, tuple[str, str]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def look(self, example: Example) -> None:
        """Remark on the characters and the blank classes of one row."""
        if example.meta.get("unknown"):
            self.add("with blank classes, which count as 0", str(example.where), "fill them in if you know them")
        for _, text in texts(example):
            if text.isascii() and text.isprintable():
                continue
            if CONTROL.search(text):
                self.add("with control characters", str(example.where), "remove them if they mean nothing")
            if "\ufffd" in text:
                do = "an earlier conversion lost letters; go back to the original"
                self.add("with the replacement character U+FFFD", str(example.where), do)
            if DIRECTION.search(text):
                do = "they change how text is shown; remove them if they mean nothing"
                self.add("with characters that turn the writing direction", str(example.where), do)

    def add(self, what: str, where: str, do: str) -> None:
        self.first.setdefault(what, (where, do))
        self.counts[what] += 1

    def problems(self) -> list[Problem]:
        return [
            Problem(f"{counted(self.counts[what], 'text')} {what} (the first here)", where, do, "warning")
            for what, (where, do) in self.first.items()
        ]


# --- all labels ----------------------------------------------------------------------------------------------


def label_key(label: str) -> str:
    """What two spellings of one class share: letters without case, blanks, separators and outer punctuation.

    Numbers keep their sign and value, and `C++` stays apart from `C#`.

    >>> label_key("Not_Spam.") == label_key("not spam"), label_key("-1") == label_key("1"), label_key("1.0")
    (True, False, '1')
    """
    folded = unicodedata.normalize("NFKC", label).casefold().strip()
    value = number(folded)
    if value is not None:
        return f"{value:g}"
    return re.sub(r"[\s_\-./]+", "", folded.strip(" .,;:!?'\"")) or folded


def spellings(counts: Mapping[str, int], allowed: Sequence[str] = ()) -> dict[str, tuple[str, str]]:
    """For each label that must not stay as it is: (reason, what to do).

    allowed: the classes of the task; empty: of several spellings the most frequent counts (of equals the first).
    """
    right: dict[str, str] = {}
    for label in allowed or counts:
        known = right.setdefault(label_key(label), label)
        if not allowed and counts[label] > counts[known]:
            right[label_key(label)] = label
    wrong = {}
    for label in counts:
        usual = right.get(label_key(label))
        if usual == label or label in allowed:
            continue
        shown = label[:60]
        if usual is None:
            close = nearest(label[:100], allowed)
            do = f"use one of {', '.join(allowed[:20])}" + (f" (nearest: {close})" if close else "")
            wrong[label] = (f'"{shown}" is not in data.labels', do)
        elif allowed:
            wrong[label] = (f'"{shown}" is spelt "{usual}" in data.labels', f'write "{usual}"')
        else:
            wrong[label] = (f'"{shown}" is spelt "{usual}" in {counted(counts[usual], "row")}', f'write "{usual}"')
    return wrong


def ordered(labels: Iterable[str]) -> tuple[str, ...]:
    """Labels in a settled order: numbers by value, then words by letters."""
    return tuple(sorted(labels, key=lambda label: (number(label) is None, number(label) or 0.0, label)))


def label_warnings(counts: Mapping[str, int], rows: int, multi: bool) -> list[Problem]:
    """Remarks on rare classes, on a lone class, and on one class that outweighs the rest."""
    found = []
    rare = [label for label, count in counts.items() if count < 5]
    if rare:
        some = ", ".join(f"{label} ({counts[label]})" for label in rare[:5]) + (" ..." if len(rare) > 5 else "")
        do = "add rows, join classes, or name the classes that matter in data.labels"
        found.append(
            Problem(f"{len(rare)} of {len(counts)} classes have fewer than 5 rows: {some}", "labels", do, "warning")
        )
    if len(counts) == 1 and not multi:
        found.append(Problem("every row has the same class", "labels", "add rows of another class", "warning"))
    if len(counts) > 1 and not multi and max(counts.values()) > 0.8 * rows:
        most = max(counts, key=lambda label: counts[label])
        what = f'{counts[most] / rows:.0%} of the rows are "{most}": always saying so is right that often'
        found.append(Problem(what, "labels", "judge by macro-f1 rather than accuracy", "warning"))
    return found
