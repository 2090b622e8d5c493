"""What can be known before anything is trained: the Facts that advice rests on, and those that need no model.

In: Examples, and what a base said to them.  Out: shares and counts; climb/probe.py puts them together.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from burnish.records import Example, Prediction

Changing = Literal["", "never", "yearly", "monthly", "weekly", "daily"]


@dataclass(frozen=True)
class Facts:
    """What the probes found; None where a probe made no sense or was not run.

    rows: of training, validation, test.  labels: rows per class.  conflict: share of rows whose text has two labels.
    leak: share of test rows that training holds too.  agreement: share of rows that two annotators label alike.
    base: the base's score with an instruction alone, on `tried` validation rows, best possible `best`; floor: what
    always the same answer scores.  obeys: share of its answers that have the wanted form.
    knows: share of right closed-book answers.  in_form: score over answers that have the form.
    novel: share of the answers' words that neither the prompts nor the base's own answers hold (facts, not form).
    target: the goal.  changing: how fast the facts change, as the person says.  documents: whether retrieval has any.
    fits: rung -> fits, tight or does not fit.  parameters: of the base.
    """

    goal: str
    rows: Mapping[str, int]
    labels: Mapping[str, int] = field(default_factory=dict)
    conflict: float = 0.0
    leak: float = 0.0
    agreement: float | None = None
    base: float | None = None
    tried: int = 0
    best: float = 1.0
    floor: float | None = None
    higher: bool = True
    metric: str = ""
    obeys: float | None = None
    in_form: float | None = None
    knows: float | None = None
    novel: float | None = None
    target: float | None = None
    changing: Changing = ""
    documents: bool = False
    fits: Mapping[str, str] = field(default_factory=dict)
    parameters: int = 0
    prompted: bool = True

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def conflicts(rows: Sequence[Example]) -> float:
    """Share of labelled rows whose text, spelt alike but for case and spaces, stands with another label too."""
    seen: dict[str, set[str]] = defaultdict(set)
    labelled = [row for row in rows if isinstance(row.label, str)]
    for row in labelled:
        seen[_plain(row.surface)].add(str(row.label))
    return sum(len(seen[_plain(row.surface)]) > 1 for row in labelled) / max(len(labelled), 1)


def leaks(train: Sequence[Example], test: Sequence[Example]) -> float:
    """Share of test rows whose text stands in the training rows, spelt alike but for case and spaces."""
    known = {_plain(_question(row)) for row in train}
    return sum(_plain(_question(row)) in known for row in test) / max(len(test), 1)


def agreement(rows: Sequence[Example]) -> float | None:
    """Share of rows that two annotators label alike, from a second label in `meta`; None where there is none."""
    second = [
        (str(row.label), str(row.meta[name]))
        for row in rows
        for name in ("label_2", "second_label")
        if name in row.meta
    ]
    return sum(a == b for a, b in second) / len(second) if second else None


def novelty(rows: Sequence[Example]) -> float | None:
    """Share of the answers' rare words (names, numbers) that their questions do not hold; None without answers."""
    told = [row for row in rows if row.answer]
    often = Counter(word for row in told for word in set(_words(row.answer)))
    most = max(1, math.ceil(0.05 * len(told)))
    rare = [(word, row) for row in told for word in set(_words(row.answer)) if often[word] <= most]
    if not rare:
        return None if not told else 0.0
    return sum(word not in set(_words(_question(row))) for word, row in rare) / len(rare)


def obedience(said: Sequence[Prediction], gold: Sequence[str]) -> float:
    """Share of written answers that have the form of the gold answers.

    Form: they end by themselves and are JSON where the gold ones are, one of the answers where these are few, and
    else no more than three times as long as the longest.
    """
    few, longest = {text.casefold() for text in gold}, max(map(len, gold), default=1)
    braces = sum(text.strip()[:1] in ("{", "[") for text in gold) > len(gold) / 2

    def fits(item: Prediction) -> bool:
        text = (item.text or "").strip()
        if item.problem or not text or item.finished is False:
            return False
        if braces:
            return text[:1] in ("{", "[") and text[-1:] in ("}", "]")
        return text.casefold() in few if len(few) <= max(2, len(gold) // 5) else len(text) <= 3 * longest

    return sum(map(fits, said)) / max(len(said), 1)


def _question(row: Example) -> str:
    return "\n".join(turn.content for turn in row.prompt) if row.messages else row.surface


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
