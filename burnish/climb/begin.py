"""Before the first run: a task written from a look at the data, and a check that reads it as a run would.

In: files, or a task.  Out: what was found, for a person or a program; nothing is trained.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from burnish import store, taskfile
from burnish.climb.ladder import ready
from burnish.data.look import look
from burnish.data.prepare import iterate, prepare
from burnish.data.validate import BadRows
from burnish.errors import DataError, TaskError
from burnish.evaluate.scores import pick_metric
from burnish.records import Example, Problem
from burnish.task import Task
from burnish.tokens.ask import readable
from burnish.tokens.encode import encode_all

FEW = 10  # rows below which none can be held out
LOOKED = 100_000  # rows up to which `init` tries the whole data
MANY = 0.1  # share of unusable rows from which `init` doubts its reading


def init(data: str, path: Path, base: str, force: bool) -> dict[str, Any]:
    """Write a task file at `path` from a look at the data; raises TaskError when one is there, DataError on no rows."""
    if path.exists() and not force:
        raise TaskError("The task file is already there", str(path), "give --force to overwrite it, or --out another")
    try:
        guess = look(data)
    except BadRows as rows:
        raise BadRows(rows.problems, rows.count, do="mend them first; `burnish init` needs rows to look at") from None
    except DataError as problem:
        problem.do = problem.do.replace("data.files; names start at the task's folder", "the name")
        raise
    notes = [note for note in guess.notes if note != str(guess)]
    if guess.shape == "document" and guess.rows < FEW and all(name.endswith(".txt") for name in guess.files):
        guess = replace(guess, columns={"document": "line"})
        notes.append("one text is one row, too few to hold some out: every line is read as a row instead")
    near = os.path.relpath(data, path.parent) if Path(data).exists() else data
    files = [str(Path(data).resolve()) if near.startswith(os.path.join("..", "..")) else near]
    told: dict[str, Any] = {
        "goal": {"task": guess.task},
        "data": {"files": files, "shape": guess.shape, "columns": guess.columns, "on_problem": "drop"},
        "base": {"name": base if not Path(base).is_dir() else os.path.relpath(base, path.parent)},
    }
    task = taskfile.resolve({**told, "name": Path(data).stem}, str(path))
    kept, first = _tried(task) if guess.rows < LOOKED else ({}, list(guess.first))
    if kept:
        bad, read = kept["problems"], kept["rows"]["read"]
        if bad > MANY * read:
            told["data"]["on_problem"] = "stop"
            notes.append(f"{bad:,} of {read:,} rows cannot be used: is this the right reading?  data.on_problem: stop")
        elif bad:
            notes.append(f"{bad:,} of {read:,} rows cannot be used; data.on_problem: drop leaves them out")
        if len(kept["labels"]) <= FEW * 2 and guess.task == "classify":
            told["data"]["labels"] = kept["labels"]
        if guess.task == "answer" and all(len(row.answer.split()) == 1 for row in first):
            told["goal"]["metric"] = "exact-match"  # of one word, overlap is all or nothing
        task = taskfile.resolve({**told, "name": Path(data).stem}, str(path))
    note = (
        f"Written by `burnish init {data}` from {guess.rows:,} rows.  A key left out has the value shown here.\n"
        f"Next: `burnish check {path}`, then `burnish climb {path}`."
    )
    store.write_text(path, taskfile.write(task, note))
    return {
        "task_file": str(path),
        "shape": guess.shape,
        "columns": guess.columns,
        "goal": guess.task,
        "metric": told["goal"].get("metric") or pick_metric(guess.task),
        "labels": guess.labels,
        "rows": kept["rows"]["read"] if kept else guess.rows,
        "on_problem": task.data.on_problem,
        "notes": notes,
        "first": [row.to_json() for row in first[:5]],
    }


def _tried(task: Task) -> tuple[dict[str, Any], list[Example]]:
    """The data card and first rows of a trial without the dear search for near duplicates; raises when none is left."""
    with tempfile.TemporaryDirectory() as folder:
        card = prepare(replace(task, data=replace(task.data, near_duplicates=0.0)), folder).card
        return card, list(islice(iterate(folder, "train"), 100))


def check(told: Task, show: int) -> dict[str, Any]:
    """The data card, tokens and problems of a task, and the first `show` rows as the model will see them."""
    bad = 0
    dropping = told.data.on_problem == "drop"
    try:
        ladder = ready(told, begin=False)
    except BadRows as rows:
        bad = rows.count
        try:  # the rest of the data is looked at all the same
            ladder = ready(replace(told, data=replace(told.data, on_problem="drop")), begin=False)
        except DataError:
            problems = [problem.to_json() for problem in rows.problems]
            empty = {"data": {}, "tokens": {}, "problems": problems, "shown": [], "ok": False, "count": bad}
            return {**empty, "on_problem": "drop"}  # which was tried just now
    contract = ladder.trained
    encoding = contract.encoding(ladder.tokenizer, ladder.base.kind)
    found, tokens, shown, first = list(ladder.prepared.problems), {}, [], {}
    splits = {split: ladder.rows(split) for split in ("train", "validation", "test")}
    for split, whole in splits.items():
        pieces, unfit, count = encode_all(readable(whole, contract), encoding)
        if split == "train":
            first = {piece.example: piece for piece in reversed(pieces)}
        tokens[split] = count.to_json()
        found += [problem for _, problem in unfit]
        if unfit and dropping:
            do_not = "does not" if len(unfit) == 1 else "do not"
            what = f"{len(unfit):,} of {len(unfit) + count.rows:,} {split} rows {do_not} fit the base"
            do = "use a base that holds longer rows, or data.too_long: cut-prompt"
            found.insert(0, Problem(what, told.where("base"), do, "warning"))
        bad += 0 if dropping else sum(problem.severity == "error" for _, problem in unfit)
    if dropping:
        found = [replace(item, severity="warning") if item.severity == "error" else item for item in found]
    left = {"train on": ("train", tokens["train"]["rows"]), "prove anything with": ("test", splits["test"])}
    for use, (split, some) in left.items():  # a test row that does not fit is answered from what fits
        if not some:
            bad += 1
            do = "add rows, use a base that holds longer ones, or change data.too_long"
            found.append(Problem(f"No row is left to {use}", told.where(f"data.{split}"), do))
    for row in islice((row for row in splits["train"] if row.id in first), show):
        piece, parts = first[row.id], list[list[Any]]()
        texts = ladder.tokenizer.pieces(piece.ids.tolist())
        for text, weight in zip(texts, piece.weights.tolist(), strict=True):
            if parts and parts[-1][1] == (weight > 0):
                parts[-1][0] += text
            else:
                parts.append([text, weight > 0])
        label = row.label if contract.target == "label" else None
        shown.append({"where": piece.where, "spans": parts, "label": label})
    return {
        "data": ladder.prepared.card,
        "tokens": tokens,
        "problems": [problem.to_json() for problem in found],
        "shown": shown,
        "ok": not bad,
        "count": bad,
        "on_problem": told.data.on_problem,
    }
