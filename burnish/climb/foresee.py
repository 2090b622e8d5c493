"""What each trained rung of a task will need before any is begun, and what this machine could tune at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from burnish.climb.ladder import Ladder, rungs_of
from burnish.climb.rungs import job_of, unfit
from burnish.task import parts
from burnish.train import calibrate, optim, standard
from burnish.train.job import prepare
from burnish.train.needs import needs


def foresee(ladder: Ladder, rungs: Sequence[str] = ()) -> dict[str, Any]:
    """The needs of these rungs, or of every trained one of the ladder; writes nothing but the measured rates."""
    asked = rungs or rungs_of(ladder.task, ladder.base)
    stacked = {rung: parts(rung) for rung in asked if all(parts(rung))}
    chosen = dict.fromkeys(parts(rung)[1] for rung in asked if rung not in stacked or not unfit(ladder, rung))
    told: dict[str, Any] = {}
    for rung in filter(None, chosen):
        job = job_of(ladder, rung)
        prepared = prepare(job)
        told[rung] = needs(job, prepared).to_json() | {"rows": prepared.train.count.to_json()}
    return {
        "base": ladder.base.name,
        "method": ladder.method,
        "rungs": told,
        "stacked": {rung: unfit(ladder, rung) or _stacked(ladder, *both) for rung, both in stacked.items()},
        "ok": all(one["verdict"] != "does not fit" for one in told.values()),
    }


def _stacked(ladder: Ladder, asks: str, trains: str) -> str:
    """What a rung that asks a tuned model needs, in words."""
    questions = ladder.task.rung_settings[asks]["budget"]
    return f"what {trains} needs, and then at most {questions} questions to find the prompt"


def tunable() -> dict[str, Any]:
    """The largest well-known architecture for each trained rung on this machine as it is now."""
    device = torch.device("cpu")
    element = 4 if optim.precision("auto", device) == "fp32" else 2
    smallest = standard.work(0, "lora", element)
    machine = calibrate.machine(smallest.shape, element, device)
    found = [standard.largest(rung, machine, element).to_json() for rung in standard.rungs()]
    return {"largest": found, "room": machine.memory, "row": standard.ROW, "ok": True}
