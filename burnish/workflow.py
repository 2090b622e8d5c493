"""The verbs: plain values in, records out.  The command line, Python users and (later) HTTP call these alike.

Each verb imports its area inside itself, so that naming the verbs costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from burnish.errors import ArtifactError, BurnishError, DataError, TaskError, unknown
from burnish.records import Event, Report, RungResult

Say = Callable[[str, Event], None]


def _quiet(phase: str, event: Event) -> None:
    """Nobody listens."""


def init(data: str, *, out: str = "task.yaml", base: str = "burnish-tiny", force: bool = False) -> dict[str, Any]:
    """Look at a data file and write a task file in which every key is explained."""
    import os

    from burnish import store
    from burnish import task as tasks
    from burnish.data.prepare import look
    from burnish.evaluate.scores import pick_metric

    path = Path(out)
    if path.exists() and not force:
        raise TaskError("The task file is already there", str(path), "give --force to overwrite it, or --out another")
    guess = look(data)
    files = [os.path.relpath(data, path.parent) if Path(data).exists() else data]
    told = {
        "goal": {"task": guess.task},
        "data": {"files": files, "shape": guess.shape, "columns": guess.columns},
        "base": {"name": base if not Path(base).is_dir() else os.path.relpath(base, path.parent)},
    }
    task = tasks.resolve({**told, "name": Path(data).stem}, str(path))
    metric = pick_metric(guess.task)
    note = (
        f"Written by `burnish init {data}` from {guess.rows} rows it looked at.  Keys may be left out: these are the defaults.\n"
        f"Next: `burnish check {out}`, then `burnish climb {out}`."
    )
    store.write_text(path, tasks.write(task, note))
    return {
        "task_file": str(path),
        "shape": guess.shape,
        "columns": guess.columns,
        "goal": guess.task,
        "metric": metric,
        "labels": guess.labels,
        "rows": guess.rows,
        "notes": list(guess.notes),
        "first": [row.to_json() for row in guess.first],
    }


def check(task: str, *, set: Sequence[str] = (), show: int = 0) -> dict[str, Any]:
    """Read the data as a run would: the data card, the tokens, and every problem by file and line."""
    from burnish import task as tasks
    from burnish.climb import ready
    from burnish.data.validate import BadRows
    from burnish.train.tune import encode, readable

    told = tasks.read(task, set)
    try:
        ladder = ready(told)
    except BadRows as rows:
        problems = [problem.to_json() for problem in rows.problems]
        return {"data": {}, "tokens": {}, "problems": problems, "shown": [], "ok": False, "count": rows.count}
    contract = ladder.trained
    encoding = contract.encoding(ladder.tokenizer, ladder.base.kind)
    tokens, problems, shown = {}, [item.to_json() for item in ladder.prepared.problems], []
    bad = 0
    for split in ("train", "validation", "test"):
        try:
            tokens[split] = encode(ladder.rows(split), encoding, contract, told).count.to_json()
        except BadRows as rows:
            problems += [problem.to_json() for problem in rows.problems]
            bad += rows.count
    for row in readable(ladder.rows("train")[:show], contract):
        for piece in encoding.encode(row)[0][:1]:
            ids = piece.ids.tolist()
            parts: list[list[Any]] = []
            for text, weight in zip(ladder.tokenizer.pieces(ids), piece.weights.tolist(), strict=True):
                if parts and parts[-1][1] == (weight > 0):
                    parts[-1][0] += text
                else:
                    parts.append([text, weight > 0])
            shown.append(
                {"where": piece.where, "spans": parts, "label": row.label if contract.target == "label" else None}
            )
    return {
        "data": ladder.prepared.card,
        "tokens": tokens,
        "problems": problems,
        "shown": shown,
        "ok": not bad,
        "count": bad,
    }


def climb(task: str, *, set: Sequence[str] = (), again: bool = False, say: Say | None = None) -> Report:
    """Try every rung from the cheapest up on one locked test set, and say which is worth it."""
    from burnish import task as tasks
    from burnish.climb import climb

    return climb(tasks.read(task, set), again, say or _quiet)


def train(task: str, *, rung: str, set: Sequence[str] = (), again: bool = False, say: Say | None = None) -> RungResult:
    """Train one rung; the test set stays closed."""
    from burnish import kinds
    from burnish import task as tasks
    from burnish.climb import make_trained, ready

    if rung not in kinds.names("adapters"):
        what, do = unknown("trained rung", rung, kinds.names("adapters"))
        raise TaskError(what, "--rung", do)
    return make_trained(ready(tasks.read(task, set)), rung, again, say or _quiet)


def evaluate(target: str, *, data: str = "", set: Sequence[str] = (), say: Say | None = None) -> Report:
    """Judge a run's rungs, or one artifact, on the run's test set or on other data."""
    from dataclasses import replace

    from burnish import store
    from burnish import task as tasks
    from burnish.climb import judge, made, publish, ready
    from burnish.data import prepare

    folder = _target(target)
    run = _run_of(folder)
    if run is None:
        raise BurnishError("This artifact's run is not here", str(folder), "evaluate it inside its run folder")
    task = tasks.read(run / "task.yaml", set)
    ladder = ready(task)
    results = made(run)
    if folder != run:
        results = [result for result in results if Path(result.artifact).resolve() == folder.resolve()]
    if not results:
        raise BurnishError("No finished rung here", str(folder), "train one first: `burnish train TASK --rung lora`")
    suite, rows = "test", ladder.rows("test")
    if data:
        own = replace(task.data, files=[str(Path(data).resolve())], test_files=[], validation_files=[], test=0.0)
        own = replace(
            own, validation=0.0, labels=list(ladder.prepared.labels), limit=0, columns=ladder.prepared.columns
        )
        own = replace(own, shape=ladder.prepared.shape)
        suite = store.slug(Path(data).name)
        prepared = prepare.prepare(replace(task, data=own), run / "data" / suite)
        rows = prepare.examples(prepared.folder, "train")
        ladder = replace(ladder, prepared=replace(prepared, labels=ladder.prepared.labels, multi=ladder.prepared.multi))
    if not rows:
        raise DataError("There are no rows to evaluate on", data or str(run), "give --data FILE")
    ladder = replace(ladder, folder=run)
    told = judge(ladder, results, rows, suite, "evaluate", say or _quiet)
    publish(told, run, rows, suite)
    return told


def predict(artifact: str, data: str, *, out: str, say: Say | None = None) -> dict[str, Any]:
    """Answer every row of a file, in its order; a stopped job goes on where it was."""
    from burnish import artifact as artifacts
    from burnish.evaluate import batch

    return batch.run(artifacts.load(_artifact(artifact)), data, Path(out), say or _quiet)


def chat(artifact: str) -> Any:
    """Talk with an artifact."""
    from burnish import artifact as artifacts
    from burnish.evaluate.talk import Chat

    return Chat(artifacts.load(_artifact(artifact)))


def runs() -> list[dict[str, Any]]:
    """What has been tried, newest first."""
    import json
    import time

    from burnish import store

    told = []
    for folder in store.runs().glob("*/task.yaml") if store.runs().is_dir() else ():
        folder = folder.parent
        rungs = sorted(path.name for path in (folder / "rungs").glob("*") if (path / "result.json").exists())
        begun = sorted(path.name for path in (folder / "rungs").glob("*") if path.name not in rungs)
        report: dict[str, Any] = {}
        if (folder / "report.json").exists():
            report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        when = max(path.stat().st_mtime for path in (folder / "task.yaml", folder / "report.json") if path.exists())
        seconds = sum(json.loads((folder / "rungs" / name / "result.json").read_text())["seconds"] for name in rungs)
        told.append(
            {
                "name": folder.name,
                "goal": report.get("goal", {}),
                "rungs": rungs,
                "verdict": report.get("verdict", {}).get("sentence", ""),
                "seconds": round(seconds, 1),
                "when": time.strftime("%Y-%m-%d %H:%M", time.localtime(when)),
                "state": "judged" if report else f"stopped in {begun[0]}" if begun else "trained",
            }
        )
    return sorted(told, key=lambda row: str(row["when"]), reverse=True)


def demo(*, fast: bool = False, say: Say | None = None) -> Report:
    """Climb on the embedded base and reviews: zero-shot, few-shot, LoRA and full, and the verdict."""
    from burnish import task as tasks
    from burnish.climb import climb

    path = _embedded("reviews/task.yaml")
    overrides = ["train.epochs=1", "few-shot.orders=1", "data.limit=300"] if fast else []
    return climb(tasks.read(path, overrides), False, say or _quiet)


def _embedded(name: str) -> Path:
    """A file of the examples: beside the package in a checkout, inside it when installed from a wheel."""
    here = Path(__file__).parent
    for path in (here / "bundled" / "examples" / name, here.parent / "examples" / name):
        if path.exists():
            return path
    raise BurnishError(f"The embedded example {name} is missing", str(here), "install Burnish again")


def _target(name: str) -> Path:
    """A run's folder or an artifact's, from a run's name or a path."""
    from burnish import store

    path = Path(name)
    if (path / "artifact.json").exists() or (path / "task.yaml").exists():
        return path
    if store.NAME.fullmatch(name) and (store.run_folder(name) / "task.yaml").exists():
        return store.run_folder(name)
    known = [row["name"] for row in runs()[:50]]
    what, do = unknown("run or artifact", name, known) if known else (f'No run or artifact "{name}"', "train one first")
    raise ArtifactError(what, str(store.runs()), do)


def _run_of(folder: Path) -> Path | None:
    """The run that a run's or artifact's folder belongs to."""
    return next((path for path in (folder, *folder.resolve().parents[:3]) if (path / "task.yaml").exists()), None)


def _artifact(name: str) -> Path:
    """An artifact's folder; a run stands for the rung its verdict names, else the best one."""
    import json

    folder = _target(name)
    if (folder / "artifact.json").exists():
        return folder
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        named = report["verdict"]["rung"]
        chosen = next((rung["artifact"] for rung in report["rungs"] if rung["rung"] == named), "")
    except (OSError, ValueError, KeyError):
        chosen = ""
    if chosen and Path(chosen).is_dir():
        return Path(chosen)
    found = sorted(path.parent.name for path in folder.glob("rungs/*/artifact"))
    choices = ", ".join(str(folder / "rungs" / rung / "artifact") for rung in found) or "train a rung first"
    raise ArtifactError("The run names no rung to use", str(folder), f"give an artifact: {choices}")
