"""The ladder: which rungs there are for a task, each made once, all judged on the same locked test set.

In: a Task.  Out: a run folder (burnish_home/runs/NAME) with the data, one folder for each rung, and a Report.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from burnish import store
from burnish.artifact import Artifact
from burnish.climb.foresee import foresee, tunable
from burnish.climb.judge import judge, publish
from burnish.climb.ladder import folder_of, ready, rungs_of
from burnish.climb.rungs import made, make_prompted, make_trained
from burnish.errors import Interrupted, TaskError
from burnish.models.model import Model
from burnish.records import Event, Report
from burnish.task import Task

Say = Callable[[str, Event], None]


def climb(task: Task, again: bool, say: Say) -> Report:
    """Make every rung, open the test set once, and judge."""
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

    results = []
    for rung in rungs:
        if store.stop_requested():
            raise Interrupted("Stopped; finished rungs are kept", str(ladder.folder), "give the same command again")
        if folder_of(rung) == "adapters":
            results.append(make_trained(ladder, rung, again, say))
        else:
            results.append(make_prompted(ladder, rung, again, say, model))
    told = judge(ladder, results, ladder.rows("test"), "test", "climb", say, model)
    told = replace(told, seconds=round(time.monotonic() - clock, 1))
    return publish(told, ladder.folder, ladder.rows("test"), "test")


__all__ = ["climb", "foresee", "judge", "made", "make_trained", "publish", "ready", "tunable"]
