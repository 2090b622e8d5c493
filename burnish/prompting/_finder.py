"""Passages found for questions, put before them, and scored on their own where the rows say where the answer stands."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import numpy as np

from burnish.generate.answer import Answerer
from burnish.prompting._format import question
from burnish.prompting._passages import Hits, Passage, hits
from burnish.prompting._pool import Pool, nearest
from burnish.records import Example
from burnish.tokens import ask

KS = (1, 3, 5, 10)
WORD = re.compile(r"\w+")
WRITTEN = (
    "choose",
    "answer",
    "extract",
    "chat",
)  # goals whose answer may stand in a passage, unlike the name of a class


@dataclass(frozen=True)
class Finder:
    """Passages and the index over them."""

    passages: Sequence[Passage]
    pool: Pool

    def find(self, rows: Sequence[Example], k: int) -> list[list[Passage]]:
        """The k passages most like each row's question, best first."""
        queries = self.pool.queries([query(row) for row in rows])
        return [[self.passages[i] for i in nearest(self.pool.scores(each), k)] for each in queries]

    def hits(self, rows: Sequence[Example], goal: str) -> Hits | None:
        """How well answers are found; None where the rows do not say where they stand.

        By the rows' source where any has one, else by passages that hold the answer in so many words; rows whose
        answer stands nowhere are not counted.
        """
        by = "source" if any(row.meta.get("source") for row in rows) else "answer"
        if by == "answer" and goal not in WRITTEN:
            return None
        folded = [_folded(item.text) for item in self.passages] if by == "answer" else []
        marked = [self._right(row, by, folded) for row in rows]
        known = [(row, right) for row, right in zip(rows, marked, strict=True) if right.any()]
        if not known:
            return None
        queries = self.pool.queries([query(row) for row, _ in known])
        ranked = [
            right[nearest(self.pool.scores(each), len(right))] for (_, right), each in zip(known, queries, strict=True)
        ]
        return hits([row.tolist() for row in ranked], by)

    def _right(self, row: Example, by: str, folded: Sequence[str]) -> np.ndarray:
        """(N,) which passages hold the row's answer."""
        if by == "source":
            told = str(row.meta.get("source") or "?")
            return np.array([item.source == told or item.source.endswith(f"/{told}") for item in self.passages])
        answer = _folded(row.answer)
        return np.array([bool(answer.strip()) and answer in text for text in folded])


def query(row: Example) -> str:
    """What is looked up: the last thing asked, and what follows its blank where it has one."""
    asked = [turn.content for turn in row.prompt if turn.role == "user"]
    ends = zip(*(choice.split()[::-1] for choice in row.choices), strict=False)
    after = [words[0] for words in takewhile(lambda words: len(set(words)) == 1, ends)]
    return " ".join([asked[-1], *after[::-1]]) if asked else question(row)


def _folded(text: str) -> str:
    return f" {' '.join(WORD.findall(text.casefold()))} "


def before(
    answerer: Answerer, recipe: Mapping[str, Any], found: Sequence[Passage], row: Example
) -> tuple[Example, list[str]]:
    """(the question behind its passages, their sources as cited); the least alike leave first where not all fit."""
    told = answerer.contract.instruction
    spoken = ask.as_messages(row, told, bool(row.messages) or row.label is not None)
    last = max(i for i, turn in enumerate(spoken.messages) if turn.role == "user")

    def asked(kept: int) -> Example:
        blocks = [_block(recipe["passage"], n, item) for n, item in enumerate(found[:kept], 1)]
        parts = [*([recipe["lead"]] if recipe["lead"] and kept else []), *blocks, spoken.messages[last].content]
        turn = replace(spoken.messages[last], content=recipe["separator"].join(parts))
        turns = (*spoken.messages[:last], turn, *spoken.messages[last + 1 :])
        return replace(spoken, messages=turns, shape="conversation")

    room = answerer.room_for(row)

    def fits(made: Example) -> bool:
        ids = answerer.encoding.prompt_ids(answerer.spoken(made, with_answer=False).messages)
        return len(ids) + room <= answerer.encoding.max_length

    kept = len(found)
    while kept and not fits(asked(kept)):
        kept -= 1
    return asked(kept), [f"[{n}] {item.cited}" for n, item in enumerate(found[:kept], 1)]


def _block(form: str, number: int, item: Passage) -> str:
    """A passage as it stands in the prompt; what it holds is never read as a form itself."""
    told = {"{n}": str(number), "{source}": item.cited, "{text}": item.text}
    return re.sub(r"\{(n|source|text)\}", lambda match: told[match.group()], form)
