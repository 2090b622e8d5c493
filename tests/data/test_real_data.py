"""Real files load by guess, with the shape, goal and counts that a person would give them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from made_data import task

from burnish.data.prepare import examples, look, prepare

SHARED = os.environ.get("BURNISH_SHARED", "")
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not Path(SHARED, "data").is_dir(), reason="BURNISH_SHARED does not name a folder with data/"),
]
FILES = [
    # name, shape, task, rows, classes, rows that are problems
    ("instruct-rasbt", "instruction", "answer", 800, 0, 0),
    ("instruct-identity", "instruction", "answer", 91, 0, 0),
    ("instruct-self-instruct", "instruction", "answer", 175, 0, 0),
    ("instruct-messages/v1_sft_demo.jsonl", "conversation", "answer", 50, 0, 0),
    ("chat-toolcall", "conversation", "chat", 180, 0, 0),
    ("instruct-dolly-hhrlhf", "prompt", "answer", 650, 0, 0),
    ("extract-to-json", "prompt", "answer", 500, 0, 0),
    ("story-children", "prompt", "answer", 500, 0, 0),
    ("g2p-pronunciation/us-train.jsonl", "prompt", "answer", 4000, 0, 0),
    ("intent-banking77/train.csv", "labelled", "classify", 10003, 77, 0),
    ("sentiment-sst2/train.txt", "labelled", "classify", 6920, 2, 0),
    ("sentiment-sst5/dev.txt", "labelled", "classify", 1101, 5, 0),
    ("sentiment-movie-reviews", "labelled", "classify", 500, 2, 0),
    ("topic-trec", "labelled", "classify", 5452, 50, 2),
    ("toxicity-tweets", "labelled", "classify", 2000, 3, 0),
    ("chem-tox21", "labelled", "classify", 400, 12, 0),
    ("chem-solubility", "labelled", "regress", 400, 0, 0),
    ("regression-stsb/en-train.csv", "labelled", "regress", 5749, 0, 0),
    ("bench-arc-easy", "choices", "choose", 600, 4, 0),
    ("bench-arc-challenge", "choices", "choose", 600, 4, 0),
    ("bench-hellaswag", "choices", "choose", 500, 4, 0),
    ("bench-piqa", "choices", "choose", 800, 2, 0),
    ("bench-openbookqa", "choices", "choose", 200, 4, 0),
    ("bench-winogrande", "choices", "choose", 550, 2, 0),
    ("bench-truthfulqa-mc", "choices", "choose", 400, 11, 0),
    ("bias-bbq", "choices", "choose", 1600, 3, 0),
    ("story-grimm-de", "document", "write", 96, 0, 0),
    ("text-books", "document", "write", 3, 0, 0),
]


@pytest.mark.parametrize(("name", "shape", "goal", "rows", "classes", "bad"), FILES)
def test_real_files(tmp_path, name, shape, goal, rows, classes, bad):
    path = Path(SHARED, "data", name)
    guess = look(path)
    assert (guess.shape, guess.task, guess.rows, len(guess.labels)) == (shape, goal, rows, classes)
    done = prepare(task(tmp_path, [str(path)], goal, on_problem="drop"), tmp_path / "out")
    counts = done.card["rows"]
    assert counts["read"] == rows == counts["kept"] + sum(counts["dropped"].values())
    assert done.card["problems"] == bad
    assert sum(len(examples(tmp_path / "out", side)) for side in ("train", "validation", "test")) == counts["kept"]


def test_the_two_levels_of_a_topic_can_be_chosen(tmp_path):
    columns = {"text": "text", "label": "coarse"}
    done = prepare(task(tmp_path, [str(Path(SHARED, "data/topic-trec"))], columns=columns), tmp_path / "out")
    assert done.labels == ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
