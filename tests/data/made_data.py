"""Small data files and tasks for the tests of the data floor."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from burnish.task import Task
from burnish.taskfile import resolve


def write(folder: Path, name: str, content: str | bytes | Iterable[Any]) -> str:
    """A file of text, of bytes, or of one JSON value a line; returns its name."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        content = content.encode()
    elif not isinstance(content, bytes):
        content = "".join(json.dumps(row) + "\n" for row in content).encode()
    path.write_bytes(content)
    return name


def task(folder: Path, files: list[str], goal: str = "classify", **data: Any) -> Task:
    """A task whose files lie in `folder`."""
    return resolve({"goal": {"task": goal}, "data": {"files": files, **data}}, str(folder / "task.yaml"))


def reviews(count: int, labels: tuple[str, ...] = ("good", "bad")) -> list[dict[str, str]]:
    """Rows of random words, none of them near duplicates; row n is the same whatever the count."""
    rows = []
    for at in range(count):
        rng = random.Random(at)
        words = ["".join(rng.choices("abcdefghijklmnopqrst", k=6)) for _ in range(7)]
        rows.append({"text": f"{at} {' '.join(words)}", "label": labels[at % len(labels)]})
    return rows
