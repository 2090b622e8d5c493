"""What prompting rungs share: which training rows are like a question.

BM25 (Robertson and Zaragoza 2009, k1 1.2, b 0.75) over words; exact, and quick enough for some ten thousand rows.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

WORD = re.compile(r"\w+")
K1, B = 1.2, 0.75


class Bm25:
    """An index over texts; `scores(text)` gives one number for each of them, larger is more alike."""

    def __init__(self, texts: Sequence[str]) -> None:
        counts = [Counter(WORD.findall(text.casefold())) for text in texts]
        lengths = np.array([sum(count.values()) for count in counts], float)
        mean = lengths.mean() if len(lengths) else 1.0
        postings: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for i, count in enumerate(counts):
            for word, often in count.items():
                postings[word].append((i, often))
        self._size = len(texts)
        self._weights: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for word, found in postings.items():
            places = np.array([place for place, _ in found])
            times = np.array([n for _, n in found], float)
            rarity = math.log(1 + (len(texts) - len(found) + 0.5) / (len(found) + 0.5))
            norm = times + K1 * (1 - B + B * lengths[places] / max(mean, 1e-9))
            self._weights[word] = (places, rarity * times * (K1 + 1) / norm)

    def scores(self, text: str) -> np.ndarray:
        """(N,) BM25 scores of every indexed text for this one."""
        told = np.zeros(self._size)
        for word in set(WORD.findall(text.casefold())):
            if word in self._weights:
                places, weights = self._weights[word]
                told[places] += weights
        return told

    def nearest(self, text: str, k: int) -> list[int]:
        """The k most alike, best first; ties by position, so that the answer never wavers."""
        scores = self.scores(text)
        return [int(i) for i in np.lexsort((np.arange(self._size), -scores))[:k]]
