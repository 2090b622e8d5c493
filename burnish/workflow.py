"""The verbs: plain values in, records out.  The command line, Python users and (later) HTTP call these alike.

Each verb imports its area inside itself, so that naming the verbs costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish.errors import BurnishError, DataError, TaskError, unknown
from burnish.records import Event, Report, RungResult, Say

if TYPE_CHECKING:
    from burnish.climb.ladder import Ladder
    from burnish.train.launch import Cluster


def _quiet(phase: str, event: Event) -> None:
    """Nobody listens."""


def init(data: str, *, out: str = "task.yaml", base: str = "burnish-tiny", force: bool = False) -> dict[str, Any]:
    """Look at data and write a task file with every key explained."""
    from burnish.climb import begin

    return begin.init(data, Path(out), base, force)


def check(task: str, *, set: Sequence[str] = (), show: int = 0) -> dict[str, Any]:
    """Read the data as a run would; name problems by file and line."""
    from burnish import taskfile
    from burnish.climb import begin

    return begin.check(taskfile.read(task, set), show)


def plan(task: str = "", *, rung: str = "", set: Sequence[str] = ()) -> dict[str, Any]:
    """Say what training will need, and whether that fits this machine.

    Without a task: the largest well-known base that each rung could tune here.
    """
    from burnish import taskfile
    from burnish.climb.foresee import foresee, tunable
    from burnish.climb.ladder import ready

    if rung:
        _must_train(rung)
    if not task:
        return tunable()
    return foresee(ready(taskfile.read(task, set), begin=False, planned=True), [rung] if rung else [])


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
    from burnish import taskfile
    from burnish.climb.run import climb

    for name, value, least in (("--seeds", seeds, 1), ("--search", search, 0)):
        if value < least:
            raise TaskError(f"{name} must be at least {least}, not {value}", name, "raise it")
    return climb(taskfile.read(task, set), again, say or _quiet, seeds, search, curve)


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
    from burnish import taskfile
    from burnish.climb.ladder import ready
    from burnish.climb.rungs import make_trained
    from burnish.train import distributed, launch

    _must_train(rung)
    cluster = launch.Cluster(devices or distributed.visible(), nodes, node_rank, rendezvous).checked()
    ladder = ready(taskfile.read(task, set))
    if cluster.size > 1 and not launch.inside():
        words = {"task": task, "rung": rung, "set": list(set), "again": again, "shard": shard}
        return _together(words, cluster, ladder, say or _quiet)
    with distributed.begin(shard) as ranks:
        return make_trained(ladder, rung, again, say or _quiet, ranks=ranks)


def _must_train(rung: str) -> None:
    """Refuse a rung that trains nothing."""
    from burnish import kinds

    if rung not in kinds.names("adapters"):
        what, do = unknown("trained rung", rung, kinds.names("adapters"))
        raise TaskError(what, "--rung", do)


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

    from burnish import store, taskfile
    from burnish.train import launch
    from burnish.train.slurm import script

    _must_train(rung)
    launch.Cluster(devices, nodes, 0, "host:1").checked()
    words = [task, "--rung", rung, *(part for key in set for part in ("--set", key)), *(["--shard"] if shard else [])]
    if slurm:
        text = script(words, f"{taskfile.read(task, set).name}-{rung}", devices, nodes, limit)
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
    from burnish import store, taskfile
    from burnish.climb import past
    from burnish.climb.judge import judge, publish
    from burnish.climb.rungs import made

    folder = past.find(target)
    run = past.run_of(folder)
    if run is None:
        raise BurnishError("This artifact's run is not here", str(folder), "evaluate it inside its run folder")
    task, results = taskfile.read(run / "task.yaml", set), made(run)
    if folder != run:
        results = [result for result in results if Path(result.artifact).resolve() == folder.resolve()]
    if not results:
        raise BurnishError("No finished rung here", str(folder), "train one first: `burnish train TASK --rung lora`")
    suite = f"data-{store.slug(Path(data).name)}" if data else "test"
    ladder, rows, note = (
        past.other(task, run, artifacts.load(results[0].artifact), data, suite) if data else past.own(task, run)
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
    from burnish import store, taskfile
    from burnish.climb import openings, past
    from burnish.climb.answers import Asker
    from burnish.climb.judge import publish_pair
    from burnish.evaluate.compare import compared

    suite = f"data-{store.slug(Path(data).name)}" if data else "test"
    sides = []
    for name in (a, b):
        folder = past.artifact(name)
        run = past.run_of(folder)
        if run is None:
            raise BurnishError("This artifact's run is not here", str(folder), "compare it inside its run folder")
        task = taskfile.read(run / "task.yaml")
        ladder, rows, _ = past.other(task, run, artifacts.load(folder), data, suite) if data else past.own(task, run)
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
    names = (first.parent.name, second.parent.name)
    if run != other or names[0] == names[1]:
        names = (f"{run.name}/{names[0]}", f"{other.name}/{names[1]}")
    scoring = ladder.scoring(rows)
    told = compared(names, ladder.task.goal.task, scoring, (said[0], said[1]), ladder.rows("train"))
    pair = ((ladder, first, said[0]), (sides[1][2], second, said[1]))
    page = publish_pair(told, pair, rows, suite)
    return {**told.to_json(), "openings": len(openings.readings(rows)), "page": str(page)}


def advise(task: str, *, set: Sequence[str] = (), changing: str = "", say: Say | None = None) -> dict[str, Any]:
    """Say from cheap probes whether to fine-tune at all."""
    from typing import cast, get_args

    from burnish import taskfile
    from burnish.climb.ladder import ready
    from burnish.climb.probe import probe
    from burnish.evaluate import advice
    from burnish.evaluate.facts import Changing

    if changing not in get_args(Changing):
        what, do = unknown("value of --changing", changing, filter(None, get_args(Changing)))
        raise TaskError(what, "--changing", do)
    ladder = ready(taskfile.read(task, set), begin=False)
    return advice.advise(probe(ladder, cast(Changing, changing), say or _quiet)).to_json()


def predict(artifact: str, data: str, *, out: str, say: Say | None = None) -> dict[str, Any]:
    """Answer every row of a file; a stopped job goes on where it was."""
    from burnish import artifact as artifacts
    from burnish.climb import past
    from burnish.evaluate import predict_file

    return predict_file.run(artifacts.load(past.artifact(artifact)), data, Path(out), say or _quiet)


def chat(artifact: str) -> Any:
    """Talk with an artifact."""
    from burnish import artifact as artifacts
    from burnish.climb import past
    from burnish.evaluate.talk import Chat

    return Chat(artifacts.load(past.artifact(artifact)))


def runs() -> list[dict[str, Any]]:
    """List what has been tried, newest first."""
    from burnish.climb import past

    return past.runs()


def demo(*, fast: bool = False, say: Say | None = None) -> Report:
    """Climb on the embedded base and reviews: nothing to download."""
    from burnish import taskfile
    from burnish.climb.run import climb

    path = _embedded("reviews/task.yaml")
    overrides = ["train.epochs=1", "few-shot.orders=1", "data.limit=300"] if fast else []
    return climb(taskfile.read(path, overrides), False, say or _quiet)


def _embedded(name: str) -> Path:
    """A file of the examples: beside the package in a checkout, inside it when installed from a wheel."""
    here = Path(__file__).parent
    for path in (here / "bundled" / "examples" / name, here.parent / "examples" / name):
        if path.exists():
            return path
    raise BurnishError(f"The embedded example {name} is missing", str(here), "install Burnish again")
