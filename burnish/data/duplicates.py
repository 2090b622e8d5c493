"""Rows that say the same: exactly (after folding case, blanks and letter forms) or nearly (shared 5-letter pieces).

In: texts, one after the other.  Out: for every row the group it belongs to.  Only fixed-size numbers are kept per
row, on disk where there are many; texts are fetched again, by row, for the few pairs that must be compared.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Indices = NDArray[np.int64]
PIECE = 5  # letters
HASHES = 80  # random orders per row; 80 find 99.8 % of the pairs at Jaccard 0.8
RECALL = 0.99  # of the pairs at the threshold that must become candidates
SPAN = 100_000  # letters of a text that are looked at
BLOCK = 4096  # rows held before they go to disk
PAIRWISE = 16  # a bucket up to this size is compared all with all; larger ones with their first and previous row


def normal(text: str) -> str:
    """NFKC, one blank for any white space, lower case.

    A text without blanks keeps its case: in a molecule or a transcription `C` and `c` differ.

    >>> normal("  The\\tＣat ")
    'the cat'
    """
    formed = unicodedata.normalize("NFKC", text)
    # a list of ten million words would not stay flat
    blanks = " ".join(formed.split()) if len(formed) < 2**20 else re.sub(r"\s+", " ", formed).strip()
    return blanks.casefold() if " " in blanks else blanks


def key(parts: Sequence[str]) -> int:
    """64 bits that texts share when they are equal after `normal`, part by part."""
    told = "\x1f".join(normal(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(told.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def runs(keys: NDArray[np.generic], among: Indices) -> Iterator[Indices]:
    """The rows of `among` that share a key, for every key that two or more share, in the order of their first rows."""
    mine = keys[among]
    order = np.argsort(mine, kind="stable")
    same = mine[order][1:] == mine[order][:-1]
    edges = np.flatnonzero(np.diff(np.concatenate(([False], same, [False])).astype(np.int8)))
    starts, ends = edges[::2], edges[1::2]
    for at in np.argsort(order[starts], kind="stable"):
        yield among[order[starts[at] : ends[at] + 1]]


def pieces(text: str) -> Hashes:
    """The different 5-letter pieces of a normal text as sorted 64-bit hashes (a shorter text is one piece)."""
    return np.unique(_pieces(text))


def _pieces(text: str) -> Hashes:
    letters = np.frombuffer(text[:SPAN].encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    size = min(PIECE, max(len(letters), 1))
    letters = letters if len(letters) else np.zeros(1, np.uint64)
    total = np.zeros(len(letters) - size + 1, np.uint64)
    for at in range(size):
        total = total * np.uint64(0x9E3779B97F4A7C15) + letters[at : at + len(total)]
    return _mixed(total)


def _mixed(values: Hashes) -> Hashes:
    """Every input bit reaches every output bit (splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def jaccard(one: Hashes, other: Hashes) -> float:
    """Shared pieces as a share of all pieces of two rows."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


def banding(threshold: float) -> tuple[int, int]:
    """(bands, hashes a band): the longest bands that still catch RECALL of the pairs at the threshold.

    Source: Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, 3.4.2: P = 1 - (1 - s^r)^b.

    >>> banding(0.8)
    (16, 5)
    """
    fits = [r for r in range(1, HASHES + 1) if 1 - (1 - threshold**r) ** (HASHES // r) >= RECALL]
    rows = max(fits, default=1)
    return HASHES // rows, rows


_ORDERS = np.frombuffer(hashlib.shake_128(b"burnish near duplicates").digest(8 * HASHES), "<u4").reshape(2, HASHES, 1)


class NearDuplicates:
    """MinHash with locality-sensitive hashing over rows given one by one; each pair found is checked by true Jaccard.

    Source: Broder 1997, On the resemblance and containment of documents.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold, self.rows = threshold, 0
        self.bands, self.width = banding(threshold)
        self.files = [tempfile.TemporaryFile() for _ in range(self.bands)]  # noqa: SIM115 (closed by close)
        self.block: list[NDArray[np.uint32]] = []

    def add(self, text: str) -> None:
        """The next row, as a `normal` text."""
        found = (_pieces(text) >> np.uint64(32)).astype(np.uint32)
        multiply, shift = _ORDERS[0] | np.uint32(1), _ORDERS[1]
        least = np.full((HASHES, 1), 0xFFFFFFFF, np.uint32)
        for start in range(0, len(found), 4096):  # (HASHES, 4096) at a time stays in the cache
            orders = multiply * found[None, start : start + 4096] + shift
            np.minimum(least, orders.min(axis=1, keepdims=True), out=least)
        self.block.append(least[: self.bands * self.width, 0])
        self.rows += 1
        if len(self.block) == BLOCK:
            self._flush()

    def _flush(self) -> None:
        if self.block:
            values = np.stack(self.block).reshape(-1, self.bands, self.width).astype(np.uint64)
            band = np.zeros(values.shape[:2], np.uint64)
            for at in range(self.width):
                band = _mixed(band * np.uint64(31) + values[:, :, at])
            for file, column in zip(self.files, band.T, strict=True):
                file.write(column.tobytes())
            self.block = []

    def pairs(self, among: Indices, text: Callable[[int], str]) -> Iterator[tuple[int, int]]:
        """Pairs of rows that are near duplicates, enough of them to join every group; band by band."""
        self._flush()
        fetch = lru_cache(maxsize=64)(lambda row: pieces(text(row)))
        parent: dict[int, int] = {}
        unlike: set[tuple[int, int]] = set()
        for file in self.files:
            file.seek(0)
            band = np.frombuffer(file.read(), np.uint64)
            for rows in runs(band, among):
                for one, other in _compared(rows.tolist()):
                    if _root(parent, one) == _root(parent, other) or (one, other) in unlike:
                        continue
                    if jaccard(fetch(one), fetch(other)) >= self.threshold:
                        parent[_root(parent, other)] = _root(parent, one)
                        yield one, other
                    elif len(unlike) < 100_000:
                        unlike.add((one, other))

    def close(self) -> None:
        for file in self.files:
            file.close()


def _compared(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    if len(rows) <= PAIRWISE:
        yield from ((one, other) for at, one in enumerate(rows) for other in rows[at + 1 :])
        return
    for at in range(1, len(rows)):
        yield rows[0], rows[at]
        if at > 1:
            yield rows[at - 1], rows[at]


def _root(parent: dict[int, int], row: int) -> int:
    while (up := parent.get(row, row)) != row:
        parent[row] = parent.get(up, up)
        row = up
    return row


class Groups:
    """Sets of rows that must stay together; a row alone takes no memory."""

    def __init__(self) -> None:
        self.parent: dict[int, int] = {}

    def join(self, one: int, other: int) -> None:
        self.parent[_root(self.parent, max(one, other))] = _root(self.parent, min(one, other))

    def of(self, rows: int) -> Indices:
        """For each of `rows` rows the group it is in, named by one of its rows; shape (rows,)."""
        found = np.arange(rows, dtype=np.int64)
        for row in list(self.parent):
            found[row] = _root(self.parent, row)
        return found
