"""From rows with a chosen and a rejected answer to a verdict: DPO is run like any other method."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import words, write

from burnish import artifact as artifacts
from burnish import store, workflow
from burnish.errors import TaskError
from burnish.evaluate import predict as predicting
from burnish.methods import _losses
from burnish.records import Prediction
from burnish.task import Evaluate
from burnish.tokens.batch import join
from burnish.tokens.encode import encode_all


def pairs(many: int = 60) -> list[dict[str, Any]]:
    """The better answer is in capitals and a little shorter on the whole."""
    draw = random.Random(0)
    rows = []
    for _ in range(many):
        said = words(draw, 2)
        rows.append({"prompt": words(draw), "chosen": said.upper(), "rejected": said + "abc"[: draw.randrange(-1, 3)]})
    return rows


def predictions(path: str) -> list[Prediction]:
    return [Prediction.from_json(row) for row in store.read_jsonl(Path(path))]


def test_a_whole_climb(desk: Any) -> None:
    write(desk.folder / "pairs.jsonl", pairs())
    task = desk.task(goal="prefer", file="pairs.jsonl", train={"epochs": 6, "batch_size": 4, "learning_rate": 3e-3})
    told = desk.climb(task)
    by_rung = {item.rung: item for item in told.rungs}
    assert [item.skipped for item in told.rungs] == [""] * len(told.rungs)
    assert list(by_rung) == ["baseline", "zero-shot", "few-shot", "lora", "full"]
    assert by_rung["baseline"].settings["always"] == "shortest"
    assert by_rung["full"].settings["method"] == "dpo"
    scores = {rung: {score.metric: score for score in item.scores} for rung, item in by_rung.items()}
    assert set(scores["full"]) == {"preference-accuracy", "preference-accuracy-per-byte"}
    assert scores["full"]["preference-accuracy"].value == 1.0
    assert scores["zero-shot"]["preference-accuracy"].value < 1.0

    ladder_rows = {row.id: row for row in _rows(told.folder, "test")}
    said = predictions(by_rung["full"].predictions)
    assert {item.id for item in said} == set(ladder_rows)
    for item in said:
        assert item.label == "A"
        assert item.loglikelihoods is not None
        assert item.loglikelihoods[0] > item.loglikelihoods[1]

    artifact = artifacts.load(by_rung["full"].artifact)
    rows, problems, _ = encode_all(ladder_rows.values(), artifact.contract.encoding(artifact.tokenizer(), "decoder"))
    assert not problems
    with torch.no_grad():
        batch = join(rows, shared=True)
        wanted = _losses.answers(artifact.model()(batch), batch)[0].numpy()
    kept = {item.id: item.loglikelihoods for item in said}
    assert np.array([kept[row.example] for row in rows]) == pytest.approx(wanted, abs=1e-3)  # judged as it was trained

    answered = list(predicting.predict(artifact, [_open(row) for row in ladder_rows.values()], Evaluate()))
    assert all(item.text is not None and not item.problem for item in answered)  # asked without answers, it writes

    desk.climb(task)
    assert "already made" in " ".join(text for _, text in desk.heard)


def _rows(run: str, split: str) -> list[Any]:
    from burnish.data import prepare

    folder = next(store.home().glob(f"cache/data/*/{split}.jsonl")).parent
    return prepare.examples(folder, split)


def _open(row: Any) -> Any:
    from dataclasses import replace

    return replace(row, messages=row.prompt, choices=())


def test_answers_are_learned_from_the_chosen_ones_alone_where_sft_is_asked_for(desk: Any) -> None:
    write(desk.folder / "pairs.jsonl", pairs())
    task = desk.task(goal="prefer", file="pairs.jsonl", method={"kind": "sft"}, rungs=["zero-shot", "lora"])
    told = desk.climb(task)
    assert told.rungs[-1].settings["method"] == "sft"
    assert told.rungs[-1].scores[0].metric == "preference-accuracy"


@pytest.mark.parametrize(
    ("own", "what"),
    [
        ({"kind": "bert"}, "does not train encoder models"),
        ({"file": "answers.jsonl", "goal": "answer", "method": {"kind": "dpo"}}, "a chosen and a rejected answer"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(desk: Any, own: dict[str, Any], what: str) -> None:
    write(desk.folder / "pairs.jsonl", pairs())
    write(desk.folder / "answers.jsonl", [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs()])
    with pytest.raises(TaskError, match=what):
        desk.climb(desk.task(**{"goal": "prefer", "file": "pairs.jsonl", **own}))


def test_init_writes_a_task_that_runs(desk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write(desk.folder / "pairs.jsonl", pairs())
    monkeypatch.chdir(desk.folder)
    workflow.init("pairs.jsonl")
    assert workflow.check("task.yaml", show=1)["ok"]
    assert "task: prefer" in Path("task.yaml").read_text()
