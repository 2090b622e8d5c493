"""What prompting rungs share: which texts of a pool are like a question, and which are unlike each other.

In: texts, or their vectors.  Out: scores, and places in the pool; ties go by position, so that no answer ever wavers.
BM25 (Robertson and Zaragoza 2009, k1 1.2, b 0.75) over words is exact, and quick for some hundred thousand texts.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

WORD = re.compile(r"\w+")
K1, B = 1.2, 0.75
RRF = 60  # Cormack et al. 2009, Reciprocal Rank Fusion


class Pool(Protocol):
    """An index over N texts.  A query is whatever `queries` makes of a text."""

    def queries(self, texts: Sequence[str]) -> Sequence[Any]: ...

    def scores(self, query: Any) -> np.ndarray:
        """(N,) how like every indexed text is; larger is more alike."""
        ...

    def between(self, i: int) -> np.ndarray:
        """(N,) how like text i every indexed text is; 1 for itself."""
        ...


class Bm25:
    """Words in common, rare ones counting more."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        counts = [Counter(WORD.findall(text.casefold())) for text in texts]
        lengths = np.array([sum(count.values()) for count in counts], float)
        mean = lengths.mean() if len(lengths) else 1.0
        postings: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for i, count in enumerate(counts):
            for word, often in count.items():
                postings[word].append((i, often))
        self._weights: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for word, found in postings.items():
            places = np.array([place for place, _ in found])
            times = np.array([n for _, n in found], float)
            rarity = math.log(1 + (len(texts) - len(found) + 0.5) / (len(found) + 0.5))
            norm = times + K1 * (1 - B + B * lengths[places] / max(mean, 1e-9))
            self._weights[word] = (places, rarity * times * (K1 + 1) / norm)

    def queries(self, texts: Sequence[str]) -> Sequence[str]:
        return texts

    def scores(self, query: str) -> np.ndarray:
        """(N,) BM25 scores of every indexed text for this one."""
        told = np.zeros(len(self.texts))
        for word in sorted(set(WORD.findall(query.casefold()))):
            if word in self._weights:
                places, weights = self._weights[word]
                told[places] += weights
        return told

    def between(self, i: int) -> np.ndarray:
        """(N,) scores for text i as shares of its own."""
        told = self.scores(self.texts[i])
        return np.minimum(told / max(told[i], 1e-9), 1.0)

    def nearest(self, text: str, k: int) -> list[int]:
        """The k most alike, best first."""
        return nearest(self.scores(text), k)


@lru_cache(maxsize=4)
def bm25(texts: tuple[str, ...]) -> Bm25:
    """The index over these texts; the same ones are not indexed twice."""
    return Bm25(texts)


class Vectors:
    """Cosine of centred vectors: (N, H) of the pool, and `encode` for questions."""

    def __init__(self, vectors: np.ndarray, encode: Callable[[Sequence[str]], np.ndarray]) -> None:
        self._centre = vectors.mean(0)
        self._unit, self._encode = _unit(vectors - self._centre), encode

    def queries(self, texts: Sequence[str]) -> Sequence[np.ndarray]:
        return list(_unit(self._encode(texts) - self._centre))

    def scores(self, query: np.ndarray) -> np.ndarray:
        return np.asarray(self._unit @ query)

    def between(self, i: int) -> np.ndarray:
        return self.scores(self._unit[i])


class Fused:
    """Several indexes over the same texts, by reciprocal rank fusion: a text scores the sum of 1 / (60 + its rank)."""

    def __init__(self, pools: Sequence[Pool]) -> None:
        self.pools = pools

    def queries(self, texts: Sequence[str]) -> Sequence[tuple[Any, ...]]:
        return list(zip(*(pool.queries(texts) for pool in self.pools), strict=True))

    def scores(self, query: tuple[Any, ...]) -> np.ndarray:
        return self._sum([pool.scores(part) for pool, part in zip(self.pools, query, strict=True)])

    def between(self, i: int) -> np.ndarray:
        told = self._sum([pool.between(i) for pool in self.pools])
        return told / told.max()

    @staticmethod
    def _sum(scores: Sequence[np.ndarray]) -> np.ndarray:
        told = np.zeros(len(scores[0]))
        for part in scores:
            order = nearest(part, len(part))
            told[order] += 1 / (RRF + 1 + np.arange(len(order)))
        return told


def nearest(scores: np.ndarray, k: int) -> list[int]:
    """The places of the k largest scores, best first."""
    return [int(i) for i in np.lexsort((np.arange(len(scores)), -scores))[:k]]


def diverse(pool: Pool, k: int, first: int) -> list[int]:
    """k texts unlike each other: from `first` on, always the farthest from all taken (k-centre; Gonzalez 1985)."""
    taken, near = [first], pool.between(first).copy()
    for _ in range(min(k, len(near)) - 1):
        near[taken] = np.inf
        taken.append(int(np.argmin(near)))
        near = np.maximum(near, pool.between(taken[-1]))
    return taken


def mmr(pool: Pool, scores: np.ndarray, k: int, allowed: Sequence[int]) -> list[int]:
    """k of `allowed` places that are like the question and unlike each other, the first taken first.

    Maximal marginal relevance (Carbonell and Goldstein 1998) with equal weights, among the 5k most alike.
    """
    rest = sorted(allowed, key=lambda i: (-scores[i], i))[: 5 * k]
    relevance, spoken_for = scores / max(float(scores.max(initial=0.0)), 1e-9), np.zeros(len(scores))
    taken: list[int] = []
    while rest and len(taken) < k:
        best = max(rest, key=lambda i: (relevance[i] - spoken_for[i], -i))
        rest.remove(best)
        taken.append(best)
        spoken_for = np.maximum(spoken_for, pool.between(best))
    return taken


def _unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9))
