"""What every file in prompting/ must keep to, on every kind of model and goal it says it fits."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import asking
import pytest
import tiny
import torch

from burnish import artifact as artifacts
from burnish import kinds
from burnish.artifact import Artifact
from burnish.evaluate import predict as predicting
from burnish.prompting._world import World
from burnish.records import Message
from burnish.task import Evaluate

RUNGS = kinds.names("prompting")
FAMILY = {"llama": "decoder", "gpt2": "decoder", "bert": "encoder", "albert": "encoder", "bart": "encoder-decoder"}
FAMILY["t5"] = "encoder-decoder"
MODELS = ("llama", "bert", "t5")
GOALS = {  # name: (goal, shape, rows, metric, keys of the contract)
    "classes": ("classify", "labelled", asking.labelled, "accuracy", {}),
    "several": (
        "classify",
        "labelled",
        lambda n, seed=0: asking.labelled(n, [("bad",), ("fair", "good"), ("good",)], seed),
        "f1-micro",
        {"multi": True},
    ),
    "numbers": ("regress", "labelled", lambda n, seed=0: asking.labelled(n, [1.0, 2.5], seed), "rmse", {}),
    "answers": ("answer", "prompt", asking.spoken, "rouge-l", {"instruction": ""}),
    "choices": ("choose", "choices", asking.questions, "accuracy", {}),
    "chat": ("chat", "conversation", asking.spoken, "perplexity", {}),
    "documents": ("write", "document", lambda n, seed=0: asking.documents(n, seed, 20), "bits-per-byte", {}),
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("BURNISH_HOME", str(tmp_path / "home"))


def fits(rung, kind, name):
    goal, shape = GOALS[name][:2]
    return not kinds.load("prompting", rung).unfit(FAMILY[kind], goal, shape)


CASES = [case for case in itertools.product(RUNGS, MODELS, GOALS) if fits(*case)]
SLOWER = [case for case in CASES if case[1] == "t5" and case[0] != "zero-shot"]
MARKED = [pytest.param(*case, marks=[pytest.mark.slow] if case in SLOWER else []) for case in CASES]


def world(rung, kind, name, tmp_path_factory, seed=0, train=10, settings=None, **own):
    goal, shape, rows, metric, keys = GOALS[name]
    ready = asking.answerer(kind, tmp_path_factory, goal, shape, most=4, **{**keys, **own})
    told = {item.name: item.default for item in kinds.settings("prompting", rung)}
    if rung == "few-shot":
        told |= {"shots": [1, 2], "orders": 1, "choose": ["balanced", "nearest"], "formats": ["turns"], "budget": 30}
    if rung == "retrieval":
        folder = tmp_path_factory.getbasetemp() / "told"
        folder.mkdir(exist_ok=True)
        for i, row in enumerate(asking.documents(3, 9, 30)):
            (folder / f"{i}.txt").write_text(row.text)
        told |= {"documents": [str(folder)], "chunk": [10], "k": [1, 2, 3, 4], "budget": 20}
    return World(ready, rows(train, seed=1), rows(4, seed=2), metric, told | (settings or {}), seed), rows(4, seed=3)


def chosen(rung, made):
    return kinds.load("prompting", rung).choose(made)


def answers(rung, ready, made, rows):
    return list(kinds.load("prompting", rung).answer(ready, made.recipe, made.tensors, rows))


@pytest.mark.parametrize("rung", RUNGS)
class TestEveryRung:
    def test_says_what_it_costs_and_why_it_does_not_fit(self, rung):
        module = kinds.load("prompting", rung)
        assert module.__doc__
        assert isinstance(module.COST, int)
        assert all(module.COST < kinds.load("adapters", name).COST for name in kinds.names("adapters"))
        for kind, (goal, shape, *_) in itertools.product(set(FAMILY.values()), GOALS.values()):
            reason = module.unfit(kind, goal, shape)
            assert isinstance(reason, str)
            assert "\n" not in reason
        assert any(case[0] == rung for case in CASES)

    def test_costs_what_no_other_costs(self, rung):
        assert [kinds.load("prompting", name).COST for name in RUNGS].count(kinds.load("prompting", rung).COST) == 1


@pytest.mark.parametrize(("rung", "kind", "name"), MARKED)
class TestEveryFit:
    def test_one_answer_a_row_in_order_and_the_artifact_gives_them_again(
        self, rung, kind, name, tmp_path, tmp_path_factory
    ):
        before, rows = world(rung, kind, name, tmp_path_factory)
        made = chosen(rung, before)
        told = answers(rung, before.answerer, made, rows)
        assert [row.id for row in told] == [row.id for row in rows]
        assert [row.where for row in told] == [str(row.where) for row in rows]
        assert json.loads(json.dumps(made.recipe)) == made.recipe
        json.dumps(made.shown)
        found = before.answerer.model.base
        saved = Artifact(rung, found, before.answerer.contract, "", made.recipe, made.shown, None, made.tensors)
        artifacts.save(saved, None, tmp_path / "artifact")
        loaded = artifacts.load(tmp_path / "artifact")
        again = list(predicting.predict(loaded, rows, Evaluate(max_new_tokens=4)))
        assert asking.same(again, told)

    def test_is_decided_by_the_seed_and_asks_for_no_luck(self, rung, kind, name, tmp_path_factory):
        one, two = (world(rung, kind, name, tmp_path_factory, seed=7)[0] for _ in range(2))
        torch.manual_seed(1)
        first = chosen(rung, one)
        torch.manual_seed(2)
        second = chosen(rung, two)
        assert first.recipe == second.recipe
        assert all(torch.equal(first.tensors[key], second.tensors[key]) for key in first.tensors)

    def test_an_answer_depends_on_its_row_alone_and_not_on_the_right_answer(self, rung, kind, name, tmp_path_factory):
        before, rows = world(rung, kind, name, tmp_path_factory)
        made = chosen(rung, before)
        told = answers(rung, before.answerer, made, rows)
        apart = [answers(rung, before.answerer, made, [row])[0] for row in rows[::-1]][::-1]
        assert asking.same(apart, told)
        if name != "documents":
            asked = [replace(row, label=None, messages=row.prompt) for row in rows]
            assert asking.same(answers(rung, before.answerer, made, asked), told, nll=False)

    def test_without_validation_rows_it_still_chooses(self, rung, kind, name, tmp_path_factory):
        before, rows = world(rung, kind, name, tmp_path_factory)
        made = chosen(rung, replace(before, validation=[]))
        assert len(answers(rung, before.answerer, made, rows)) == len(rows)

    def test_a_row_that_is_far_too_long_keeps_its_place(self, rung, kind, name, tmp_path_factory):
        before, rows = world(rung, kind, name, tmp_path_factory)
        made = chosen(rung, before)
        far = "snow " * 200
        turns = (Message("user", far), *rows[1].messages[1:]) if rows[1].messages else ()
        long = replace(rows[1], text="" if turns else far, messages=turns)
        told = answers(rung, before.answerer, made, [rows[0], long, *rows[2:]])
        assert asking.same([told[0], *told[2:]], answers(rung, before.answerer, made, [rows[0], *rows[2:]]))
        assert told[1].id == long.id
        assert told[1].problem in ("", "no number in the answer")


OTHER = {  # another value of every setting, with others that it needs
    "few-shot": {
        "shots": [3],
        "choose": ["nearest"],
        "formats": ["text"],
        "words": {"bad": "awful"},
        "orders": 2,
        "order": {"order": "entropy", "orders": 4, "shots": [3], "choose": ["balanced"], "budget": 200},
        "calibrate": "always",
        "encoder": "base",
        "budget": 300,
    },
    "retrieval": {
        "documents": [str(Path(__file__).parents[2] / "README.md")],
        "k": [2],
        "chunk": [20],
        "encoder": "base",
        "budget": 10,
    },
}


@pytest.mark.parametrize("rung", [rung for rung in RUNGS if kinds.settings("prompting", rung)])
def test_every_setting_changes_something(rung, tmp_path_factory):
    """Each key in turn: another value, another choice or another search."""
    other: dict[str, Any] = OTHER[rung]
    assert other.keys() == {item.name for item in kinds.settings("prompting", rung)}
    usual = chosen(rung, world(rung, "llama", "classes", tmp_path_factory)[0])
    for key, value in other.items():
        own = value if isinstance(value, dict) and key in value else {key: value}
        made = chosen(rung, world(rung, "llama", "classes", tmp_path_factory, settings=own)[0])
        assert (made.recipe, made.shown) != (usual.recipe, usual.shown), key


@pytest.mark.parametrize("rung", ["linear-probe", "nearest-neighbour"])
@pytest.mark.parametrize("kind", ["bert", "llama", "bart"])
def test_two_texts_that_cannot_be_read_together_are_a_problem_of_their_row(rung, kind, tmp_path_factory):
    before, rows = world(rung, kind, "classes", tmp_path_factory)
    made = chosen(rung, before)
    bad = replace(rows[1], text="a" * 90, pair="b" * 90)
    told = answers(rung, before.answerer, made, [rows[0], bad, *rows[2:]])
    assert [bool(row.problem) for row in told] == [False, True, False, False]
    assert asking.same([told[0], *told[2:]], answers(rung, before.answerer, made, [rows[0], *rows[2:]]))
    assert answers(rung, before.answerer, made, [bad])[0].problem


def test_the_folder_is_what_the_readers_of_it_think():
    assert {Path(kinds.source("prompting", rung)).parent.name for rung in RUNGS} == {"prompting"}
    assert set(FAMILY) == set(tiny.KINDS)
