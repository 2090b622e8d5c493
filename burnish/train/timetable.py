"""How many steps, how often to look, at which rate: decided before the first step and written down.

In: the task's train section, the number of rows and the model's width.  Out: a Timetable; nothing here changes later.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from burnish.task import Train


@dataclass(frozen=True)
class Timetable:
    """A run's numbers.  evaluate_every, save_every, steps: optimizer steps.  peak: largest learning rate."""

    steps: int
    per_epoch: int
    evaluate_every: int
    save_every: int
    peak: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def timetable(settings: Train, rows: int, width: int, rung_rate: float) -> Timetable:
    """The Timetable of a run over `rows` training rows.

    Without a learning_rate, the peak is the rung's rate at hidden size 2000, times (2000 / width) ** 0.78: wider
    models want smaller steps (Schulman et al. 2025, LoRA Without Regret, their fit over Llama models); never above
    1e-3, where a head drawn at random overshoots (measured on SST-2, docs/log.md), nor above a larger rate of the rung.
    """
    per_epoch = math.ceil(rows / settings.batch_size)
    steps = max(round(settings.epochs * per_epoch), 1)
    if settings.max_steps:
        steps = min(steps, settings.max_steps) if settings.epochs else settings.max_steps
    every = settings.evaluate_every or max(math.ceil(per_epoch / 4), math.ceil(steps / 40))
    peak = settings.learning_rate or min(rung_rate * (2000 / width) ** 0.78, max(rung_rate, 1e-3))
    return Timetable(steps, per_epoch, every, settings.save_every or every, peak)
