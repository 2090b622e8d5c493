"""A whole climb: every rung made, cheapest first, then all judged at one opening of the test set."""

from __future__ import annotations

import time
from dataclasses import replace

from burnish import store
from burnish.artifact import Artifact
from burnish.climb.judge import Point, claimed, judge, publish
from burnish.climb.ladder import ready, rungs_of
from burnish.climb.rungs import make_points, make_prompted, make_trained
from burnish.errors import Interrupted, TaskError
from burnish.models.model import Model
from burnish.records import Report, RungResult, Say
from burnish.task import Task, parts


def climb(task: Task, again: bool, say: Say, seeds: int = 1, search: int = 0, curve: bool = False) -> Report:
    """Make every rung, open the test set once, and judge.

    seeds: trainings of each trained rung; the verdict then covers rows and seeds.  search: settings tried for each
    trained rung on validation rows.  curve: also train the best trained rung (by validation) on smaller shares.
    """
    clock = time.monotonic()
    ladder = ready(task)
    rungs = rungs_of(ladder.task, ladder.base)
    if not ladder.rows("test"):
        raise TaskError(
            "There are no test rows, so nothing could be proven",
            task.where("data.test"),
            "set data.test or data.test_files",
        )
    loaded: list[Model] = []

    def model() -> Model:
        if not loaded:
            loaded.append(Artifact("zero-shot", ladder.base, ladder.asked).model())
        return loaded[0]

    path = ladder.folder / "sittings.json"  # seconds of each: what is found done was paid for before
    before = [] if again else store.read_json(path, list)

    def taken() -> float:
        """Seconds of all sittings, kept after every rung: a killed sitting counts up to its last one."""
        sittings = [*before, round(time.monotonic() - clock, 1)]
        store.write_json(path, sittings)
        return round(sum(sittings), 1)

    tuned: dict[str, RungResult] = {}

    def trained(rung: str) -> RungResult:
        """The trained rung, made once: for itself, and for the rungs that ask its model."""
        if rung not in tuned:
            tuned[rung] = make_trained(ladder, rung, again, say, seeds, search)
        return tuned[rung]

    results = []
    for rung in rungs:
        if store.stop_requested():
            raise Interrupted("Stopped; finished rungs are kept", str(ladder.folder), "give the same command again")
        asks = bool(parts(rung)[0])
        try:
            results.append(make_prompted(ladder, rung, again, say, model, trained) if asks else trained(rung))
        finally:
            taken()
    points: list[Point] = []
    if curve and tuned:
        chosen = [
            parts(rung)[1] for rung in claimed(ladder, [item for item in results if not item.skipped], say, model)
        ]
        first = next((item for item in tuned.values() if item.rung in chosen), next(iter(tuned.values())))
        points = [Point(first.rung, rows, artifact) for rows, artifact in make_points(ladder, first, say)]
    told = judge(ladder, results, ladder.rows("test"), "test", "climb", say, model, points)
    told = replace(told, seconds=taken())
    return publish(told, ladder.folder, ladder.rows("test"), "test", ladder.rows("train"))
