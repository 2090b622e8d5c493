"""Results on a terminal and in a log."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import fake_workflow as fake
import pytest

from burnish.cli import show
from burnish.records import RungResult


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CI", "NO_COLOR", "COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def told(view: str, value: Any, terminal: bool = False, **asked: Any) -> str:
    stream = Terminal() if terminal else io.StringIO()
    show.VIEWS[view](show.Screen(stream), value, asked)
    return stream.getvalue()


def test_the_verdict_stands_first_and_the_next_command_last() -> None:
    lines = told("climb", fake.report(), task="t.yaml").splitlines()
    assert lines[0] == "LoRA meets the goal."
    assert "0.910" in next(line for line in lines if line.startswith("lora "))
    assert "retrieval not run: there are no passages" in lines
    assert any(line.startswith("lora against zero-shot: +0.400") and "fixed 31, broke 4" in line for line in lines)
    assert lines[-2:] == [
        "Next     burnish predict 'my runs/lora' NEW_DATA --out answers.jsonl",
        "         burnish chat 'my runs/lora'",
    ]


def test_without_a_winner_the_data_is_looked_at_next() -> None:
    assert (
        told("climb", fake.report("not met"), task="t.yaml").splitlines()[-1]
        == "Next     burnish check t.yaml --show 3"
    )


def test_the_report_is_named_where_there_is_one(tmp_path: Path) -> None:
    from dataclasses import replace

    found = replace(fake.report(), folder=str(tmp_path))
    assert "Report" not in told("climb", found)
    (tmp_path / "report.html").touch()
    assert f"Report   {tmp_path}/report.html" in told("climb", found)


def test_an_evaluation_shows_every_metric() -> None:
    assert "macro-f1" in told("evaluate", fake.report(), target="reviews")
    assert "macro-f1" not in told("climb", fake.report(), task="t.yaml")


def test_a_rung_that_did_not_run_says_why() -> None:
    assert told("train", RungResult("qlora", skipped="the base is too small"), task="t.yaml") == (
        "qlora was not run: the base is too small\n"
    )


def test_trained_tokens_are_coloured_or_bracketed(monkeypatch: pytest.MonkeyPatch) -> None:
    card = fake.check("t.yaml", show=1)
    assert "Review: fine[good]" in told("check", card, task="t.yaml")
    assert "Review: fine\x1b[1;32mgood\x1b[0m" in told("check", card, terminal=True, task="t.yaml")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "Review: fine[good]" in told("check", card, terminal=True, task="t.yaml")


def test_the_data_card_is_counts_on_a_line_each() -> None:
    lines = told("check", fake.check("t.yaml"), task="t.yaml").splitlines()
    assert "  rows         read 600 · dropped exact duplicate 2" in lines
    assert "  label counts train bad 300, good 298" in lines


def test_one_problem_stands_once_with_its_places_errors_first() -> None:
    card = fake.check("t.yaml")
    note = {"what": "A note", "where": "", "do": "", "severity": "note"}
    text = told("check", {**card, "problems": [note, *card["problems"]]}, task="t.yaml")
    assert text.count("The label is empty") == 1
    assert "(25 times)" in text
    assert "a.csv:42 and 21 more" in text
    assert text.index("error: ") < text.index("note: ")


def test_a_log_line_is_never_broken_and_a_terminal_line_is_not_wider_than_it(monkeypatch: pytest.MonkeyPatch) -> None:
    report = fake.report(text="word " * 60)
    assert told("climb", report).splitlines()[0].split() == ["word"] * 60
    monkeypatch.setenv("COLUMNS", "50")
    lines = told("climb", report, terminal=True).splitlines()
    assert max(len(line) for line in lines if "word" in line) <= 50 + len("\x1b[1;32m\x1b[0m")


def test_nothing_run_yet_says_how_to_begin() -> None:
    assert "burnish demo" in told("runs", [])
