"""Chat: piped lines, the prompt, and its commands."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import fake_workflow as fake
import pytest

from burnish.cli.talk import talk


def typed(monkeypatch: pytest.MonkeyPatch, *turns: Any) -> None:
    """Let a person type these turns on a terminal; an exception is a key such as Ctrl-C."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    left = iter([*turns, EOFError()])

    def answer(prompt: str) -> str:
        assert prompt == ">>> "
        turn = next(left)
        if isinstance(turn, BaseException):
            raise turn
        return str(turn)

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("builtins.input", answer)


def test_piped_lines_are_turns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n\nagain"))
    talk(fake.Chat())
    assert capsys.readouterr().out == "1: HELLO␛[2J\n2: AGAIN␛[2J\n"


def test_json_is_one_object_per_turn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\nagain\n"))
    talk(fake.Chat(), as_json=True)
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {"prompt": "hello", "reply": "1: HELLO\x1b[2J"}
    assert second["prompt"] == "again"


def test_the_prompt_and_its_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    typed(monkeypatch, "hello", "/reset", KeyboardInterrupt(), "", "/?", "again")
    talk(fake.Chat())
    told = capsys.readouterr().out
    assert told.startswith("reviews, rung lora\n")
    assert "1: HELLO" in told
    assert "1: AGAIN" in told  # /reset forgot the first turn
    assert "Ctrl-D ends" in told
    assert "\x1b" not in told


def test_ctrl_c_stops_a_reply_and_not_the_chat(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Slow(fake.Chat):
        def reply(self, text: str) -> Iterator[str]:
            yield "begins"
            if text == "long":
                raise KeyboardInterrupt

    typed(monkeypatch, "long", "short")
    talk(Slow())
    assert "begins (stopped)\nbegins\n" in capsys.readouterr().out
