"""Results on a terminal and in a log."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import fake_workflow as fake
import pytest

from burnish.cli import show
from burnish.cli.screen import Screen
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
    show.VIEWS[view](Screen(stream), value, asked)
    return stream.getvalue()


def test_the_verdict_stands_first_and_the_next_command_last() -> None:
    lines = told("climb", fake.report(), task="t.yaml").splitlines()
    assert lines[0] == "LoRA meets the goal."
    assert "0.910" in next(line for line in lines if line.startswith("lora "))
    assert "retrieval not run: there are no passages" in lines
    compared = next(line for line in lines if line.startswith("lora against zero-shot"))
    assert compared.split()[3:] == ["+0.400", "+0.300", "to", "+0.500", "31", "4", "0.0002"]
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


def test_the_next_command_keeps_what_was_set() -> None:
    asked = {"task": "t.yaml", "set": ["base=my model", "data.limit=9"]}
    ready = {**fake.check("t.yaml"), "ok": True}
    end = "--set 'base=my model' --set data.limit=9"
    assert told("check", ready, **asked).splitlines()[-1] == f"Next     burnish climb t.yaml {end}"
    assert told("check", fake.check("t.yaml"), **asked).splitlines()[-1].endswith(f"{end} --set data.on_problem=drop")
    assert told("climb", fake.report("not met"), **asked).splitlines()[-1].endswith(f"{end} --show 3")
    assert told("train", fake.report().rungs[1], **asked).splitlines()[-1].endswith(end)


def test_problems_that_differ_in_numbers_alone_stand_once() -> None:
    problems = [
        {"what": f"The row has {n} tokens, more than 512", "where": f"a.csv:{n}", "do": "cut it", "severity": "error"}
        for n in range(600, 671)
    ]
    lines = told("check", {**fake.check("t.yaml"), "problems": problems}, task="t.yaml").splitlines()
    assert "error: The row has 600 tokens, more than 512 (71 like this)" in lines
    assert sum(line.startswith("error") for line in lines) == 1


def test_a_data_card_shows_no_empty_facts_and_no_half_letters() -> None:
    card = {
        "files": [{"name": f"tales/{n}.txt", "sha256": "0" * 64} for n in range(26)],
        "rows": {"read": 26, "dropped": {}},
        "label_counts": {"train": {}, "test": {}},
        "letters": {"median": 93.5},
    }
    lines = told("check", {**fake.check("t.yaml"), "data": card}, task="t.yaml").splitlines()
    assert "  files        26 in tales" in lines
    assert "  rows         read 26" in lines
    assert "  letters      median 94" in lines
    assert not any("label counts" in line for line in lines)
    assert "Data" not in told("check", {**fake.check("t.yaml"), "data": {}, "tokens": {}}, task="t.yaml").splitlines()


def test_many_classes_are_counted_and_few_are_listed() -> None:
    few = {**fake.init("x.csv"), "labels": {"bad": 3, "good": 4}, "columns": {"text": "review", "label": "stars"}}
    lines = told("init", few).splitlines()
    assert "  labels   bad 3 · good 4" in lines
    assert "  columns  text = review, label = stars" in lines
    many = {**few, "labels": {str(n): n for n in range(1, 78)}}
    assert "  labels   77 classes of 1 to 77 rows" in told("init", many).splitlines()


def test_the_first_rows_are_a_question_and_its_answer() -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    first = [{"id": "ab12", "messages": turns}, {"id": "cd34", "text": "A", "pair": "B", "label": 2.5}]
    lines = told("init", {**fake.init("x.csv"), "first": first}).splitlines()
    assert "  row      user: Hi → Hello!" in lines
    assert "  row      A | B → 2.5" in lines


def test_an_evaluation_names_the_page_it_wrote(tmp_path: Path) -> None:
    from dataclasses import replace

    (tmp_path / "report-data-dev-csv.html").touch()
    (tmp_path / "report.html").touch()
    found = replace(fake.report(), folder=str(tmp_path), page=str(tmp_path / "report-data-dev-csv.html"))
    assert f"Report   {tmp_path}/report-data-dev-csv.html" in told("evaluate", found, target="x").splitlines()


def test_runs_fit_a_line_each() -> None:
    run = {**fake.runs()[0], "goal": {"task": "classify", "metric": "auto", "target": 0.9}}
    head, line = told("runs", [run]).splitlines()
    assert "classify, target 0.9" in line
    assert "lora: met" in line
    assert max(len(head), len(line)) <= 110


def test_a_narrow_terminal_shows_fewer_columns_of_runs_and_whole_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    run = {**fake.runs()[0], "name": "sentiment-reviews-0a93e4d8", "rungs": ["baseline", "few-shot", "full", "lora"]}
    lines = told("runs", [run, run], terminal=True).splitlines()
    assert len(lines) == 3
    assert "sentiment-reviews-0a93e4d8" in lines[1]
    assert "lora: met" in lines[1]


def test_a_narrow_terminal_breaks_no_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    line = next(line for line in told("climb", fake.report(), terminal=True).splitlines() if "lora against" in line)
    assert line.startswith("lora against zero-shot")
    assert "+0.400" in line
    assert "0.0002" in line
