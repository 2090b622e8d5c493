"""A task on a tiny model and sixty rows."""

import csv
import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tiny

from burnish import store, taskfile
from burnish.climb.run import climb
from burnish.task import Task

LETTERS = "abcdefghijklmnopqrstuvwxyz"
BRIEF = {
    "train": {"epochs": 1, "evaluate_every": 2},
    "evaluate": {"resamples": 100, "max_new_tokens": 4, "samples": 1},
    "few-shot": {"shots": [1, 2], "orders": 1, "budget": 24, "choose": ["random"]},
}


@dataclass
class Desk:
    """A folder with data, a home of its own, and what was heard while climbing."""

    folder: Path
    make_base: Any
    heard: list[tuple[str, str]] = field(default_factory=list)

    def task(
        self, kind: str = "llama", goal: str = "classify", file: str = "rows.csv", metric: str = "auto", **own: Any
    ) -> Task:
        values = {
            "goal": {"task": goal, "metric": metric},
            "data": {"files": [file], "instruction": "Mood?" if goal in ("classify", "regress") else ""},
            "base": {"name": str(self.make_base(kind))},
        }
        for section, keys in [*BRIEF.items(), *own.items()]:
            values[section] = {**values.get(section, {}), **keys} if isinstance(keys, dict) else keys
        return taskfile.resolve(values, str(self.folder / "task.yaml"))

    def climb(self, task: Task, again: bool = False) -> Any:
        self.heard.clear()
        return climb(task, again, self._hear)

    def _hear(self, rung: str, event: Any) -> None:
        self.heard.append((rung, str(event.numbers.get("text", event.kind))))

    def readings(self) -> list[dict[str, Any]]:
        path = store.home() / "readings.jsonl"
        return list(store.read_jsonl(path)) if path.exists() else []


@pytest.fixture
def desk(tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("BURNISH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(store, "_stop", False)
    made = Desk(tmp_path, lambda kind: tiny.folder(kind, tmp_path_factory))
    write(tmp_path / "rows.csv", labelled())
    return made


def words(draw: random.Random, many: int = 4) -> str:
    """A text like no other: letters at random."""
    return " ".join("".join(draw.choices(LETTERS, k=draw.randint(3, 6))) for _ in range(many))


def labelled(many: int = 60, seed: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [{"text": words(draw), "label": ("bad", "good")[i % 2]} for i in range(many)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
