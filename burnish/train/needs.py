"""What a job will need on this machine, from its rows and a model without weights.

In: a Job and its Prepared.  Out: an Estimate, rehearsed where that is worth it, less what frozen layers save.
"""

from __future__ import annotations

from dataclasses import replace

from burnish import kinds
from burnish.models.model import Model
from burnish.train import calibrate, describe, estimate, rehearse, states
from burnish.train.estimate import Estimate
from burnish.train.job import Job, Prepared
from burnish.train.rehearse import Trial
from burnish.train.terms import Machine, Work

LIGHTER = ("qlora", "lora", "full")  # rungs of one kind by what they need, least first


def needs(job: Job, prepared: Prepared) -> Estimate:
    """What the run will need on this machine, and where that is too much, which rungs would need less."""

    def skeleton(rung: str) -> Model:
        return describe.skeleton(job.base, job.head, rung, job.task)

    def work(rung: str, model: Model) -> Work:
        return describe.work(
            model,
            job.task,
            prepared.timetable,
            prepared.batches,
            prepared.validation,
            job.contract.too_long == "split",
            job.ranks.device,
            describe.quantised(rung),
        )

    model = skeleton(job.rung)
    cut = job.ranks.over(model)
    own = replace(work(job.rung, model), ranks=cut, refers=prepared.method.TARGET == "pairs")
    machine = calibrate.machine(own.shape, own.element, job.ranks.device)
    machine = replace(machine, memory=machine.resident + (machine.memory - machine.resident) / job.ranks.local)
    told = estimate.estimate(own, machine)
    if job.ranks.size == 1 and told.verdict != "does not fit":
        trial = Trial(
            job.base,
            job.head,
            job.rung,
            job.task,
            prepared.method,
            prepared.settings,
            prepared.timetable,
            prepared.batches,
        )
        machine = rehearse.paced(trial, own, machine, (told.micro_tokens, told.recompute))
        told = estimate.estimate(own, machine)
    if told.verdict == "fits" or job.base.random:
        return _spared(job, prepared, model, own, machine, told)
    lighter = LIGHTER[: LIGHTER.index(job.rung)] if job.rung in LIGHTER else ()
    others = {
        rung: replace(work(rung, skeleton(rung)), ranks=cut) for rung in lighter if rung in kinds.names("adapters")
    }
    return _spared(job, prepared, model, own, machine, estimate.estimate(own, machine, others))


def _spared(job: Job, prepared: Prepared, model: Model, own: Work, machine: Machine, told: Estimate) -> Estimate:
    """The estimate, less what is saved where frozen layers run once."""
    layers, small = describe.frozen(model), describe.quantised(job.rung)
    if not layers:
        return told
    if reason := _obstacle(job, prepared, model):
        return replace(told, states=states.Saving(layers, reason=reason).to_json())
    above = replace(own, shape=describe.shape(model, small, layers))
    saved = states.saving(own, above, layers, job.base.width, machine, (told.micro_tokens, told.recompute))
    return replace(
        told,
        seconds=replace(told.seconds, value=told.seconds.value - saved.seconds),
        disk=replace(told.disk, value=told.disk.value + saved.bytes),
        phases={**told.phases, "states": -saved.seconds, "all": told.phases["all"] - saved.seconds},
        states=saved.to_json(),
    )


def _obstacle(job: Job, prepared: Prepared, model: Model) -> str:
    """Why frozen layers say something else in every pass, or cannot be left out; '' when neither."""
    dropout = job.task.train.dropout if kinds.load("adapters", job.rung).CARRIES_BASE else None
    if prepared.batches.corrupt is not None:
        return "what is hidden in a row is drawn anew in every epoch"
    if job.contract.target == "pairs":
        return "the answers of a pair share what they begin with"
    if describe.drops(model.hf.config, dropout):
        return "dropout is drawn in them (train.dropout=0 turns it off)"
    return "several processes share the run" if job.ranks.size > 1 else ""


def too_much(needed: Estimate) -> str:
    """What is lacking, and the first change that mends it."""
    peak = needed.parts["peak"]
    what = f"about {peak / 1e9:.1f} GB of memory are needed, and {needed.room / 1e9:.1f} GB are free"
    if peak <= needed.room:
        what = f"{needed.disk.value / 1e9:.1f} GB of disk are needed, more than are free"
    return f"{what}; {needed.remedies[0].text if needed.remedies else 'take a smaller base'}"
