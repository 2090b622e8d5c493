"""What a run will need before it starts, whether it fits, and the change that makes it fit.

In: a Work and a Machine.  Out: an Estimate with an error bound on every figure; the arithmetic is in `costs.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from burnish.train.costs import FIT, Fit, disk, memory, seconds
from burnish.train.terms import Machine, Rows, Work

Verdict = Literal["fits", "tight", "does not fit"]
CUTS = (128, 256, 512, 1024, 2048, 4096, 8192)  # budgets of tokens to choose from
LEAST = 1024  # below it matrix products slow down, so nothing smaller is taken but for want of memory
LIMITS = (8192, 4096, 2048, 1024, 512, 256, 128, 64)  # of a row's tokens, tried as a remedy
NOMINAL_FLOPS, NOMINAL_CALL = 1e11, 2e-5  # of no machine in particular: the choice must not hang on a stop-watch
WORTH = 0.1  # a larger micro-batch is taken while calls cost more than this share of the arithmetic


@dataclass(frozen=True)
class Figure:
    """A predicted number and its relative error bound (0: exact)."""

    value: float
    error: float = 0.0

    def to_json(self) -> dict[str, float]:
        return {"value": self.value, "low": self.value * (1 - self.error), "high": self.value * (1 + self.error)}


@dataclass(frozen=True)
class Remedy:
    """A change that makes a run fit: what to do, the overrides that do it, and the peak it then has."""

    text: str
    set: tuple[str, ...]
    rung: str = ""
    rows_cut: int = 0
    peak: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "set": list(self.set)}


@dataclass(frozen=True)
class Estimate:
    """A run's needs.  parts: bytes by part at the memory peak.  phases: seconds by part.  room: bytes there are.

    states: what keeping the output of frozen layers saves, or why it is not kept (states.py).
    """

    parameters: Figure
    trained: Figure
    tokens: Figure
    steps: Figure
    seconds: Figure
    cpu: Figure
    gpu: Figure
    disk: Figure
    micro_tokens: int
    recompute: bool
    verdict: Verdict
    room: float
    parts: Mapping[str, float] = field(default_factory=dict)
    phases: Mapping[str, float] = field(default_factory=dict)
    remedies: tuple[Remedy, ...] = ()
    states: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values: a figure as value, low, high."""
        told: dict[str, Any] = {}
        for name, value in vars(self).items():
            told[name] = value.to_json() if isinstance(value, Figure) else value
        return told | {
            "parts": {name: round(value) for name, value in self.parts.items()},
            "phases": {name: round(value, 4) for name, value in self.phases.items()},
            "remedies": [item.to_json() for item in self.remedies],
        }


def choose(work: Work, machine: Machine, fit: Fit = FIT) -> tuple[int, bool]:
    """(micro_tokens, recompute): the smallest budget that is about as fast as any, smaller or recomputing if it must.

    What is fast depends on the shape alone, never on a stop-watch, so that two runs of a task are cut alike on every
    machine that has the memory.
    """
    large = [cut for cut in CUTS if cut >= LEAST]
    fast = next((cut for cut in large if _calls_share(work, cut) <= WORTH), large[-1])
    wanted = [work.micro_tokens] if work.micro_tokens else [cut for cut in reversed(CUTS) if cut <= fast]
    for recompute in (False, True) if work.recomputes else (False,):
        for cut in wanted:
            if _verdict(_peak(work, cut, recompute, machine, fit), _room_of(work, machine), fit) == "fits":
                return cut, recompute
    return wanted[-1], work.recomputes


def _calls_share(work: Work, cut: int) -> float:
    arithmetic = 6.0 * work.shape.multiplications * cut / NOMINAL_FLOPS
    return 8.0 * work.shape.calls * NOMINAL_CALL / max(arithmetic, 1e-12)


def _peak(work: Work, cut: int, recompute: bool, machine: Machine, fit: Fit) -> float:
    return memory(work, cut, recompute, machine, fit)["peak"]


def _room_of(work: Work, machine: Machine) -> float:
    return machine.memory if work.device == "cpu" else machine.gpu


def _verdict(peak: float, room: float, fit: Fit) -> Verdict:
    if peak > room:
        return "does not fit"
    return "fits" if peak * (1 + fit.memory) <= room else "tight"


def estimate(work: Work, machine: Machine, others: Mapping[str, Work] | None = None, fit: Fit = FIT) -> Estimate:
    """Everything at once.  others: the same task on rungs that need less, by name, as remedies to try."""
    cut, recompute = choose(work, machine, fit)
    parts, phases = memory(work, cut, recompute, machine, fit), seconds(work, cut, recompute, machine, fit)
    peak, room = parts["peak"], _room_of(work, machine)
    verdict = _verdict(peak, room, fit)
    if disk(work) > machine.disk:
        verdict = "does not fit"
    host = peak if work.device == "cpu" else machine.resident + fit.process + 2.0 * work.shape.files
    return Estimate(
        Figure(work.shape.parameters),
        Figure(work.shape.trained),
        Figure(work.tokens, 0.0 if work.exact else 0.01),
        Figure(work.steps),
        Figure(phases["all"], fit.untried if machine.pace == 1.0 else fit.seconds),
        Figure(host, fit.memory),
        Figure(peak if work.device != "cpu" else 0.0, fit.memory),
        Figure(disk(work), 0.05),
        cut,
        recompute,
        verdict,
        room,
        parts,
        phases,
        remedies(work, machine, others or {}, fit) if verdict != "fits" else (),
    )


def remedies(work: Work, machine: Machine, others: Mapping[str, Work], fit: Fit = FIT) -> tuple[Remedy, ...]:
    """Single changes that each make the run fit, the one that costs the result least first.

    A smaller micro-batch leaves the result alone; another rung changes what is trained; a shorter limit cuts rows.
    """
    found = []

    def fits(changed: Work) -> float | None:
        cut, recompute = choose(changed, machine, fit)
        peak = _peak(changed, cut, recompute, machine, fit)
        enough = _verdict(peak, _room_of(changed, machine), fit) == "fits" and disk(changed) <= machine.disk
        return peak if enough else None

    if work.micro_tokens and (peak := fits(replace(work, micro_tokens=0))) is not None:
        text = "leave train.micro_tokens to Burnish: smaller micro-batches, the same update"
        found.append(Remedy(text, ("train.micro_tokens=0",), peak=peak))
    for rung, other in others.items():
        if (peak := fits(other)) is not None:
            found.append(Remedy(f"train {rung} instead", (), rung, peak=peak))
    for limit in LIMITS:
        shorter = _limited(work, limit)
        cut = int((_sides(work.train) > limit).sum())
        if cut and len(shorter.train) and (peak := fits(shorter)) is not None:
            what = "splits" if work.splits else "leaves out"
            text = f"limit rows to {limit:,} tokens, which {what} {cut:,} of {len(work.train):,} training rows"
            override = (f"data.max_length={limit}", f"data.too_long={'split' if work.splits else 'drop'}")
            found.append(Remedy(text, override, rows_cut=cut, peak=peak))
            break
    return tuple(found)


def _sides(rows: Rows) -> np.ndarray:
    """What a limit is compared with: the longer side of each row."""
    return np.maximum(rows.ids, rows.source)


def _limited(work: Work, limit: int) -> Work:
    """The same work with no row over a limit: split where rows are, else left out."""
    if not work.splits:
        kept, held = _sides(work.train) <= limit, _sides(work.validation) <= limit
        return replace(work, train=work.train.where(kept), validation=work.validation.where(held))
    return replace(work, train=_split(work.train, limit), validation=_split(work.validation, limit))


def _split(rows: Rows, limit: int) -> Rows:
    pieces = np.maximum(np.ceil(_sides(rows) / limit), 1).astype(int)
    return Rows(*(np.repeat(np.ceil(part / pieces), pieces) for part in (rows.ids, rows.source, rows.supervised)))
