"""The floor: what is said without looking."""

import asking
import pytest

from burnish.prompting import baseline
from burnish.prompting._world import World
from burnish.records import Example, Message, Where


def said(tmp_path_factory, labels, goal="classify", **own):
    ready = asking.answerer("bert", tmp_path_factory, goal, **own)
    train = [Example("labelled", Where("f", i), text=f"t{i}", label=label) for i, label in enumerate(labels)]
    made = baseline.choose(World(ready, train, [], "accuracy", {}))
    return next(baseline.answer(ready, made.recipe, {}, train[:1]))


def test_the_most_frequent_class(tmp_path_factory):
    assert said(tmp_path_factory, ["good", "bad", "good"]).label == "good"


def test_every_class_that_more_than_half_of_the_rows_have(tmp_path_factory):
    rows = [("good", "bad"), ("good",), ("fair",), ("good", "bad")]
    assert said(tmp_path_factory, rows, multi=True).label == ("good",)
    assert said(tmp_path_factory, [("good",), ("bad",)], multi=True).label == ()


def test_the_most_frequent_place_or_the_longest_choice(tmp_path_factory):
    ready = asking.answerer("llama", tmp_path_factory, "choose", "choices")

    def said(*rows):
        told = [Example("choices", Where("q", i), label=label, choices=own) for i, (label, own) in enumerate(rows)]
        made = baseline.choose(World(ready, told, [], "accuracy", {}))
        asked = Example("choices", Where("q", 9), choices=("long one", "b"))
        return made.recipe["always"], next(baseline.answer(ready, made.recipe, {}, [asked])).label

    assert said(("B", ("aaa", "b")), ("B", ("aaa", "c")), ("A", ("aaa", "c"))) == ("B", "B")
    assert said(("A", ("aaa", "b")), ("B", ("a", "bbb")), ("C", ("a", "b", "ccc"))) == ("longest", "A")
    assert said(("C", ("aa", "b", "c")), ("C", ("a", "bb", "d"))) == ("C", "B")  # the last where there is no third


def test_the_most_frequent_answer(tmp_path_factory):
    """Where a third of the rows say the same, a tuned model that only says that has learned nothing."""
    ready = asking.answerer("llama", tmp_path_factory, "answer", "prompt")
    told = [Message("assistant", text) for text in ("{}", "one", "{}", "two")]
    rows = [Example("prompt", Where("q", i), (Message("user", f"q{i}"), turn)) for i, turn in enumerate(told)]
    made = baseline.choose(World(ready, rows, [], "exact-match", {}))
    assert made.recipe == {"always": "{}"}
    assert [item.text for item in baseline.answer(ready, made.recipe, {}, rows[:2])] == ["{}", "{}"]
    assert baseline.unfit("decoder", "answer", "prompt") == ""
    assert baseline.unfit("decoder", "write", "document")


def test_the_mean(tmp_path_factory):
    assert said(tmp_path_factory, [1.0, 2.0, 6.0], "regress").number == pytest.approx(3.0)
