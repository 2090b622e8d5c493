"""A row as a model reads it: ids, what each counts as a target, and what comes with them; and rows made when asked for.

In: numbers of one row.  Out: Tokens, which batches are made of; the count of every token that a run states.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np

VIRTUAL = 1 << 30  # ids from here on are virtual tokens: learned vectors of a soft prompt, in no vocabulary


@dataclass(frozen=True)
class Tokens:
    """One row for a model.

    ids: (T,).  weights: (T,) how much predicting each id counts; 0 is context.
    source: (S,) what an encoder-decoder reads; ids are then what its decoder writes.
    label: class index, multi-hot vector or number; None for language.
    targets: (T,) what to say where it is not what is read (hidden tokens of an encoder).
    segments: (T,) 0 or 1, which of two texts an id belongs to; None where there is one text.
    rejected: of a preference pair, the same prompt with the other answer; the row itself is then the chosen one.
    reference: (2,) log-likelihood in nats of the chosen and the rejected answer before training.
    states: reads (T, H) what enters the first trained layer, where that is kept; int16 holds the bits of bfloat16.
    """

    ids: np.ndarray
    weights: np.ndarray
    example: str
    where: str
    source: np.ndarray | None = None
    label: Any = None
    targets: np.ndarray | None = None
    segments: np.ndarray | None = None
    states: Callable[[], np.ndarray] | None = None
    rejected: Tokens | None = None
    reference: np.ndarray | None = None

    @property
    def length(self) -> int:
        """Tokens that are run; what a pair's answers share counts once."""
        own = len(self.ids) + (0 if self.source is None else len(self.source))
        return own if self.rejected is None else own + self.rejected.length - self.shared

    @property
    def supervised(self) -> int:
        """How many ids count as targets."""
        own = int((self.weights > 0).sum())
        return own if self.rejected is None else own + self.rejected.supervised

    @property
    def shared(self) -> int:
        """How many ids of a pair stand once: all that both rows begin with, but the last, from which both go on."""
        if self.rejected is None or self.source is not None:
            return 0
        size = min(len(self.ids), len(self.rejected.ids))
        same = self.ids[:size] == self.rejected.ids[:size]
        return max(size if same.all() else int(same.argmin()), 1) - 1

    def documents(self, shared: bool = False) -> list[Tokens]:
        """What a row is read as: itself; a pair's two rows; or, shared, their common beginning and what follows it.

        The last id of the beginning heads both ends, so that each end's first new id is predicted from its own place.
        """
        if self.rejected is None:
            return [self]
        chosen, rejected = replace(self, rejected=None, states=None), self.rejected
        if not shared:
            return [chosen, rejected]
        at, told = self.shared, rejected.weights[self.shared :].copy()
        told[0] = 0.0  # predicted from the beginning, and counted at the head of the chosen end
        return [
            replace(chosen, ids=self.ids[:at], weights=self.weights[:at]),
            replace(chosen, ids=self.ids[at:], weights=self.weights[at:]),
            replace(rejected, ids=rejected.ids[at:], weights=told),
        ]


def led(tokens: Tokens, virtual: int) -> Tokens:
    """The row with so many virtual tokens before what is read; they are no targets."""
    if not virtual:
        return tokens
    lead = np.arange(VIRTUAL, VIRTUAL + virtual, dtype=np.int32)
    if tokens.rejected is not None:
        tokens = replace(tokens, rejected=led(tokens.rejected, virtual))
    if tokens.source is not None:
        return replace(tokens, source=np.concatenate([lead, tokens.source]))
    none = np.zeros_like(lead)
    return replace(
        tokens,
        ids=np.concatenate([lead, tokens.ids]),
        weights=np.concatenate([none.astype(np.float32), tokens.weights]),
        targets=None if tokens.targets is None else np.concatenate([lead, tokens.targets]),
        segments=None if tokens.segments is None else np.concatenate([none, tokens.segments]),
    )


@dataclass
class Count:
    """What became of every token: the statement a run makes before it trains."""

    rows: int = 0
    pieces: int = 0
    kept: int = 0
    cut: int = 0
    trained: int = 0
    unknown: int = 0
    longest: int = 0

    @property
    def masked(self) -> int:
        """Tokens that are read but not trained on."""
        return self.kept - self.trained

    def to_json(self) -> dict[str, int]:
        return {
            "rows": self.rows,
            "pieces": self.pieces,
            "tokens_kept": self.kept,
            "tokens_cut": self.cut,
            "tokens_masked": self.masked,
            "tokens_trained": self.trained,
            "tokens_unknown": self.unknown,
            "longest": self.longest,
        }


class Rows(Sequence[Tokens]):
    """Rows each of which is made when it is asked for: a file of this kind says how many there are and makes one."""

    @abstractmethod
    def make(self, place: int) -> Tokens:
        """The row at a place from 0 on."""

    @overload
    def __getitem__(self, place: int) -> Tokens: ...
    @overload
    def __getitem__(self, place: slice) -> list[Tokens]: ...
    def __getitem__(self, place: int | slice) -> Tokens | list[Tokens]:
        size = len(self)
        if isinstance(place, slice):
            return [self.make(i) for i in range(*place.indices(size))]
        if not -size <= place < size:
            raise IndexError(place)
        return self.make(place % size)
