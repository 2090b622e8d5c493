"""Rows to be answered: the training columns without the answer, nothing dropped, nothing joined."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from burnish.data.questions import questions
from burnish.errors import DataError

COLUMNS = {"text": "review", "label": "stars"}


def csv(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_answers_column_may_be_absent_and_every_row_stays_in_its_place(tmp_path: Path) -> None:
    found = list(questions(csv(tmp_path / "a.csv", "id,review\n1,good\n2,\n3,good\n"), "labelled", COLUMNS))
    assert [row.values["id"] for row in found] == ["1", "2", "3"]
    assert found[0].example is not None
    assert found[0].example.text == found[2].example.text == "good"  # type: ignore[union-attr]
    assert found[1].example is None
    assert found[1].problem is not None
    assert (found[1].problem.what, found[1].problem.where) == ("review: is empty", f"{tmp_path}/a.csv:3")


def test_a_broken_row_keeps_its_place(tmp_path: Path) -> None:
    path = csv(tmp_path / "a.jsonl", '{"review": "good"}\n{"review": \n{"review": "bad"}\n')
    assert [row.example is None for row in questions(path, "labelled", COLUMNS)] == [False, True, False]


def test_other_columns_are_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="The columns review") as caught:
        list(questions(csv(tmp_path / "a.csv", "words,id\ngood,1\n"), "labelled", COLUMNS))
    assert "this file has: words, id" in caught.value.do


def test_a_file_that_is_not_there_says_nothing_of_task_files(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        list(questions(str(tmp_path / "a.csv"), "labelled", COLUMNS))
    assert caught.value.do == "check the name"


def test_bare_lines_are_questions_and_labelled_lines_lose_their_label(tmp_path: Path) -> None:
    columns = {"text": "text", "label": "label"}
    bare = csv(tmp_path / "bare.txt", "The soup was hot\nThe soup was cold\nA fly\nThe end\nA cup\n")
    found = list(questions(bare, "labelled", columns, ("0", "1")))
    assert [row.example.text for row in found if row.example] == Path(bare).read_text().splitlines()
    marked = csv(tmp_path / "marked.txt", "0 The soup was hot\n1 The soup was cold\n0 A fly\n0 End\n")
    found = list(questions(marked, "labelled", columns, ("0", "1")))
    assert [row.example.text for row in found if row.example] == [
        "The soup was hot",
        "The soup was cold",
        "A fly",
        "End",
    ]


def test_a_line_is_a_prompt(tmp_path: Path) -> None:
    path = csv(tmp_path / "a.txt", "abashment\nabele\n")
    found = list(questions(path, "prompt", {"prompt": "word", "completion": "phonemes"}))
    assert [row.example.messages[0].content for row in found if row.example] == ["abashment", "abele"]
    assert all(len(row.example.messages) == 1 for row in found if row.example)


def test_a_conversation_may_end_with_its_question_or_with_its_answer(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    path = csv(tmp_path / "a.jsonl", "".join(json.dumps({"messages": turns[:n]}) + "\n" for n in (1, 2)))
    found = list(questions(path, "conversation", {"messages": "messages"}))
    assert [[turn.content for turn in row.example.messages] for row in found if row.example] == [["Hi"], ["Hi"]]
