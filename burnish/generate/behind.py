"""Rows behind what all of them begin with: what is run together, whichever way it is run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from burnish.generate.prefix import Prefix
from burnish.generate.tree import BARE, Tree


@dataclass(frozen=True)
class Behind:
    """B rows behind a prefix of P ids: each its own ids, then its own tree.

    own: ids after the prefix, at least one each.  asked: the places in `own` whose next id is asked, ascending.
    trees: one for each row, or none.  A row's places are its own first, then those of its tree.
    """

    prefix: Prefix
    own: Sequence[np.ndarray]
    asked: Sequence[np.ndarray]
    trees: Sequence[Tree] = ()
    pad: int = 0

    def __len__(self) -> int:
        return len(self.own)

    def each(self) -> Iterator[tuple[np.ndarray, np.ndarray, Tree]]:
        """(own, asked, tree) of each row."""
        return zip(self.own, self.asked, self.trees or [BARE] * len(self), strict=True)

    @property
    def sizes(self) -> list[int]:
        """Ids of each row and its tree."""
        return [len(row) + len(tree) for row, _, tree in self.each()]

    def some(self, chosen: Sequence[int]) -> Behind:
        """The rows at these places, one of them perhaps several times."""
        own, asked = ([part[i] for i in chosen] for part in (self.own, self.asked))
        return replace(self, own=own, asked=asked, trees=[self.trees[i] for i in chosen] if self.trees else ())
