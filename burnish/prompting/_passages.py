"""Documents cut into passages that know their source, and which of them is like a question.

In: files and a size in words.  Out: Passages, and an index over them (words, vectors, or both fused) whose costly parts
(what was read out of a file, and vectors) lie in BURNISH_HOME under the hash of what they were made from.
"""

from __future__ import annotations

import bisect
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Any

import numpy as np

from burnish import store
from burnish.data.documents import Document
from burnish.errors import DataError
from burnish.prompting._encoder import Encoder
from burnish.prompting._pool import Fused, Pool, Vectors, bm25

WORD = re.compile(r"\S{1,60}")  # a longer one is cut: a document may be one long word
END = re.compile(r"[.!?:;][\"')\]]*$")
MOST = 200_000  # passages of all documents
MODES = ("words", "encoder", "fused")


@dataclass(frozen=True)
class Passage:
    """text is characters start to end of the document `source`; place: its heading, page or line."""

    source: str
    place: str
    start: int
    end: int
    text: str

    @property
    def cited(self) -> str:
        """As a person looks it up."""
        return f"{self.source}, {self.place}" if self.place else self.source

    @property
    def indexed(self) -> str:
        """What is searched: the heading's words count too."""
        return f"{self.place}\n{self.text}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def passages(documents: Sequence[Document], size: int) -> list[Passage]:
    """Every document in passages of at most `size` words, cut at sentence ends where one is near."""
    made: list[Passage] = []
    for document in documents:
        lines = [match.end() for match in re.finditer("\n", document.text)]
        for section in document.sections:
            for start, end in _cut(document.text, section.start, section.end, size):
                place = section.heading or f"line {bisect.bisect_right(lines, start) + 1}"
                made.append(Passage(document.name, place, start, end, document.text[start:end]))
        if len(made) > MOST:
            raise DataError(f"The documents make more than {MOST:,} passages", document.name, "name fewer documents")
    return made


def _cut(text: str, start: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, end) of each passage: `size` words, or fewer down to half of it where a sentence ends there."""
    words = [match.span() for match in WORD.finditer(text, start, end)]
    at = 0
    while at < len(words):
        stop = min(at + size, len(words))
        if stop < len(words):
            ends = (i for i in range(stop, at + size // 2, -1) if _ends(text, words[i - 1], words[i]))
            stop = next(ends, stop)
        yield words[at][0], words[stop - 1][1]
        at = stop


def _ends(text: str, word: tuple[int, int], after: tuple[int, int]) -> bool:
    return bool(END.search(text[slice(*word)])) or text.count("\n", word[1], after[0]) > 1


def index(found: Sequence[Passage], mode: str, vectors: np.ndarray | None, encoder: Encoder | None) -> Pool:
    """The index over passages that a mode names; `vectors` and `encoder` for those that read by meaning."""
    words: Pool = bm25(tuple(item.indexed for item in found))
    if mode == "words" or vectors is None or encoder is None:
        return words
    dense = Vectors(vectors, encoder.vectors)
    return dense if mode == "encoder" else Fused([words, dense])


def vectors(found: Sequence[Passage], encoder: Encoder) -> np.ndarray:
    """(N, H) of the passages; those of a document that has not changed come from BURNISH_HOME."""
    parts: dict[str, list[str]] = {}
    for item in found:
        parts.setdefault(item.source, []).append(item.indexed)
    return np.concatenate([_kept(texts, encoder) for texts in parts.values()])


def _kept(texts: Sequence[str], encoder: Encoder) -> np.ndarray:
    if "fingerprint" not in encoder.reference:  # the answering model itself, which may have been tuned
        return encoder.vectors(texts)
    digest = hashlib.sha256("\0".join((encoder.reference["fingerprint"], *texts)).encode()).hexdigest()
    path = store.home() / "cache" / "vectors" / f"{digest}.npy"
    try:
        return np.asarray(np.load(BytesIO(path.read_bytes())))
    except (OSError, ValueError):
        made, held = encoder.vectors(texts), BytesIO()
        np.save(held, made)
        store.write_bytes(path, held.getvalue())
        return made


@dataclass(frozen=True)
class Hits:
    """How often the passage that holds the answer is found.  by: how it is known which one does.

    places: where each row's first right passage stands, from 1; 0 where none is right.
    """

    by: str
    places: tuple[int, ...]

    def at(self, k: int) -> float:
        """Share of the rows whose first k passages hold a right one."""
        return float(np.mean([0 < place <= k for place in self.places]))

    @property
    def reciprocal(self) -> np.ndarray:
        """(N,) 1 / place, 0 where none is right: its mean is the MRR."""
        return np.array([1 / place if place else 0.0 for place in self.places])

    def beats(self, other: Hits) -> bool:
        """Whether it finds better than another on the same rows by more than two standard errors of the MRR."""
        gap = self.reciprocal - other.reciprocal
        return bool(gap.mean() > 2 * gap.std(ddof=min(1, len(gap) - 1)) / np.sqrt(len(gap)))

    def to_json(self, ks: Sequence[int]) -> dict[str, Any]:
        """mrr_error: standard error of the mean reciprocal rank over rows."""
        ranks, told = self.reciprocal, {f"hit_at_{k}": round(self.at(k), 4) for k in ks}
        error = float(ranks.std(ddof=1) / np.sqrt(len(ranks))) if len(ranks) > 1 else 0.0
        told |= {"mrr": round(float(ranks.mean()), 4), "mrr_error": round(error, 4)}
        return {"found_by": self.by, "found_rows": len(self.places), **told}


def hits(ranked: Sequence[Sequence[bool]], by: str) -> Hits:
    """Hits of rows whose passages are marked right or wrong, best first."""
    return Hits(by, tuple(next((place for place, right in enumerate(row, 1) if right), 0) for row in ranked))
