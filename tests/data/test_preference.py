"""Ranked answers as other tools write them become one form, and rows that prefer nothing are named."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from burnish.data import prepare as data
from burnish.data.guess import choose
from burnish.data.look import look
from burnish.data.questions import questions
from burnish.data.rows import Row, ShapeProblem
from burnish.data.shapes import preference
from burnish.data.validate import BadRows
from burnish.records import Example, Message, Where
from burnish.taskfile import parse

HERE = Where("pairs.jsonl", 3)
WHOLE = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: What is a heron?\n\nAssistant: "
TURNS = [{"role": "user", "content": "What is a heron?"}]
BIRD, FISH = "A bird.", "A fish."
FORMS: dict[str, dict[str, Any]] = {
    "plain": {"prompt": "What is a heron?", "chosen": BIRD, "rejected": FISH},
    "turns": {
        "prompt": TURNS,
        "chosen": [{"role": "assistant", "content": BIRD}],
        "rejected": [{"role": "assistant", "content": FISH}],
    },
    "whole conversations": {
        "chosen": [*TURNS, {"role": "assistant", "content": BIRD}],
        "rejected": [*TURNS, {"role": "assistant", "content": FISH}],
    },
    "whole beside a prompt": {
        "prompt": "What is a heron?",
        "chosen": [*TURNS, {"role": "assistant", "content": BIRD}],
        "rejected": [*TURNS, {"role": "assistant", "content": FISH}],
        "score_chosen": 8.0,
    },
    "llama-factory": {
        "conversations": [{"from": "human", "value": "What is a heron?"}],
        "chosen": {"from": "gpt", "value": BIRD},
        "rejected": {"from": "gpt", "value": FISH},
    },
    "alpaca": {"instruction": "What is a heron?", "input": "", "output": BIRD, "chosen": BIRD, "rejected": FISH},
    "openai": {
        "input": {"messages": TURNS},
        "preferred_output": [{"role": "assistant", "content": BIRD}],
        "non_preferred_output": [{"role": "assistant", "content": FISH}],
    },
    "conversations called messages": {
        "chosen_messages": [*TURNS, {"role": "assistant", "content": BIRD}],
        "rejected_messages": [*TURNS, {"role": "assistant", "content": FISH}],
    },
    "open transcript": {"prompt": "\n\nHuman: What is a heron?\n\nAssistant:", "chosen": BIRD, "rejected": FISH},
}


def read(row: dict[str, Any]) -> Example:
    choice = choose([Row(row, HERE)])
    assert choice.shape == "preference"
    return preference.to_example(row, choice.columns, HERE)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_one_row(form: str) -> None:
    example = read(FORMS[form])
    assert example.messages == (Message("user", "What is a heron?"), Message("assistant", BIRD))
    assert example.choices == (BIRD, FISH)
    assert Example.from_json(json.loads(json.dumps(example.to_json()))) == example


def test_a_transcript_becomes_turns_of_which_only_the_last_is_learned() -> None:
    example = read({"chosen": WHOLE + BIRD, "rejected": WHOLE + FISH})
    assert [(turn.role, turn.content, turn.weight) for turn in example.messages] == [
        ("user", "Hi", 1.0),
        ("assistant", "Hello.", 0.0),
        ("user", "What is a heron?", 1.0),
        ("assistant", BIRD, 1.0),
    ]


def test_an_input_and_a_system_turn_belong_to_the_prompt() -> None:
    row = {
        "instruction": "Translate.",
        "input": "Reiher",
        "system": "Be brief.",
        "chosen": "heron",
        "rejected": "egret",
    }
    assert read(row).messages[:2] == (Message("system", "Be brief."), Message("user", "Translate.\nReiher"))


def test_which_answer_is_better_makes_another_row() -> None:
    row = FORMS["plain"]
    assert read(row).id != read({**row, "chosen": FISH, "rejected": BIRD}).id


BAD = {
    "the same": ({"prompt": "a", "chosen": "b", "rejected": "b "}, "rejected", "is the same as chosen"),
    "no rejected": ({"prompt": "a", "chosen": "b", "rejected": None}, "rejected", "is empty"),
    "no prompt": ({"chosen": "b", "rejected": "c"}, "chosen", "has no prompt"),
    "empty prompt": ({"prompt": " ", "chosen": "b", "rejected": "c"}, "prompt", "is empty"),
    "parted early": (
        {"chosen": WHOLE + BIRD, "rejected": WHOLE.replace("heron", "carp") + FISH},
        "rejected",
        "parts from the chosen conversation at turn 3",
    ),
    "other lengths": (
        {"chosen": WHOLE + BIRD, "rejected": "\n\nHuman: Hi\n\nAssistant: No."},
        "rejected",
        "parts from the chosen conversation at turn 2",
    ),
    "ends with a question": (
        {"chosen": WHOLE + BIRD, "rejected": WHOLE + FISH + "\n\nHuman: Really?"},
        "rejected",
        "ends with a user turn",
    ),
    "empty turn": ({"chosen": WHOLE + BIRD, "rejected": WHOLE}, "rejected", "turn 4 is empty"),
    "a number of answers": ({"prompt": "a", "chosen": ["b"], "rejected": "c"}, "chosen[0]", "is text, not an object"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_row_that_prefers_nothing_is_named(case: str) -> None:
    row, field, what = BAD[case]
    columns = {name: name for name in row}
    with pytest.raises(ShapeProblem, match=what) as caught:
        preference.to_example(row, columns, HERE)
    assert caught.value.field == field
    assert caught.value.do


def test_bad_rows_are_listed_with_their_lines(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {i}?", "chosen": f"yes {i}", "rejected": "no"} for i in range(30)]
    rows[6]["rejected"] = rows[6]["chosen"]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = parse("goal: {task: prefer}\ndata: {files: [pairs.jsonl]}", path=str(tmp_path / "task.yaml"))
    with pytest.raises(BadRows, match=r"pairs.jsonl:7 rejected: is the same as chosen, remove the row"):
        data.prepare(task, tmp_path / "out")
    assert look(tmp_path / "pairs.jsonl").task == "prefer"


def test_prompts_are_asked_without_answers(tmp_path: Path) -> None:
    (tmp_path / "ask.jsonl").write_text(json.dumps({"prompt": "What is a heron?"}) + "\n")
    columns = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
    (asked,) = questions(str(tmp_path / "ask.jsonl"), "preference", columns)
    assert asked.example is not None
    assert asked.example.messages == (Message("user", "What is a heron?"),)
    assert asked.example.choices == ()


@pytest.mark.real
@pytest.mark.skipif("BURNISH_SHARED" not in os.environ, reason="BURNISH_SHARED names no folder of real data")
@pytest.mark.parametrize(
    ("name", "rows", "bad"),
    [
        ("preference-dpo-mix/dpo_en.json", 180, 0),
        ("preference-hh-harmless/data.jsonl", 599, 1),  # one answer is empty
        ("preference-rasbt/instruction-data-with-preference.json", 815, 4),
    ],
)
def test_real_pairs(name: str, rows: int, bad: int) -> None:
    guess = look(Path(os.environ["BURNISH_SHARED"]) / "data" / name)
    assert (guess.shape, guess.task) == ("preference", "prefer")
    assert (guess.rows, guess.problems) == (rows, bad)
