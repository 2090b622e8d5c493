"""A plan and its run: the figures that were told come true, and a run that does not fit is warned of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny

import burnish
from burnish.cli import main
from burnish.train import estimate, memory, tune
from burnish.train.terms import Machine, Work


def task_file(folder: Path, base: Path, method: str, **train: Any) -> str:
    """A task on rows of differing lengths."""
    words = ["amber", "brook", "cedar", "delta", "ember", "frost", "grove", "heron", "ivory", "onyx", "pearl"]
    told = []
    for number in range(40):
        text = " ".join(words[(number * step) % 11] for step in range(1, 3 + number % 9))
        label = ("good", "bad")[number % 2]
        told.append({"text": f"{text} {number}"} | ({"label": label} if method == "classify" else {}))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    goal = {"classify": "classify", "selfsupervised": "write"}[method]
    values = {
        "goal": {"task": goal},
        "data": {"files": ["rows.jsonl"], "near_duplicates": 0, "on_problem": "drop"},
        "base": {"name": str(base)},
        "method": {"kind": method},
        "train": {"epochs": 1.5, "batch_size": 4, "precision": "fp32", **train},
    }
    path = folder / "task.yaml"
    path.write_text(json.dumps(values))  # JSON is YAML
    return str(path)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BURNISH_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "method"), [("llama", "classify"), ("bert", "selfsupervised"), ("t5", "selfsupervised")]
)
def test_a_plan_tells_the_tokens_steps_and_parameters_of_the_run(
    kind: str, method: str, home: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = task_file(home, tiny.folder(kind, tmp_path_factory), method)
    planned = burnish.plan(path, rung="lora")["rungs"]["lora"]
    events: list[Any] = []
    burnish.train(path, rung="lora", say=lambda _, event: events.append(event))
    first, last = events[0], events[-1]
    assert first.kind == "started"
    needs = first.numbers["needs"]
    for name in ("parameters", "trained", "tokens", "steps"):
        assert planned[name] == needs[name]
        assert planned[name]["low"] == planned[name]["high"]
    assert planned["tokens"]["value"] == last.numbers["tokens"]
    assert planned["rows"] == first.numbers["tokens"]
    assert planned["steps"]["value"] == last.step == first.numbers["steps"]
    assert planned["parameters"]["value"] == first.numbers["parameters"]
    assert planned["trained"]["value"] == first.numbers["trained"]
    assert (planned["micro_tokens"], planned["recompute"]) == (needs["micro_tokens"], needs["recompute"])


def test_a_plan_that_does_not_fit_exits_with_1_and_says_what_would(
    home: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from burnish import workflow

    path = task_file(home, tiny.folder("llama", tmp_path_factory), "classify")
    assert main.run(["plan", path, "--rung", "full"], workflow) == 0
    monkeypatch.setattr(memory, "free", lambda: -(1 << 40))
    assert main.run(["plan", path, "--rung", "full", "--json"], workflow) == 1
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["rungs"]["full"]["verdict"] == "does not fit"


def test_a_run_that_does_not_fit_is_warned_of_and_one_that_is_begun_is_cut_as_it_was(
    home: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = task_file(home, tiny.folder("llama", tmp_path_factory), "classify", max_steps=4, save_every=1)
    told = estimate.estimate
    cuts: list[int] = []

    def scarce(run: Work, machine: Machine, *others: Any) -> Any:
        made = replace(told(run, machine, *others), verdict="does not fit", micro_tokens=64 + 64 * len(cuts))
        cuts.append(made.micro_tokens)
        return made

    monkeypatch.setattr(estimate, "estimate", scarce)
    events: list[Any] = []

    def stop(_: str, event: Any) -> None:
        events.append(event)
        if event.kind == "saved":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        burnish.train(path, rung="lora", say=stop)
    assert any("does not fit" in str(event.numbers.get("text")) for event in events)
    first = cuts[-1]
    seen: list[int] = []
    made = tune.Run

    def noting(*given: Any, **named: Any) -> Any:
        seen.append(given[5].micro_tokens)
        return made(*given, **named)

    monkeypatch.setattr(tune, "Run", noting)
    burnish.train(path, rung="lora")
    assert cuts[-1] != first
    assert seen == [first]
