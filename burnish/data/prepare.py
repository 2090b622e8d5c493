"""The data floor's door: `look` says what a file seems to be, `prepare` turns files into train, validation and test.

In: a Task (or a file name).  Out: a folder with train.jsonl, validation.jsonl, test.jsonl (Examples), dropped.jsonl,
problems.jsonl and card.json, which is written last: a folder with a card is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import psutil

from burnish import store
from burnish.data import readers
from burnish.data.look import KEPT, Guess, look
from burnish.data.preparation import Preparation
from burnish.data.split import NAMES, TEST, TRAIN, VALIDATION
from burnish.errors import ArtifactError, DataError
from burnish.records import Example, Problem
from burnish.task import Task

__all__ = ["Guess", "Prepared", "examples", "iterate", "look", "prepare"]


@dataclass(frozen=True)
class Prepared:
    """A finished data folder.  problems: errors first, at most KEPT of them, then warnings; card counts them all."""

    folder: Path
    shape: str
    columns: dict[str, str | list[str]]
    labels: tuple[str, ...]
    multi: bool
    card: dict[str, Any]
    problems: list[Problem]


# --- preparing -----------------------------------------------------------------------------------------------


def prepare(task: Task, out: str | Path) -> Prepared:
    """Read, check, deduplicate and split a task's data into `out`; a finished folder of the same data is used again.

    Raises DataError when the files or columns cannot be made out, and BadRows when rows are bad and
    `data.on_problem` is stop; then `out` holds problems.jsonl and no card.
    """
    try:
        return _prepare(task, Path(out))
    except DataError as problem:
        if problem.where.startswith("data."):  # a key of the task: say on which line it stands
            problem.where = task.where(problem.where) or problem.where
        raise


def _prepare(task: Task, out: Path) -> Prepared:
    settings = task.data
    files = readers.find(settings.files, task.folder)
    roles = dict.fromkeys(files, TRAIN)
    for names, role in ((settings.validation_files, VALIDATION), (settings.test_files, TEST)):
        for source in readers.find(names, task.folder) if names else []:
            if any(source.path.resolve() == other.path.resolve() for other in roles):
                raise DataError("A file is named twice, for two uses", source.name, "name it under one key of data")
            roles[source] = role
    hashes = {source.name: source.sha256() for source in roles}
    fingerprint = _fingerprint(task, hashes)
    done = _finished(out, fingerprint)
    if done is not None:
        return done
    out.mkdir(parents=True, exist_ok=True)
    (out / "card.json").unlink(missing_ok=True)
    for left in out.glob(".staging-*"):  # of a process that was killed
        if not psutil.pid_exists(int(left.name.rpartition("-")[2])):
            shutil.rmtree(left, ignore_errors=True)
    staging = out / f".staging-{os.getpid()}"
    staging.mkdir(exist_ok=True)
    try:
        with store.disk_errors(out):
            card, problems = Preparation(task, roles, hashes, out, staging).run()
        card = {"fingerprint": fingerprint, **card}
        store.write_json(out / "card.json", card)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return _prepared(out, card, problems)


def _prepared(out: Path, card: dict[str, Any], problems: list[Problem]) -> Prepared:
    return Prepared(out, card["shape"], card["columns"], tuple(card["labels"]), card["multi"], card, problems)


def _fingerprint(task: Task, hashes: Mapping[str, str]) -> str:
    """16 hex digits of everything that decides the result: files, settings, goal, and this code."""
    own = asdict(task.data)
    for name in ("instruction", "template", "train_on", "max_length", "too_long"):
        del own[name]
    code = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        code.update(path.read_bytes())
    said = json.dumps([own, task.goal.task, hashes, code.hexdigest()], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _finished(out: Path, fingerprint: str) -> Prepared | None:
    try:
        card = json.loads((out / "card.json").read_text(encoding="utf-8"))
        if card["fingerprint"] != fingerprint:
            return None
        if any((out / f"{name}.jsonl").stat().st_size != card["bytes"][name] for name in NAMES):
            return None
        problems = [Problem(**row) for row in islice(store.read_jsonl(out / "problems.jsonl"), KEPT)]
    except (OSError, ValueError, KeyError, TypeError, ArtifactError):
        return None
    return _prepared(out, card, problems)


# --- reading back --------------------------------------------------------------------------------------------


def iterate(folder: str | Path, split: str) -> Iterator[Example]:
    """The Examples of one side (train, validation or test) of a prepared folder, in file order, one at a time."""
    if split not in NAMES:
        raise DataError(f'There is no split "{split}"', str(folder), f"use one of {', '.join(NAMES)}")
    path = Path(folder) / f"{split}.jsonl"
    if not path.exists():
        raise DataError("The data has not been prepared", str(path), "`burnish check task.yaml` prepares it")
    return map(Example.from_json, store.read_jsonl(path))


def examples(folder: str | Path, split: str) -> list[Example]:
    """All Examples of one side."""
    return list(iterate(folder, split))
