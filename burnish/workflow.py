"""The verbs: plain values in, records out.  The command line, Python users and (later) HTTP call these alike.

Each verb imports its area inside itself, so that naming the verbs costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from burnish.records import Event, Report, RungResult

if TYPE_CHECKING:
    from burnish.task import Task

Say = Callable[[str, Event], None]


def _quiet(phase: str, event: Event) -> None:
    """Nobody listens."""


def train(
    task: str, *, rung: str, set: Sequence[str] = (), again: bool = False, say: Say | None = None
) -> RungResult:
    """Train one rung; the test set stays closed."""
    from burnish import climb as ladders
    from burnish import kinds
    from burnish import task as tasks
    from burnish.errors import TaskError, unknown

    if rung not in kinds.names("adapters"):
        what, do = unknown("trained rung", rung, kinds.names("adapters"))
        raise TaskError(what, "--rung", do)
    ladder = ladders.ready(tasks.read(task, set))
    return ladders.make_trained(ladder, rung, again, say or _quiet)
