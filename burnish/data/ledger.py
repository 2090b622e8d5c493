"""The good rows of a preparation: whole on disk, and a few numbers of each in memory (about 60 bytes).

In: Examples as they are read, each with the index of its file.  Out: columns of those numbers, rows per class, and any
Example again.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from burnish.data.duplicates import key
from burnish.data.validate import ordered
from burnish.records import Example, Label, Where

COLUMNS = {  # name: its type, as array and numpy both call it
    "file": "I",
    "line": "q",
    "offset": "q",  # in the spool
    "id": "Q",
    "exact": "Q",  # of everything but the label
    "prompt": "Q",  # of what stands before the answer; 0: none
    "label": "i",  # index into the labels seen; -1: none, or a number
    "value": "d",
    "letters": "I",
}


class Ledger:
    """Rows by number, from 0 on.  files: their names.  spool: an empty file to read and write."""

    def __init__(self, files: Sequence[str], spool: BinaryIO) -> None:
        self.files, self.spool = files, spool
        self.labels: dict[Label, int] = {}  # a class or several -> its index
        self._columns: dict[str, array[Any]] = {name: array(kind) for name, kind in COLUMNS.items()}
        self._end = 0

    def __len__(self) -> int:
        return len(self._columns["line"])

    def __getitem__(self, name: str) -> NDArray[Any]:
        """A column, shape (rows,); while it is held no row can be added."""
        values = self._columns[name]
        return np.frombuffer(values, values.typecode) if len(values) else np.zeros(0, values.typecode)

    def add(self, file: int, example: Example) -> None:
        """Spool a row and note its numbers."""
        line = json.dumps(example.to_json(), ensure_ascii=False).encode() + b"\n"
        turns = example.messages if not example.choices else example.prompt
        said = [*(turn.content for turn in turns), *example.choices] or [example.text, example.pair or ""]
        label, number = example.label, isinstance(example.label, float)
        row = {
            "file": file,
            "line": example.where.line,
            "offset": self._end,
            "id": int(example.id, 16),
            "exact": key([turn.role for turn in turns] + said),
            "prompt": key([turn.content for turn in example.prompt]) if turns else 0,
            "label": -1 if label is None or number else self.labels.setdefault(label, len(self.labels)),
            "value": label if number else 0.0,
            "letters": min(sum(map(len, said)), 2**32 - 1),
        }
        for name, column in self._columns.items():
            column.append(row[name])
        self.spool.write(line)
        self._end += len(line)

    def where(self, row: int) -> Where:
        return Where(self.files[self._columns["file"][row]], self._columns["line"][row])

    def example(self, row: int) -> Example:
        """The row as it was read."""
        self.spool.seek(self._columns["offset"][row])
        return Example.from_json(json.loads(self.spool.readline()))

    def counts(self, rows: Any) -> Counter[str]:
        """Rows per class among `rows` (numbers or a mask); a row of several classes counts for each."""
        known = list(self.labels)
        found = Counter(self["label"][rows].tolist())
        counts: Counter[str] = Counter()
        for index in sorted(found):
            for label in classes(known[index]) if index >= 0 else ():
                counts[label] += found[index]
        return counts

    def strata(self, rows: Any) -> NDArray[np.int64]:
        """A number for each of `rows`: its class; of several classes the rarest; -1 without one."""
        counts = self.counts(rows)
        places = {label: at for at, label in enumerate(ordered(counts))}
        rarest = (
            min(classes(one), key=lambda label: (counts[label], places.get(label, -1)), default="")
            for one in self.labels
        )
        return np.array([*(places.get(label, -1) for label in rarest), -1], np.int64)[self["label"][rows]]


def classes(label: Label) -> tuple[str, ...]:
    """The classes that a label names: one, or several."""
    return label if isinstance(label, tuple) else (str(label),)
