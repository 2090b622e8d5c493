"""One preparation: rows are read once, checked, deduplicated, split and written, with a line for each that is left out.

In: the files of a task and what each is for.  Out: the splits, dropped.jsonl and problems.jsonl in a folder, and the
card, which `prepare.py` writes last.  Between reading and writing the rows lie in a `Ledger`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from burnish import store
from burnish.data import readers
from burnish.data.duplicates import SPAN, Groups, Indices, NearDuplicates, normal, runs
from burnish.data.files import Source
from burnish.data.guess import Choice
from burnish.data.ledger import Ledger, classes
from burnish.data.look import KEPT, decide, load
from burnish.data.rows import SHOWN, Bad, counted
from burnish.data.split import NAMES, TRAIN, drawn, split
from burnish.data.validate import CLASSES, BadRows, Remarks, label_warnings, ordered, spellings, told
from burnish.errors import DataError
from burnish.records import Example, Label, Problem
from burnish.task import Task

SHARED_PROMPT = 10  # rows with one prompt up to which they are taken for one question asked again
DROPPED = -1
OWN = "also in your own test or validation"


class Preparation:
    """One run of `prepare`: what is known so far."""

    def __init__(self, task: Task, roles: dict[Source, int], hashes: dict[str, str], out: Path, staging: Path) -> None:
        self.task, self.settings, self.roles, self.hashes = task, task.data, roles, hashes
        self.out, self.staging = out, staging
        self.problems: list[Problem] = []
        self.count, self.cut = 0, False
        self.dropped: Counter[str] = Counter()
        self.read: Counter[str] = Counter()
        self.remarks = Remarks()
        self.near = NearDuplicates(self.settings.near_duplicates) if 0 < self.settings.near_duplicates < 1 else None

    def run(self) -> tuple[dict[str, Any], list[Problem]]:
        main = [source for source, role in self.roles.items() if role == TRAIN]
        self.mode = readers.text_mode(main, self.settings.shape, self.task.goal.task, self.settings.columns)
        self.files = list(self.roles)
        with (
            (self.staging / "dropped.jsonl").open("w+", encoding="utf-8") as self.drops,
            (self.staging / "more.jsonl").open("w+", encoding="utf-8") as self.more,  # problems beyond KEPT
            (self.staging / "rows.jsonl").open("w+b") as spool,
        ):
            self.ledger = Ledger([source.name for source in self.files], spool)
            self.choice, self.notes = self._guess(main)
            self._read()
            self.side = self._sides()
            self._spelling()
            self._exact()
            if self.cut:
                self._stop("mend the file that is not read to its end: rows are missing, not only broken")
            if self.count and self.settings.on_problem == "stop":
                self._stop()
            if not (self.side != DROPPED).any():
                self._stop("mend them: no usable row is left")
            groups = self._groups()
            self._own_tests(groups)
            self._limit()
            self._split(groups)
            return self._write(groups), [*self.problems, *self.warnings]

    def _guess(self, main: list[Source]) -> tuple[Choice, list[str]]:
        try:
            return decide(main, self.mode, self.settings, self.task.goal.task)
        except BadRows as problem:
            self.problems, self.count = problem.problems, problem.count
            self._stop("mend them: no row can be read")
            raise

    def _stop(self, do: str = "") -> None:
        """Leave the list of problems, and say the first ones."""
        self._list([])
        raise BadRows(self.problems, self.count, str(self.out / "problems.jsonl"), do)

    def _list(self, warnings: list[Problem]) -> None:
        """Write problems.jsonl: by file and line as far as memory holds them, then the others, then the warnings."""
        files = {source.name: at for at, source in enumerate(self.files)}
        places = [problem.where.rpartition(":") for problem in self.problems]
        order = sorted(range(len(places)), key=lambda at: (files[places[at][0]], int(places[at][2])))
        self.problems = [self.problems[at] for at in order]
        self.more.seek(0)
        with (self.staging / "problems.jsonl").open("w", encoding="utf-8") as stream:
            stream.writelines(_line(item.to_json()) for item in self.problems)
            shutil.copyfileobj(self.more, stream)
            stream.writelines(_line(item.to_json()) for item in warnings)
            self._close(stream, "problems.jsonl")

    # Pass 1: rows -> ledger

    def _read(self) -> None:
        for index, source in enumerate(self.files):
            for item in load([source], self.mode, self.choice):
                self.read[source.name] += 1
                if isinstance(item, Bad):
                    self._bad(item)
                    continue
                self.ledger.add(index, item)
                if len(self.ledger.labels) > CLASSES:
                    column = self.choice.columns.get("label", "label")
                    raise DataError(
                        f"{column} holds more than {CLASSES:,} different values, so it is no class",
                        str(item.where),
                        "name the right column in data.columns, or set goal.task: regress for a number",
                    )
                if self.near:
                    self.near.add(_near_text(item))
                self.remarks.look(item)

    def _bad(self, bad: Bad) -> None:
        self.count, self.cut = self.count + 1, self.cut or bad.last
        problem = bad.problem
        if len(self.problems) < KEPT:
            self.problems.append(problem)
        else:
            self.more.write(_line(problem.to_json()))
        self._drop_line("problem", bad.id, str(bad.where), f"{problem.what}, {problem.do}", bad.text)

    def _drop_line(self, category: str, id: str, where: str, reason: str, text: str) -> None:
        self.dropped[category] += 1
        row = {"id": id, "where": where, "category": category, "reason": reason, "text": text}
        self.drops.write(_line(row))

    def _drop(self, row: int, category: str, reason: str) -> None:
        self.side[row] = DROPPED
        example = self.ledger.example(row)
        self._drop_line(category, example.id, str(example.where), reason, example.surface[:SHOWN])

    def _refuse(self, row: int, field: str, what: str, do: str) -> None:
        self.side[row] = DROPPED
        example = self.ledger.example(row)
        self._bad(Bad(field, what, do, example.where, example.surface[:SHOWN], example.id))

    # Between the passes: labels, duplicates, sides

    def _sides(self) -> Any:
        roles = np.array([self.roles[source] for source in self.files], np.int8)
        return roles[self.ledger["file"]] if len(self.ledger) else np.zeros(0, np.int8)

    def _left(self) -> Indices:
        return np.flatnonzero(self.side != DROPPED)

    def _spelling(self) -> None:
        """Refuse rows whose class is spelt like no other, or is not in data.labels."""
        wrong = spellings(self.ledger.counts(self._left()), self.settings.labels)
        known = list(self.ledger.labels)
        bad = {at: next((label for label in classes(one) if label in wrong), None) for at, one in enumerate(known)}
        guilty = [at for at, label in bad.items() if label is not None]
        column = self.choice.columns.get("label", self.choice.columns.get("labels", "label"))
        for row in np.flatnonzero(np.isin(self.ledger["label"], guilty)).tolist():
            what, do = wrong[bad[self.ledger["label"][row]] or ""]
            self._refuse(row, column if isinstance(column, str) else "label", what, do)

    def _exact(self) -> None:
        """Of equal texts with equal labels one row stays (test before validation before train, then the first)."""
        ledger, self.twins = self.ledger, Groups()
        known, labels, values = list(ledger.labels), ledger["label"], ledger["value"]
        noted = 0
        for rows in runs(ledger["exact"], self._left()):
            ranked = sorted(rows.tolist(), key=lambda row: (-int(self.side[row]), row))
            kept: dict[tuple[int, float], int] = {}
            for row in ranked:
                first = kept.setdefault((labels[row], values[row]), row)
                if first != row and self.side[first] != self.side[row]:
                    self._drop(row, OWN, f"the same text is in {ledger.where(first)}")
                elif first != row:
                    self._drop(row, "exact duplicate", f"the same text and label as {ledger.where(first)}")
            if len(kept) == 1:
                continue
            rivals = list(kept.values())
            if labels[rivals[0]] < 0:
                noted += 1
                for row in rivals[1:]:
                    self.twins.join(rivals[0], row)
                if noted == 1:
                    self.remarks.add("with several numbers", str(ledger.where(rivals[0])), "settle on one number")
                continue
            for row in sorted(rivals):
                other = next(other for other in rivals if other != row)
                label, rival = (_told(known[labels[at]]) for at in (row, other))
                what = f'the same text is "{label}" here and "{rival}" in {ledger.where(other)}'
                self._refuse(row, "label", what, "decide on one label, or remove both rows")

    def _groups(self) -> Any:
        """Rows that must not be parted: near duplicates, one text with several numbers, one prompt asked again."""
        groups, left = self.twins, self._left()
        if self.near:
            for one, other in self.near.pairs(left, lambda row: _near_text(self.ledger.example(row))):
                groups.join(one, other)
            self.near.close()
        prompts = self.ledger["prompt"]
        for rows in runs(prompts, left[prompts[left] != 0]):
            if len(rows) <= SHARED_PROMPT:
                for row in rows[1:].tolist():
                    groups.join(int(rows[0]), row)
        return groups.of(len(self.ledger))

    def _own_tests(self, groups: Any) -> None:
        """Take away training rows that come near a row of the person's own test or validation files."""
        left = self._left()
        if not self.settings.validation_files and not self.settings.test_files:
            return
        for rows in runs(groups, left):
            judge = max(rows.tolist(), key=lambda row: (int(self.side[row]), -row))
            for row in rows.tolist():
                if self.side[row] < self.side[judge]:
                    self._drop(row, OWN, f"nearly the same as {self.ledger.where(judge)}")

    def _limit(self) -> None:
        rows = np.flatnonzero(self.side == TRAIN)
        if 0 < self.settings.limit < len(rows):
            kept = drawn(self.ledger["id"][rows], self.settings.limit, self.settings.seed)
            for row in rows[~kept].tolist():
                self._drop(row, "limit", f"data.limit keeps {self.settings.limit:,} rows")

    def _split(self, groups: Any) -> None:
        rows = np.flatnonzero(self.side == TRAIN)
        settings, ids = self.settings, self.ledger["id"]
        shares = (
            0.0 if settings.validation_files else settings.validation,
            0.0 if settings.test_files else settings.test,
        )
        self.side[rows] = split(ids[rows], groups[rows], self.ledger.strata(rows), *shares, settings.seed)

    # Pass 2: ledger -> files

    def _write(self, groups: Any) -> dict[str, Any]:
        counts = {name: self.ledger.counts(self.side == at) for at, name in enumerate(NAMES)}
        self.warnings = self._warnings(groups)
        streams = [(self.staging / f"{name}.jsonl").open("wb") for name in NAMES]
        self.ledger.spool.seek(0)
        for side, line in zip(self.side.tolist(), self.ledger.spool, strict=True):
            if side != DROPPED:
                streams[side].write(line)
        sizes = {}
        for name, stream in zip(NAMES, streams, strict=True):
            sizes[name] = stream.tell()
            self._close(stream, f"{name}.jsonl")
        self._close(self.drops, "dropped.jsonl")
        self._list(self.warnings)
        store.sync_folder(self.out)
        left = self._left()
        total = sum(counts.values(), Counter[str]())
        labels = tuple(self.settings.labels) or ordered(total)
        grouped = [len(rows) for rows in runs(groups, left)]
        kept = Counter(self.files[index].name for index in self.ledger["file"][left].tolist())
        letters = self.ledger["letters"][left]
        return {
            "shape": self.choice.shape,
            "columns": self.choice.columns,
            "guessed": list(self.choice.guessed),
            "reading": str(self.choice),
            "notes": self.notes,
            "labels": list(labels) if self.ledger.labels else [],
            "multi": any(isinstance(label, tuple) for label in self.ledger.labels),
            "files": [
                {
                    "name": source.name,
                    "use": "data" if self.roles[source] == TRAIN else NAMES[self.roles[source]],
                    "sha256": self.hashes[source.name],
                    "rows": self.read[source.name],
                    "kept": kept[source.name],
                }
                for source in self.files
            ],
            "rows": {
                "read": sum(self.read.values()),
                "kept": len(left),
                "dropped": dict(self.dropped),
            },
            "splits": {name: int((self.side == at).sum()) for at, name in enumerate(NAMES)},
            "bytes": sizes,
            "label_counts": {name: {label: found[label] for label in labels} for name, found in counts.items()},
            "letters": dict(
                zip(("min", "median", "p95", "max"), np.percentile(letters, [0, 50, 95, 100]).tolist(), strict=True)
            ),
            "groups": {"count": len(grouped), "rows": sum(grouped), "largest": max(grouped, default=1)},
            "problems": self.count,
            "first_problems": [told(problem) for problem in self.problems[:20]],
            "warnings": [told(problem) for problem in self.warnings],
        }

    def _close(self, stream: Any, name: str) -> None:
        """Make a staged file durable and put it in place."""
        stream.flush()
        os.fsync(stream.fileno())
        stream.close()
        (self.staging / name).replace(self.out / name)

    def _warnings(self, groups: Any) -> list[Problem]:
        left, data = self._left(), self.files[0].name
        found = self.remarks.problems()
        if self.ledger.labels and self.choice.shape != "choices":
            several = any(isinstance(label, tuple) for label in self.ledger.labels)
            found += label_warnings(self.ledger.counts(left), len(left), several)
        if doubled := self.dropped["exact duplicate"]:
            found.append(
                Problem(f"{counted(doubled, 'exact duplicate')} dropped", data, "dropped.jsonl lists them", "note")
            )
        grouped = [len(rows) for rows in runs(groups, left)]
        if grouped:
            what = f"{counted(sum(grouped), 'row')} in {counted(len(grouped), 'group')} of near duplicates, not parted"
            found.append(Problem(what, data, "", "note"))
        if max(grouped, default=0) > max(10, 0.2 * len(left)):
            what = f"one group of near duplicates holds {max(grouped):,} of {len(left):,} rows, so shares cannot be met"
            found.append(Problem(what, data, "raise data.near_duplicates if the rows do differ", "warning"))
        for at, name in enumerate(NAMES):
            if not (self.side == at).any():
                found.append(Problem(f"there are no {name} rows", data, f"add rows, or raise data.{name}", "warning"))
        if len(left) < 100:
            what = f"only {counted(len(left), 'row')}: a measured score will be uncertain"
            found.append(Problem(what, data, "add rows, the test ones first", "warning"))
        return found


def _line(row: Mapping[str, Any]) -> str:
    """A line of JSON that UTF-8 can hold, whatever the row held."""
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "replace").decode() + "\n"


def _near_text(example: Example) -> str:
    """What near duplicates share: the texts, or every turn but the system's."""
    said = [turn.content for turn in example.messages if turn.role != "system"] or [example.text, example.pair or ""]
    return normal("\n".join(said)[:SPAN])


def _told(label: Label) -> str:
    return ", ".join(classes(label))[:60]
