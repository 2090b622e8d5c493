"""Rows that were encoded once are read from disk: mapped, not loaded, and only while nothing they depend on changed.

In: the key of everything that decides which ids rows become, and a way to encode them.  Out: the same rows, from
BURNISH_HOME/cache/<key>/: flat columns as .npy files (never pickled) and a manifest with their hashes, written last.
Whoever comes second while rows are being encoded waits and then reads.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache as once
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from burnish import records, store
from burnish.records import Example, Problem
from burnish.tokens.contract import Contract
from burnish.tokens.rows import Count, Rows, Tokens

MANIFEST, ROWS = "manifest.json", "rows.json"
PAIRED = ("ids", "weights", "source")  # of a pair's other row
COLUMNS = ("ids", "weights", "source", "segments", "example", "where", *(f"rejected-{name}" for name in PAIRED))
KEPT = 30 * 86_400  # seconds after its last use that an entry is removed
Made = tuple[list[Tokens], list[tuple[Example, Problem]], Count]


@dataclass(frozen=True)
class Kept:
    """Encoded rows.  problems: of rows that have no tokens.  warning: what was wrong with the ones on disk, if any."""

    rows: Sequence[Tokens]
    problems: list[Problem]
    count: Count
    warning: str = ""


def key(data: Path, contract: Contract, kind: str, tokenizer: Path) -> str:
    """A name for rows encoded from a file: it changes with their bytes, the contract, the tokenizer or the code.

    kind: decoder, encoder or encoder-decoder.  tokenizer: the base's folder.
    """
    parts = [json.dumps([asdict(contract), kind, _code()]).encode(), _digest(data)]
    files = sorted(path for suffix in ("json", "jinja", "model", "txt") for path in tokenizer.glob(f"*.{suffix}"))
    parts += [part for path in files for part in (path.name.encode(), _digest(path))]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]


@once
def _code() -> str:
    """What changes when the code behind an encoding does: ours, and the libraries that cut and render texts."""
    here = Path(__file__).parent
    files = sorted([Path(records.__file__), *here.glob("*.py"), *here.glob("templates/*")])
    libraries = [f"{name} {version(name)}" for name in ("tokenizers", "jinja2", "transformers")]
    return " ".join([*libraries, *(_digest(path).hex() for path in files)])


def _digest(path: Path) -> bytes:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def rows(name: str, encode: Callable[[], Made]) -> Kept:
    """The rows kept under a key; encoded now, and kept, when there are none or they do not verify."""
    folder = store.home() / "cache" / name
    with store.locked(folder, wait=True):
        problem = fault(folder)
        if problem:
            made = encode()
            with store.disk_errors(folder):
                seal(folder, _write(folder, made))
        os.utime(folder / MANIFEST)
        warning = f"{folder}: {problem}; its rows were encoded again" if problem != "nothing" else ""
        return _read(folder, warning if problem else "")


def fault(folder: Path) -> str:
    """What is wrong with an entry; "nothing" when it was never written, '' when every byte is the one that was."""
    try:
        for name, digest in json.loads((folder / MANIFEST).read_text(encoding="utf-8")).items():
            if _digest(folder / name).hex() != digest:
                return f"{name} changed"
    except FileNotFoundError as missing:
        return "nothing" if missing.filename == str(folder / MANIFEST) else f"{Path(missing.filename).name} is missing"
    except (OSError, ValueError, AttributeError):
        return f"{MANIFEST} cannot be read"
    return ""


def seal(folder: Path, names: Sequence[str]) -> None:
    """Make an entry of these files believed: their hashes are written last.  Old entries are removed."""
    store.write_json(folder / MANIFEST, {name: _digest(folder / name).hex() for name in names})
    _forget(folder.parent)


def _write(folder: Path, made: Made) -> list[str]:
    """Write an entry's files; returns their names.  A file that is mapped elsewhere is replaced, not changed."""
    tokens, problems, count = made
    (folder / MANIFEST).unlink(missing_ok=True)
    columns: dict[str, list[np.ndarray | None]] = {
        "ids": [row.ids for row in tokens],
        "weights": [row.weights for row in tokens],
        "source": [row.source for row in tokens],
        "segments": [row.segments for row in tokens],
        "example": [np.frombuffer(row.example.encode("utf-8", "surrogatepass"), np.uint8) for row in tokens],
        "where": [np.frombuffer(row.where.encode("utf-8", "surrogatepass"), np.uint8) for row in tokens],
    }
    columns |= {
        f"rejected-{name}": [getattr(row.rejected, name) if row.rejected else None for row in tokens] for name in PAIRED
    }
    names = [ROWS]
    for name, parts in columns.items():
        if any(part is not None for part in parts):
            names += [f"{name}.npy", f"{name}-ends.npy"]
            _save(folder / f"{name}.npy", np.concatenate([part for part in parts if part is not None]))
            _save(folder / f"{name}-ends.npy", np.cumsum([0 if part is None else len(part) for part in parts]))
    labels = [row.label.tolist() if isinstance(row.label, np.ndarray) else row.label for row in tokens]
    told = {
        "labels": labels if any(label is not None for label in labels) else None,
        "rows": len(tokens),
        "problems": [problem.to_json() for _, problem in problems],
        "count": asdict(count),
    }
    store.write_text(folder / ROWS, json.dumps(told))
    return names


def _save(path: Path, values: np.ndarray) -> None:
    staged = path.with_name(f".{path.stem}.tmp.npy")
    np.save(staged, values, allow_pickle=False)
    staged.replace(path)


def _read(folder: Path, warning: str) -> Kept:
    told = json.loads((folder / ROWS).read_text(encoding="utf-8"))
    columns = {
        name: (_mapped(folder / f"{name}.npy"), _mapped(folder / f"{name}-ends.npy"))
        for name in COLUMNS
        if (folder / f"{name}.npy").exists() and told["rows"]
    }
    problems = [Problem(**problem) for problem in told["problems"]]
    return Kept(Stored(told["rows"], columns, told["labels"]), problems, Count(**told["count"]), warning)


def _mapped(path: Path) -> np.ndarray:
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


class Stored(Rows):
    """Rows that lie on disk.  columns: name -> (all values, where each row's end)."""

    def __init__(self, size: int, columns: dict[str, tuple[np.ndarray, np.ndarray]], labels: list[Any] | None) -> None:
        self._size, self._columns, self._labels = size, columns, labels

    def __len__(self) -> int:
        return self._size

    def make(self, place: int) -> Tokens:
        parts = {
            name: values[ends[place - 1] if place else 0 : ends[place]]
            for name, (values, ends) in self._columns.items()
        }
        label = self._labels[place] if self._labels else None
        segments = parts.get("segments")
        example, where = (parts[name].tobytes().decode("utf-8", "surrogatepass") for name in ("example", "where"))
        other = [parts.get(f"rejected-{name}") for name in PAIRED]
        return Tokens(
            parts["ids"],
            parts["weights"],
            example,
            where,
            parts.get("source"),
            np.asarray(label, np.float32) if isinstance(label, list) else label,
            None,
            segments if segments is not None and len(segments) else None,
            rejected=None
            if other[0] is None or other[1] is None
            else Tokens(other[0], other[1], example, where, other[2]),
        )


def _forget(root: Path, now: Callable[[], float] = time.time) -> None:
    """Remove what nobody used for a month."""
    for manifest in root.glob(f"*/{MANIFEST}"):
        if manifest.stat().st_mtime < now() - KEPT:
            shutil.rmtree(manifest.parent, ignore_errors=True)
