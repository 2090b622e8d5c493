"""The command line's contract: what words mean, what goes to which stream, and the exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_workflow as fake
import pytest

from burnish import __version__, store
from burnish.cli import main
from burnish.errors import CheckpointError, DataError, Interrupted

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _not_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_stop", False)


def run(*words: str, verbs: Any = None) -> int:
    return main.run(words, verbs or fake.verbs())


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["init", "reviews.csv"], 0),
        (["check", "task.yaml"], 1),
        (["check", "task.yaml", "--set", "data.on_problem=drop"], 0),
        (["plan"], 0),
        (["plan", "task.yaml"], 0),
        (["plan", "task.yaml", "--rung", "full"], 1),
        (["climb", "task.yaml"], 0),
        (["climb", "task.yaml", "--set", "train.epochs=1", "--set", "goal.target=1"], 1),
        (["train", "task.yaml", "--rung", "lora"], 0),
        (["train", "task.yaml", "--rung", "retrieval"], 1),
        (["launch", "task.yaml", "--rung", "lora", "--slurm", "--nodes", "2"], 0),
        (["launch", "task.yaml", "--rung", "lora", "--out", "job.sh"], 0),
        (["evaluate", "reviews"], 0),
        (["predict", "reviews", "new.csv", "--out", "a.jsonl"], 0),
        (["runs"], 0),
        (["demo", "--fast"], 0),
        ([], 0),
        (["--help"], 0),
        (["--version"], 0),
        (["climb", "--help"], 0),
        (["climb"], 2),
        (["clmb"], 2),
        (["train", "task.yaml"], 2),
        (["check", "task.yaml", "--show", "many"], 2),
        (["check", "task.yaml", "--sett", "a=1"], 2),
    ],
)
def test_exit_codes(words: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == code
    told = capsys.readouterr()
    if code == 2:
        assert not told.out
        assert [line[:9] for line in told.err.splitlines()[1:]] == ["  where  ", "  do     "]
    else:
        assert told.out


@pytest.mark.parametrize(
    ("problem", "code", "words"),
    [
        (DataError("A row has no text", "a.csv:3", "fill it in"), 2, "a.csv:3"),
        (CheckpointError("The disk is full", "x", "free some space"), 3, "disk is full"),
        (Interrupted("Stopped after step 3", "x", "burnish climb t.yaml"), 130, "Stopped after step 3"),
        (KeyboardInterrupt(), 130, "at once"),
        (PermissionError(13, "Permission denied", "/root/x"), 2, "  where  /root/x"),
        (MemoryError(), 3, "Out of memory"),
        (ZeroDivisionError("division by zero"), 3, "This is a defect in Burnish: ZeroDivisionError: division by zero"),
    ],
)
def test_problems_are_three_lines_and_a_code(
    problem: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("climb", "t.yaml", verbs=fake.raising(problem)) == code
    told = capsys.readouterr()
    assert words in told.err
    assert "Traceback" not in told.err
    assert not told.out

    assert run("climb", "t.yaml", "--json", verbs=fake.raising(problem)) == code
    told = capsys.readouterr()
    error = json.loads(told.out)["error"]
    assert error["exit_code"] == code
    assert {"stage", "what", "where", "do"} <= set(error)
    assert words in told.err

    assert run("climb", "t.yaml", "--debug", verbs=fake.raising(problem)) == code
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["init", "reviews.csv"],
        ["check", "t.yaml", "--show", "2"],
        ["climb", "t.yaml"],
        ["train", "t.yaml", "--rung", "lora"],
        ["evaluate", "reviews"],
        ["predict", "reviews", "new.csv", "--out", "a.jsonl"],
        ["runs"],
        ["demo"],
        ["climb"],
        ["nothing"],
    ],
)
def test_json_is_one_object_alone_on_stdout(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run(*words, "--json")
    told = capsys.readouterr()
    assert isinstance(json.loads(told.out), dict)
    assert told.out.isascii()
    assert told.err


def test_json_holds_what_the_verb_returned(capsys: pytest.CaptureFixture[str]) -> None:
    run("climb", "t.yaml", "--json")
    told = capsys.readouterr()
    expected = {**fake.report().to_json(), "verdict": {**fake.report().verdict.to_json(), "sentence": fake.HOSTILE}}
    assert json.loads(told.out) == json.loads(json.dumps(expected))
    assert "a library prints" in told.err
    assert "training" not in told.err  # progress goes nowhere


def test_numbers_that_json_has_no_word_for_become_null() -> None:
    assert main._plain({"a": [float("nan"), float("inf"), 1.5], "b": Path("x")}) == {"a": [None, None, 1.5], "b": "x"}


def test_options_reach_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    seen: dict[str, Any] = {}

    def init(data: str, *, out: str = "task.yaml", base: str = "burnish-tiny", force: bool = False) -> Any:
        seen.update(locals())
        return fake.init(data, out=out)

    assert run("init", "a b.csv", "--out", "x.yaml", "--force", verbs=fake.verbs(init=init)) == 0
    assert {name: seen[name] for name in ("data", "out", "base", "force")} == {
        "data": "a b.csv",
        "out": "x.yaml",
        "base": "burnish-tiny",
        "force": True,
    }


@pytest.mark.parametrize("words", [["climb", "t.yaml"], ["demo"], ["check", "t.yaml"], ["runs"], ["init", "x.csv"]])
def test_text_of_strangers_cannot_steer_a_terminal(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run(*words)
    told = capsys.readouterr()
    for stream in (told.out, told.err):
        assert not set(stream) & set("\x1b\x07\x9b\u202e\r")
        if "not markup" in stream:
            assert "[bold]not markup[/bold]" in stream
            assert ":smile:" in stream


def test_a_log_gets_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    run("climb", "t.yaml")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2  # 40 steps within a second: the first, and the warning
    assert lines[0].startswith("lora  training  1/40")
    assert "warning" in lines[1]


def test_the_first_signal_saves_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    assert run("climb", "t.yaml", verbs=fake.stopping()) == 130
    assert "burnish climb t.yaml" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


def test_the_second_signal_ends_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    store.request_stop()
    assert run("climb", "t.yaml", verbs=fake.stopping()) == 130
    assert "at once" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_problem() -> None:
    code = "import sys, fake_workflow as w; from burnish.cli import main; sys.exit(main.run(['runs'], w.verbs()))"
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, cwd=HERE)
    finally:
        os.close(write)
    assert done.returncode == 0
    assert not done.stderr


def test_completion_offers_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BURNISH_HOME", str(tmp_path))
    assert main.run_names("") == []
    for name in ("reviews", "tales"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    assert main.run_names("re") == ["reviews"]


def test_every_option_of_the_real_verbs_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    from burnish import VERBS, workflow

    main.parse(["--help"], workflow)
    shown = capsys.readouterr().out
    for verb in VERBS:
        assert f"\n  {verb} " in shown
        assert main.parse([verb, "--help"], workflow) == 0
    assert "..." not in shown.partition("Commands:")[2]  # every summary fits 80 columns


def test_python_runs_the_package_as_the_command() -> None:
    words = [sys.executable, "-m", "burnish", "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == f"burnish {__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['burnish', '--help']\n"
        "from burnish.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: print(' '.join(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "climb" in done.stdout
    assert not {"torch", "transformers", "tokenizers", "numpy", "rich"} & set(done.stderr.split())
