"""The verbs: plain values in, records out.  The command line, Python users and (later) HTTP call these alike.

Each verb imports its area inside itself, so that naming the verbs costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish.errors import ArtifactError, BurnishError, DataError, TaskError, nearest, unknown
from burnish.records import Event, Example, Report, RungResult

if TYPE_CHECKING:
    from burnish.artifact import Artifact
    from burnish.climb.ladder import Ladder
    from burnish.task import Task
    from burnish.train.launch import Cluster

Say = Callable[[str, Event], None]
FEW = 10  # rows below which none can be held out
LOOKED = 100_000  # rows up to which `init` tries the whole data
MANY = 0.1  # share of unusable rows from which `init` doubts its reading


def _quiet(phase: str, event: Event) -> None:
    """Nobody listens."""


def init(data: str, *, out: str = "task.yaml", base: str = "burnish-tiny", force: bool = False) -> dict[str, Any]:
    """Look at data and write a task file with every key explained."""
    import os
    from dataclasses import replace

    from burnish import store
    from burnish import task as tasks
    from burnish.data.prepare import look
    from burnish.data.validate import BadRows
    from burnish.evaluate.scores import pick_metric

    path = Path(out)
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
    task = tasks.resolve({**told, "name": Path(data).stem}, str(path))
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
        task = tasks.resolve({**told, "name": Path(data).stem}, str(path))
    note = (
        f"Written by `burnish init {data}` from {guess.rows:,} rows.  A key left out has the value shown here.\n"
        f"Next: `burnish check {out}`, then `burnish climb {out}`."
    )
    store.write_text(path, tasks.write(task, note))
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
    import tempfile
    from dataclasses import replace
    from itertools import islice

    from burnish.data.prepare import iterate, prepare

    with tempfile.TemporaryDirectory() as folder:
        card = prepare(replace(task, data=replace(task.data, near_duplicates=0.0)), folder).card
        return card, list(islice(iterate(folder, "train"), 100))


def check(task: str, *, set: Sequence[str] = (), show: int = 0) -> dict[str, Any]:
    """Read the data as a run would; name problems by file and line."""
    from dataclasses import replace

    from burnish import task as tasks
    from burnish.climb.ladder import ready
    from burnish.data.validate import BadRows
    from burnish.records import Problem
    from burnish.tokens.ask import readable
    from burnish.tokens.encode import encode_all

    told, bad = tasks.read(task, set), 0
    dropping = told.data.on_problem == "drop"
    try:
        ladder = ready(told, begin=False)
    except BadRows as rows:
        bad = rows.count
        try:  # the rest of the data is looked at all the same
            ladder = ready(replace(told, data=replace(told.data, on_problem="drop")), begin=False)
        except DataError:
            problems = [problem.to_json() for problem in rows.problems]
            return {"data": {}, "tokens": {}, "problems": problems, "shown": [], "ok": False, "count": bad}
    contract = ladder.trained
    encoding = contract.encoding(ladder.tokenizer, ladder.base.kind)
    found, tokens, shown = list(ladder.prepared.problems), {}, []
    for split in ("train", "validation", "test"):
        _, unfit, count = encode_all(readable(ladder.rows(split), contract), encoding)
        tokens[split] = count.to_json()
        found += [problem for _, problem in unfit]
        if unfit and dropping:
            what = f"{len(unfit):,} of {len(unfit) + count.rows:,} {split} rows do not fit the base"
            do = "use a base that holds longer rows, or data.too_long: cut-prompt"
            found.insert(0, Problem(what, told.where("base"), do, "warning"))
        bad += 0 if dropping else sum(problem.severity == "error" for _, problem in unfit)
    if dropping:
        found = [replace(item, severity="warning") if item.severity == "error" else item for item in found]
    for split, use in (("train", "train on"), ("test", "prove anything with")):
        if not tokens[split]["rows"]:
            bad += 1
            do = "add rows, use a base that holds longer ones, or change data.too_long"
            found.append(Problem(f"No row is left to {use}", told.where(f"data.{split}"), do))
    for row in readable(ladder.rows("train")[:show], contract):
        for piece in encoding.encode(row)[0][:1]:
            parts: list[list[Any]] = []
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
    }


def plan(task: str = "", *, rung: str = "", set: Sequence[str] = ()) -> dict[str, Any]:
    """Say what training will need, and whether that fits this machine.

    Without a task: the largest well-known base that each rung could tune here.
    """
    from burnish import kinds
    from burnish import task as tasks
    from burnish.climb.foresee import foresee, tunable
    from burnish.climb.ladder import ready

    if rung and rung not in kinds.names("adapters"):
        what, do = unknown("trained rung", rung, kinds.names("adapters"))
        raise TaskError(what, "--rung", do)
    if not task:
        return tunable()
    return foresee(ready(tasks.read(task, set), begin=False), [rung] if rung else [])


def climb(
    task: str,
    *,
    set: Sequence[str] = (),
    again: bool = False,
    seeds: int = 1,
    search: int = 0,
    curve: bool = False,
    say: Say | None = None,
) -> Report:
    """Try every rung, cheapest first, and judge all on one test set."""
    from burnish import task as tasks
    from burnish.climb.run import climb

    for name, value, least in (("--seeds", seeds, 1), ("--search", search, 0)):
        if value < least:
            raise TaskError(f"{name} must be at least {least}, not {value}", name, "raise it")
    return climb(tasks.read(task, set), again, say or _quiet, seeds, search, curve)


def train(
    task: str,
    *,
    rung: str,
    set: Sequence[str] = (),
    again: bool = False,
    devices: int = 1,
    shard: bool = False,
    nodes: int = 1,
    node_rank: int = 0,
    rendezvous: str = "",
    say: Say | None = None,
) -> RungResult:
    """Train one rung; the test set stays closed."""
    from burnish import kinds
    from burnish import task as tasks
    from burnish.climb.ladder import ready
    from burnish.climb.rungs import make_trained
    from burnish.train import distributed, launch

    if rung not in kinds.names("adapters"):
        what, do = unknown("trained rung", rung, kinds.names("adapters"))
        raise TaskError(what, "--rung", do)
    cluster = launch.Cluster(devices or distributed.visible(), nodes, node_rank, rendezvous).checked()
    ladder = ready(tasks.read(task, set))
    if cluster.size > 1 and not launch.inside():
        words = {"task": task, "rung": rung, "set": list(set), "again": again, "shard": shard}
        return _together(words, cluster, ladder, say or _quiet)
    with distributed.begin(shard) as ranks:
        return make_trained(ladder, rung, again, say or _quiet, ranks=ranks)


def _together(words: dict[str, Any], cluster: Cluster, ladder: Ladder, say: Say) -> RungResult:
    """Train with several processes; this one only watches them."""
    import json
    import sys

    from burnish.climb.rungs import made
    from burnish.train import launch

    def hear(told: Mapping[str, Any]) -> None:
        inner = {key: value for key, value in told.items() if key not in ("rung", "kind", "step", "seconds")}
        say(told["rung"], Event(told["kind"], told["step"], told["seconds"], inner))

    command = [sys.executable, "-m", "burnish.cli.rank", json.dumps(words)]
    launch.run(command, cluster, ladder.rung_folder(words["rung"]) / "ranks", hear)
    return next(result for result in made(ladder.folder) if result.rung == words["rung"])


def launch(
    task: str,
    *,
    rung: str,
    slurm: bool = False,
    devices: int = 8,
    nodes: int = 1,
    limit: str = "24:00:00",
    set: Sequence[str] = (),
    shard: bool = False,
    out: str = "",
) -> dict[str, Any]:
    """Write the Slurm script, or the commands, of several machines."""
    import shlex

    from burnish import store
    from burnish import task as tasks
    from burnish.train import launch

    launch.Cluster(devices, nodes, 0, "host:1").checked()
    words = [task, "--rung", rung, *(part for key in set for part in ("--set", key)), *(["--shard"] if shard else [])]
    if slurm:
        text = launch.slurm(words, f"{tasks.read(task, set).name}-{rung}", devices, nodes, limit)
    else:
        alone = shlex.join(["burnish", "train", *words, "--devices", str(devices)])
        more = [f" --nodes {nodes} --node-rank {node} --rendezvous HOST:29500" for node in range(nodes)]
        text = "".join(f"{alone}{part if nodes > 1 else ''}\n" for part in more)
    if out:
        store.write_text(Path(out), text)
    return {"script": text, "out": out, "slurm": slurm}


def evaluate(target: str, *, data: str = "", set: Sequence[str] = (), say: Say | None = None) -> Report:
    """Judge a run or one artifact, on its test rows or on others."""
    from dataclasses import replace

    from burnish import artifact as artifacts
    from burnish import store
    from burnish import task as tasks
    from burnish.climb.judge import judge, publish
    from burnish.climb.rungs import made

    folder = _target(target)
    run = _run_of(folder)
    if run is None:
        raise BurnishError("This artifact's run is not here", str(folder), "evaluate it inside its run folder")
    task, results = tasks.read(run / "task.yaml", set), made(run)
    if folder != run:
        results = [result for result in results if Path(result.artifact).resolve() == folder.resolve()]
    if not results:
        raise BurnishError("No finished rung here", str(folder), "train one first: `burnish train TASK --rung lora`")
    suite = f"data-{store.slug(Path(data).name)}" if data else "test"
    ladder, rows, note = (
        _other(task, run, artifacts.load(results[0].artifact), data, suite) if data else _own(task, run)
    )
    if not rows:
        raise DataError("There are no rows to evaluate on", data or str(run), "give --data FILE")
    told = judge(ladder, results, rows, suite, "evaluate", say or _quiet)
    if note:
        told = replace(told, verdict=replace(told.verdict, notes=(*told.verdict.notes, note)))
    return publish(told, run, rows, suite if folder == run else f"{results[0].rung}-{suite}")


def compare(a: str, b: str, *, data: str = "", say: Say | None = None) -> dict[str, Any]:
    """Say whether one of two artifacts is better by more than luck."""
    from burnish import artifact as artifacts
    from burnish import store
    from burnish import task as tasks
    from burnish.climb import openings
    from burnish.climb.judge import Asker
    from burnish.evaluate.compare import compared

    suite = f"data-{store.slug(Path(data).name)}" if data else "test"
    sides = []
    for name in (a, b):
        folder = _artifact(name)
        run = _run_of(folder)
        if run is None:
            raise BurnishError("This artifact's run is not here", str(folder), "compare it inside its run folder")
        task = tasks.read(run / "task.yaml")
        ladder, rows, _ = _other(task, run, artifacts.load(folder), data, suite) if data else _own(task, run)
        sides.append((folder, run, ladder, rows))
    (first, run, ladder, rows), (second, other, _, theirs) = sides
    if not rows or {row.id for row in rows} != {row.id for row in theirs}:
        what = "The two were not tested on the same rows" if rows else "There are no rows to compare on"
        raise DataError(what, f"{run} and {other}", "give --data FILE with rows that neither was trained on")
    said = []
    for folder, own, its, _ in sides:
        asker = Asker(its, rows, suite, say or _quiet, None)
        if not asker.answered(str(folder)):
            openings.open(own, rows, suite, "compare", [asker.made_by(str(folder))])
        said.append(asker.ask(folder.parent.name, str(folder)))
        openings.done(own, suite)
    settings = ladder.task.evaluate
    names = (f"{run.name}/{first.parent.name}", f"{other.name}/{second.parent.name}")
    goal = ladder.task.goal.task
    told = compared(
        names,
        goal,
        ladder.metric,
        rows,
        (said[0], said[1]),
        ladder.asked.labels,
        ladder.rows("train"),
        settings.confidence,
        settings.resamples,
    )
    return {**told.to_json(), "openings": len(openings.readings(rows))}


def advise(task: str, *, set: Sequence[str] = (), changing: str = "", say: Say | None = None) -> dict[str, Any]:
    """Say from cheap probes whether to fine-tune at all."""
    from typing import cast, get_args

    from burnish import task as tasks
    from burnish.climb.ladder import ready
    from burnish.climb.probe import probe
    from burnish.evaluate import diagnose

    if changing not in get_args(diagnose.Changing):
        what, do = unknown("value of --changing", changing, filter(None, get_args(diagnose.Changing)))
        raise TaskError(what, "--changing", do)
    ladder = ready(tasks.read(task, set), begin=False)
    return diagnose.advise(probe(ladder, cast(diagnose.Changing, changing), say or _quiet)).to_json()


def _own(task: Task, run: Path) -> tuple[Ladder, list[Example], str]:
    """The run's own test rows; refuses when data or settings changed, as these could then be rows trained on."""
    from dataclasses import replace

    from burnish.climb.ladder import ready

    ladder = ready(task, begin=False)
    if ladder.folder.name[-8:] != run.resolve().name[-8:]:  # the hash of all that decides a run
        raise DataError(
            "The data or a setting is not what this run was made with, so its test rows are not known for sure",
            str(run),
            "climb again, or give --data FILE with rows nobody trained on",
        )
    return replace(ladder, folder=run), ladder.rows("test"), ""


def _other(task: Task, run: Path, artifact: Artifact, data: str, suite: str) -> tuple[Ladder, list[Example], str]:
    """Rows of another file, read as the artifact's training rows were, and what a sceptic should know of them."""
    from dataclasses import replace

    from burnish.climb.ladder import Ladder
    from burnish.data import prepare

    contract = artifact.contract
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
        columns=dict(artifact.facts.get("columns", {})),
    )
    found = prepare.prepare(replace(task, data=given), run / "data" / suite)
    ladder = Ladder(task, artifact.base, artifact.tokenizer(), found, "", contract, contract, run)
    rows = prepare.examples(found.folder, "train")
    try:
        own = {row.id for row in _own(task, run)[0].rows("train")}
    except BurnishError:
        return ladder, rows, "the training data is not as it was, so whether it holds some of these rows is not known"
    seen = sum(row.id in own for row in rows)
    return ladder, rows, f"{seen:,} of these {len(rows):,} rows were trained on: the scores flatter" if seen else ""


def predict(artifact: str, data: str, *, out: str, say: Say | None = None) -> dict[str, Any]:
    """Answer every row of a file; a stopped job goes on where it was."""
    from burnish import artifact as artifacts
    from burnish.evaluate import batch

    return batch.run(artifacts.load(_artifact(artifact)), data, Path(out), say or _quiet)


def chat(artifact: str) -> Any:
    """Talk with an artifact."""
    from burnish import artifact as artifacts
    from burnish.evaluate.talk import Chat

    return Chat(artifacts.load(_artifact(artifact)))


def runs() -> list[dict[str, Any]]:
    """List what has been tried, newest first."""
    import time

    import yaml

    from burnish import store

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
    import json

    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _busy(rung: Path) -> bool:
    """Whether a process is at work on a rung."""
    from burnish import store

    try:
        with store.locked(rung):
            return False
    except (BurnishError, OSError):
        return True


def demo(*, fast: bool = False, say: Say | None = None) -> Report:
    """Climb on the embedded base and reviews: nothing to download."""
    from burnish import task as tasks
    from burnish.climb.run import climb

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


def _is_run(folder: Path) -> bool:
    """A run's folder and not just one with a task file."""
    return (folder / "task.yaml").exists() and (folder / "environment.json").exists()


def _target(name: str) -> Path:
    """A run's folder or an artifact's, from a run's name or a path."""
    from burnish import store

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


def _run_of(folder: Path) -> Path | None:
    """The run that a run's or artifact's folder belongs to."""
    return next((path for path in (folder, *list(Path(folder).absolute().parents)[:3]) if _is_run(path)), None)


def _artifact(name: str) -> Path:
    """An artifact's folder; a run stands for the rung that its verdict names, or for its only one."""
    folder = _target(name)
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
