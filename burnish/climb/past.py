"""What was run before: every run and what became of it, and the run, artifact or test rows that a name stands for.

In: names, paths, a run's task.  Out: folders that are what they say, and rows with what a sceptic should know of them.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from burnish import store
from burnish.artifact import Artifact
from burnish.climb.ladder import Ladder, ready
from burnish.data import prepare
from burnish.errors import ArtifactError, BurnishError, DataError, nearest
from burnish.records import Example
from burnish.task import Task


def runs() -> list[dict[str, Any]]:
    """List what has been tried, newest first."""
    told = []
    for folder in store.runs().iterdir() if store.runs().is_dir() else ():
        if not _is_run(folder):
            continue
        own = sorted(path for path in (folder / "rungs").glob("*") if path.is_dir())
        rungs = {path.name: _json(path / "result.json") for path in own}
        report = _json(folder / "report.json")
        done = sorted(name for name, result in rungs.items() if result)
        begun = [path for path in own if not rungs[path.name]]
        try:
            goal = yaml.safe_load((folder / "task.yaml").read_text(encoding="utf-8"))["goal"]
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
            goal = {}
        state = "judged" if report else "trained" if done else "begun"
        if begun:
            state = f"{'working on' if _busy(begun[0]) else 'stopped in'} {begun[0].name}"
        files = [folder / "task.yaml", folder / "report.json", *(path / "result.json" for path in own)]
        told.append(
            {
                "name": folder.name,
                "goal": report.get("goal", goal),
                "rungs": done,
                "verdict": report.get("verdict", {}).get("sentence", ""),
                "outcome": ": ".join(filter(None, (report.get("verdict", {}).get(key) for key in ("rung", "outcome")))),
                "seconds": round(sum(result.get("seconds", 0.0) for result in rungs.values()), 1),
                "when": max(path.stat().st_mtime for path in files if path.exists()),
                "state": state,
            }
        )
    told.sort(key=lambda row: float(row["when"]), reverse=True)
    return [{**row, "when": time.strftime("%Y-%m-%d %H:%M", time.localtime(row["when"]))} for row in told]


def _json(path: Path) -> dict[str, Any]:
    """A JSON object that may not be there, or not be whole."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _busy(rung: Path) -> bool:
    """Whether a process is at work on a rung."""
    try:
        with store.locked(rung):
            return False
    except (BurnishError, OSError):
        return True


def _is_run(folder: Path) -> bool:
    """A run's folder and not just one with a task file."""
    return (folder / "task.yaml").exists() and (folder / "environment.json").exists()


def find(name: str) -> Path:
    """A run's folder or an artifact's, from a run's name or a path."""
    path = Path(name)
    if (path / "artifact.json").exists() or _is_run(path):
        return path
    if store.NAME.fullmatch(name) and _is_run(store.run_folder(name)):
        return store.run_folder(name)
    known = [str(row["name"]) for row in runs()]
    if not known:
        raise ArtifactError(f'No run or artifact "{name}"', str(store.runs()), "train one first: `burnish climb TASK`")
    close = nearest(name, known)
    hint = f"did you mean {close}?  " if close else ""
    raise ArtifactError(f'No run or artifact "{name}"', str(store.runs()), f"{hint}`burnish runs` lists them")


def run_of(folder: Path) -> Path | None:
    """The run that a run's or artifact's folder belongs to."""
    return next((path for path in (folder, *list(Path(folder).absolute().parents)[:3]) if _is_run(path)), None)


def artifact(name: str) -> Path:
    """An artifact's folder; a run stands for the rung that its verdict names, or for its only one."""
    folder = find(name)
    if (folder / "artifact.json").exists():
        return folder
    found = {path.parent.name: path for path in sorted(folder.glob("rungs/*/artifact"))}
    chosen = _json(folder / "report.json").get("verdict", {}).get("rung", "")
    if chosen in found:
        return found[chosen]
    if len(found) == 1:
        return next(iter(found.values()))
    choices = ", ".join(map(str, found.values())) or "train a rung first"
    what = "The run's verdict recommends no rung" if found else "The run has no finished rung"
    raise ArtifactError(what, str(folder), f"give an artifact: {choices}")


def own(task: Task, run: Path) -> tuple[Ladder, list[Example], str]:
    """The run's own test rows; refuses when data or settings changed, as these could then be rows trained on."""
    ladder = ready(task, begin=False)
    if ladder.folder.name[-8:] != run.resolve().name[-8:]:  # the hash of all that decides a run
        raise DataError(
            "The data or a setting is not what this run was made with, so its test rows are not known for sure",
            str(run),
            "climb again, or give --data FILE with rows nobody trained on",
        )
    return replace(ladder, folder=run), ladder.rows("test"), ""


def other(task: Task, run: Path, trained: Artifact, data: str, suite: str) -> tuple[Ladder, list[Example], str]:
    """Rows of another file, read as the artifact's training rows were, and what a sceptic should know of them."""
    contract = trained.contract
    given = replace(
        task.data,
        files=[str(Path(data).resolve())],
        validation_files=[],
        test_files=[],
        validation=0.0,
        test=0.0,
        limit=0,
        labels=list(contract.labels),
        shape=contract.shape,
        columns=dict(trained.facts.get("columns", {})),
    )
    found = prepare.prepare(replace(task, data=given), run / "data" / suite)
    ladder = Ladder(task, trained.base, trained.tokenizer(), found, "", contract, contract, run)
    rows = prepare.examples(found.folder, "train")
    try:
        trained_on = {row.id for row in own(task, run)[0].rows("train")}
    except BurnishError:
        return ladder, rows, "the training data is not as it was, so whether it holds some of these rows is not known"
    seen = sum(row.id in trained_on for row in rows)
    return ladder, rows, f"{seen:,} of these {len(rows):,} rows were trained on: the scores flatter" if seen else ""
