"""How far the work is: events in, one moving line on a terminal, or a plain line now and then in a log.

A run may last days, so what is shown costs nothing per step, and a display that fails never stops the work.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from rich.live import Live
from rich.text import Text

from burnish.cli import needs
from burnish.cli.screen import Screen
from burnish.evaluate import plain
from burnish.records import Event

EVERY_SECONDS = 10.0  # a log gets a line this often,
EVERY_SHARE = 0.1  # or when this much more is done,
APART = 1.0  # but never two within this many seconds
PACE = 50  # steps whose median makes the time left,
FEWEST = 5  # and how many it needs
SMOOTH = 0.9  # weight of the past in the loss shown


class Progress:
    """A `say` for the verbs; use it as a context manager so that the terminal is left clean."""

    def __init__(self, screen: Screen, clock: Callable[[], float] = time.monotonic) -> None:
        self.screen = screen
        self.clock = clock
        self.told_at = -math.inf
        self._begin("")
        self.live = (
            Live(
                console=screen.console,
                get_renderable=self._bar,
                refresh_per_second=5,
                transient=True,
                redirect_stdout=False,
            )
            if screen.terminal and not screen.console.is_dumb_terminal
            else None
        )

    def _begin(self, rung: str) -> None:
        self.rung = rung
        self.began = self.clock()
        self.losses = self.weight = 0.0
        self.valid: float | None = None
        self.speed = self.memory = 0.0
        self._phase("")

    def _phase(self, phase: str) -> None:
        self.phase = phase
        self.done = self.total = 0
        self.at = self.clock()
        self.pace: deque[float] = deque(maxlen=PACE)
        self.told_share = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()
        if self.live:
            self.live.stop()

    def __call__(self, rung: str, event: Event) -> None:
        """Take one event in and show what it changes."""
        try:
            self._take(rung, event)
        except OSError:  # the terminal is gone (a closed pipe, a lost connection); the work is not
            self.screen.console.quiet = True

    def _take(self, rung: str, event: Event) -> None:
        if self.live and not self.live.is_started:
            self.live.start()
        if rung != self.rung:
            self._leave()
            self._begin(rung)
        numbers = event.numbers
        if event.kind == "started":
            self._phase("starting")
            if "parameters" in numbers:
                self.screen.line(f"{rung}  {_plan(numbers)}")
                if numbers.get("kernels", "own kernels") != "own kernels":
                    self.screen.line(f"{rung}  by {numbers['kernels']}")
                return
        elif event.kind == "resumed":
            self.screen.line(f"{rung}  goes on after step {event.step:,}")
        elif event.kind == "phase":
            self._move(str(numbers["text"]), int(numbers.get("done") or 0), int(numbers.get("total") or 0))
        elif event.kind == "step":
            self.losses = SMOOTH * self.losses + (1 - SMOOTH) * float(numbers["loss"])
            self.weight = SMOOTH * self.weight + (1 - SMOOTH)
            self.speed = float(numbers.get("tokens_per_second") or 0)
            self.memory = float(numbers.get("memory") or 0)
            self._move("training", event.step, int(numbers.get("steps") or 0))
        elif event.kind == "validated":
            self.valid = numbers.get("valid_loss", self.valid)
        elif event.kind == "warned":
            self.screen.line((f"{rung}: warning: {numbers['text']}", "yellow"))
        elif event.kind == "finished":
            self.screen.line(f"{rung}  ", ("done", "green"), f": {numbers.get('reason', '')} · ", self._summary(False))
            self.rung = ""  # already told
        if not self.live and event.kind in ("started", "phase", "step"):
            self._log()

    def _move(self, phase: str, done: int, total: int) -> None:
        """Note how far the phase is and how long a unit of it took."""
        if done < self.done or total != self.total or not total:
            self._phase(phase)
        now = self.clock()
        if self.total and done > self.done:
            self.pace.append((now - self.at) / (done - self.done))
        self.phase, self.done, self.total, self.at = phase, done, total, now

    def _log(self) -> None:
        now, share = self.clock(), self.done / self.total if self.total else 0.0
        further = share - self.told_share >= EVERY_SHARE - 1e-9 and now - self.told_at >= APART
        if further or now - self.told_at >= EVERY_SECONDS:
            self.told_at, self.told_share = now, share
            counts = f"{self._counts()} {share:.0%} · ".lstrip() if self.total else ""
            self.screen.line(f"{self.rung}  {self._words()}  {counts}{self._summary()}")

    def _leave(self) -> None:
        """A terminal keeps one line of every rung that did something."""
        if self.live and self.live.is_started and self.rung:
            steps = f" {self.done:,}/{self.total:,}" if self.weight else ""  # a phase's words hold its own counts
            self.screen.line(f"{self.rung}  {self._words()}{steps} · {self._summary(left=False)}")

    def _counts(self) -> str:
        """`3/20`, unless the words hold their own counts."""
        return "" if f"{self.done} of {self.total}" in self.phase else f"{self.done:,}/{self.total:,}"

    def _words(self) -> str:
        return plain.line(self.phase.removeprefix(f"{self.rung}: "), 60)

    def _summary(self, left: bool = True) -> str:
        """Loss, validation, speed, time so far, time left, memory: those there are."""
        parts = []
        if self.weight:
            parts.append(f"loss {plain.number(self.losses / self.weight)}")
        if self.valid is not None:
            parts.append(f"val {plain.number(self.valid)}")
        if self.speed:
            parts.append(f"{self.speed:,.0f} tok/s")
        parts.append(clock(self.clock() - self.began))
        if left and self.total > self.done:
            parts.append(f"ETA {self._left()}")
        if self.memory:
            parts.append(plain.size(self.memory))
        return " · ".join(parts)

    def _left(self) -> str:
        if len(self.pace) < FEWEST:
            return "--"
        return clock(statistics.median(self.pace) * (self.total - self.done))

    def _bar(self) -> Text:
        """The moving line, as wide as the terminal allows and never wider."""
        if not self.rung:
            return Text("")
        head, tail = f"{self.rung}  {self._words()} ", f" {self._summary()}"
        counts = f" {self._counts()} ·" if self.total and self._counts() else ""
        room = min(40, self.screen.console.width - len(head) - len(counts) - len(tail) - 1)
        bar: tuple[str, str] = ("", "")
        rest = ""
        if self.total and room >= 5:
            full = round(room * min(1.0, self.done / self.total))
            bar, rest = ("━" * full, "green"), "━" * (room - full)
        head, tail = plain.visible(head), plain.visible(tail)
        return Text.assemble(head, bar, (rest, "dim"), counts, tail, no_wrap=True, overflow="ellipsis")


def _plan(numbers: Mapping[str, Any]) -> str:
    """What a trained rung sets out to do: parameters, rows, tokens, steps."""
    tokens = numbers["tokens"]
    told = [f"{numbers['method']}: trains {numbers['trained']:,} of {numbers['parameters']:,} parameters"]
    told.append(f"{numbers['rows']:,} rows")
    words = [f"{tokens[f'tokens_{kind}']:,} {kind}" for kind in ("trained", "masked", "cut")]
    told.append(f"tokens {', '.join(words)}")
    told.append(f"{numbers['steps']:,} steps, {numbers['per_epoch']:,} an epoch")
    told += [needs.brief(numbers["needs"])] if "needs" in numbers else []
    return " · ".join(told)


def clock(seconds: float) -> str:
    """A duration as a stop-watch shows it.

    >>> clock(13), clock(3723)
    ('0:13', '1:02:03')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
