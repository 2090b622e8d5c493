"""What each trained rung of a task will need before any is begun, and what this machine could tune at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from burnish.climb.ladder import Ladder, folder_of, rungs_of
from burnish.climb.rungs import job_of
from burnish.train import calibrate, optim, standard, tune


def foresee(ladder: Ladder, rungs: Sequence[str] = ()) -> dict[str, Any]:
    """The needs of these rungs, or of every trained one of the ladder; writes nothing but the measured rates."""
    chosen = rungs or [rung for rung in rungs_of(ladder.task, ladder.base) if folder_of(rung) == "adapters"]
    told: dict[str, Any] = {}
    for rung in chosen:
        job = job_of(ladder, rung)
        prepared = tune.prepare(job)
        told[rung] = tune.needs(job, prepared).to_json() | {"rows": prepared.train.count.to_json()}
    return {
        "base": ladder.base.name,
        "method": ladder.method,
        "rungs": told,
        "ok": all(one["verdict"] != "does not fit" for one in told.values()),
    }


def tunable() -> dict[str, Any]:
    """The largest well-known architecture for each trained rung on this machine as it is now."""
    device = torch.device("cpu")
    element = 4 if optim.precision("auto", device) == "fp32" else 2
    smallest = standard.work(0, "lora", element)
    machine = calibrate.machine(smallest.shape, element, device)
    found = [standard.largest(rung, machine, element).to_json() for rung in standard.rungs()]
    return {"largest": found, "room": machine.memory, "row": standard.ROW, "ok": True}
