"""Progress: few plain lines in a log, one moving line on a terminal, and never in the way."""

from __future__ import annotations

import io
from typing import Any

import pytest

from burnish.cli.progress import Progress
from burnish.cli.screen import Screen
from burnish.records import Event


class Clock:
    """Time that moves when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def watched(stream: Any = None) -> tuple[Progress, Clock, io.StringIO]:
    stream, clock = stream or io.StringIO(), Clock()
    return Progress(Screen(stream), clock), clock, stream


def step(number: int, loss: float = 1.0, **numbers: Any) -> Event:
    return Event("step", number, 0.0, {"loss": loss, "steps": 100, **numbers})


def test_a_log_gets_a_line_every_tenth_of_the_way() -> None:
    progress, clock, stream = watched()
    with progress:
        for number in range(1, 101):
            clock.now += 0.9
            progress("lora", step(number))
    lines = stream.getvalue().splitlines()
    assert [int(line.split()[2].split("/")[0]) for line in lines] == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91]


def test_a_log_gets_a_line_every_ten_seconds_of_slow_work() -> None:
    progress, clock, stream = watched()
    with progress:
        for number in range(1, 11):
            clock.now += 6
            progress("lora", step(number))
    assert len(stream.getvalue().splitlines()) == 5


def test_the_time_left_comes_from_the_median_step_once_there_are_five() -> None:
    progress, clock, stream = watched()
    for number in range(1, 51):
        clock.now += 100.0 if number == 7 else 10.0  # one slow step (a validation) changes nothing
        progress("lora", step(number))
    lines = stream.getvalue().splitlines()
    assert "ETA --" in lines[4]  # the first step's own time is not known
    assert "ETA 15:40" in lines[5]
    assert "ETA 8:20" in lines[-1]


def test_numbers_stand_beside_each_other() -> None:
    progress, clock, stream = watched()
    progress("lora", Event("validated", 1, 0.0, {"valid_loss": 0.398}))
    clock.now = 13.0
    progress("lora", step(50, 0.412, tokens_per_second=2430.0, memory=612_000_000))
    assert stream.getvalue() == (
        "lora  training  50/100 50% · loss 0.412 · val 0.398 · 2,430 tok/s · 0:13 · ETA -- · 612 MB\n"
    )


def test_the_loss_is_smoothed_without_leaning_on_a_zero_start() -> None:
    progress, _, _ = watched()
    for number, loss in enumerate([1.0, 1.0, 4.0], start=1):
        progress("lora", step(number, loss))
    assert 1.0 < progress.losses / progress.weight < 4.0
    progress("full", step(1, 2.5))
    assert progress.losses / progress.weight == pytest.approx(2.5)


def test_warnings_and_ends_are_always_told() -> None:
    progress, _, stream = watched()
    for number in range(3):
        progress("lora", Event("warned", number, 0.0, {"text": "one class is missing"}))
    progress("lora", Event("finished", 3, 0.0, {"reason": "no better for 4 validations"}))
    lines = stream.getvalue().splitlines()
    assert lines[:3] == ["lora: warning: one class is missing"] * 3
    assert lines[3].startswith("lora  done: no better for 4 validations")


def test_a_phase_names_its_rung_once() -> None:
    progress, _, stream = watched()
    progress("zero-shot", Event("phase", 0, 0.0, {"text": "zero-shot: 120 of 172 rows", "done": 120, "total": 172}))
    assert stream.getvalue().startswith("zero-shot  120 of 172 rows  70% · ")


def test_a_terminal_that_goes_away_does_not_stop_the_work() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    progress, clock, _ = watched(Gone())
    with progress:
        for number in range(1, 4):
            clock.now += 11
            progress("lora", step(number))


def test_a_terminal_shows_a_bar_no_wider_than_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CI", raising=False)
    for width in (40, 80, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        progress, _, stream = watched(Terminal())
        with progress:
            progress("zero-shot", Event("phase", 0, 0.0, {"text": "3 of 3 rows", "done": 3, "total": 3}))
            progress("lora", step(50, tokens_per_second=100.0))
            assert ("━" in progress._bar().plain) == (width > 40)
            assert "50/100" in progress._bar().plain
            assert width < 80 or len(progress._bar().plain) < width
        assert "zero-shot  3 of 3 rows" in stream.getvalue()
        assert stream.getvalue().rstrip().endswith("\x1b[?25h") or "\x1b[?25h" in stream.getvalue()  # cursor is back


def test_a_trained_rung_begins_by_saying_what_it_sets_out_to_do() -> None:
    tokens = {"tokens_trained": 140, "tokens_masked": 9325, "tokens_cut": 0}
    numbers = {"phase": "lora", "method": "classify", "parameters": 306_400, "trained": 46_368, "rows": 140}
    progress, _, stream = watched()
    progress("lora", Event("started", 0, 0.0, {**numbers, "tokens": tokens, "steps": 27, "per_epoch": 9}))
    progress("lora", Event("resumed", 12, 3.0, {"path": "x"}))
    first, second = stream.getvalue().splitlines()
    assert first == (
        "lora  classify: trains 46,368 of 306,400 parameters · 140 rows"
        " · tokens 140 trained, 9,325 masked, 0 cut · 27 steps, 9 an epoch"
    )
    assert second == "lora  goes on after step 12"


def test_what_is_done_has_no_time_left() -> None:
    progress, clock, stream = watched()
    for number in range(1, 21):
        clock.now += 1
        progress("lora", step(number))
    progress("lora", Event("finished", 20, 20.0, {"reason": "no improvement in 4 validations"}))
    assert "ETA" not in stream.getvalue().splitlines()[-1]
