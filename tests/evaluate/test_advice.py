"""Planted situations: the advice is the right one, and every sentence carries the figure behind it."""

from dataclasses import replace
from typing import get_args

import pytest
from made_reports import classes, failing, few

from burnish.evaluate.advice import Choice, advise, next_steps
from burnish.evaluate.facts import Facts, agreement, conflicts, leaks, novelty, obedience
from burnish.records import Example, Message, Prediction, Where

WELL = Facts(
    "classify",
    {"train": 800, "validation": 100, "test": 200},
    {"good": 400, "bad": 400},
    base=0.62,
    tried=100,
    floor=0.5,
    metric="accuracy",
    target=0.9,
    obeys=0.98,
    in_form=0.62,
    fits={"lora": "fits", "qlora": "fits", "full": "fits"},
    parameters=3_000_000,
)
SITUATIONS = {
    "a normal task": (WELL, "LoRA"),
    "too few rows": (
        replace(WELL, rows={"train": 20, "validation": 3, "test": 6}, labels={"good": 10, "bad": 10}),
        "prompt",
    ),
    "too few rows of one class": (replace(WELL, labels={"good": 797, "bad": 3}), "prompt"),
    "too few rows for an encoder": (
        replace(WELL, rows={"train": 20}, labels={"a": 10, "b": 10}, base=None, obeys=None, prompted=False),
        "more data",
    ),
    "unclear labels": (replace(WELL, agreement=0.6, target=None), "mend the data"),
    "a goal the annotators do not reach": (replace(WELL, agreement=0.85, target=0.95), "mend the data"),
    "contradictory labels": (replace(WELL, conflict=0.08), "mend the data"),
    "leaks between train and test": (replace(WELL, leak=0.05), "mend the data"),
    "changing facts": (replace(WELL, goal="answer", labels={}, changing="weekly"), "retrieval"),
    "missing facts": (replace(WELL, goal="answer", labels={}, knows=0.02, novel=0.8, base=0.1), "retrieval"),
    "an error of form alone": (replace(WELL, obeys=0.4, in_form=0.95, base=0.38), "prompt"),
    "base already at the goal": (replace(WELL, base=0.98), "do not fine-tune"),
    "base already at the ceiling": (replace(WELL, base=1.0, target=None), "do not fine-tune"),
    "base at the goal, but few rows say so": (replace(WELL, base=0.92, tried=12), "LoRA"),
    "memory for QLoRA alone": (
        replace(WELL, fits={"lora": "does not fit", "qlora": "tight", "full": "does not fit"}),
        "QLoRA",
    ),
    "memory for nothing": (
        replace(WELL, fits={"lora": "does not fit", "qlora": "does not fit", "full": "does not fit"}),
        "smaller base",
    ),
    "one class nearly alone": (
        replace(WELL, rows={"train": 2000}, labels={"a": 1950, "b": 50}, base=0.7, target=None),
        "more data",
    ),
    "an error that is small enough": (
        replace(
            WELL, goal="regress", labels={}, metric="rmse", higher=False, best=0.0, base=0.4, target=0.5, obeys=None
        ),
        "do not fine-tune",
    ),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_planted_situations(name):
    facts, first = SITUATIONS[name]
    advice = advise(facts)
    assert advice.first == first, [item.sentence for item in advice.points]
    for item in advice.points:
        assert item.advice in get_args(Choice)
        assert item.because
        assert item.sentence.endswith(".")
    assert "Facts" not in str(advice.to_json())


def test_plenty_of_rows_also_names_full_and_a_base_at_its_floor_a_larger_one():
    found = [item.advice for item in advise(replace(WELL, rows={"train": 9000}, base=0.5)).points]
    assert found == ["LoRA", "full fine-tuning", "larger base"]


def row(text, label, **meta):
    return Example("labelled", Where("a.csv", 2), text=text, label=label, meta=meta)


def test_conflicts_and_leaks_are_counted_on_the_rows():
    rows = [row("Fine film", "good"), row("fine  film", "bad"), row("dull", "bad"), row("so so", "bad")]
    assert conflicts(rows) == 0.5
    assert conflicts(rows[2:]) == 0.0
    assert leaks(rows, [row("DULL", "good"), row("new", "bad")]) == 0.5


def test_agreement_reads_a_second_label():
    rows = [row("a", "good", label_2="good"), row("b", "good", label_2="bad")]
    assert agreement(rows) == 0.5
    assert agreement([row("a", "good")]) is None


def answer(question, text):
    return Example("prompt", Where("a.jsonl", 1), messages=(Message("user", question), Message("assistant", text)))


def test_novelty_tells_facts_from_what_the_question_holds():
    facts = [answer(f"Who runs shop {i}?", f"name{i} surname{i}") for i in range(40)]
    copies = [answer(f"Give me the code in: order code{i} came", f"code{i}") for i in range(40)]
    assert novelty(facts) == 1.0
    assert novelty(copies) == 0.0
    assert novelty([row("a", "good")]) is None


def said(text, finished=True):
    return Prediction("a", "", text=text, finished=finished)


def test_obedience_looks_at_form_not_at_truth():
    assert obedience([said("bad"), said("Good"), said("I think it is good")], ["good", "bad"] * 10) == pytest.approx(
        2 / 3
    )
    assert obedience([said('{"a": 2}'), said("a is 2"), said('{"a": 2')], ['{"a": 1}'] * 9) == pytest.approx(1 / 3)
    assert obedience([said("ok", finished=False)], ["x"]) == 0.0


def test_what_to_do_next_follows_the_verdict():
    met, none, open_ = (next_steps(made()[0]) for made in (classes, failing, few))
    assert met[0].startswith("Use lora: burnish predict ")
    assert none[0].startswith("Do not ship")
    assert open_[0].startswith("Hold out more test rows: 12")
    assert "Twice the data" in met[1]
    assert any("--seeds 3" in item for item in met)
    assert not any("--search" in item for item in met)
    assert any(item.startswith("Not tried: baseline, linear-probe, ") for item in met)
    chosen = replace(classes()[0], goal={"task": "choose", "metric": "accuracy"}, data={"shape": "choices"})
    assert any(
        item.startswith("Not tried: baseline, retrieval, partial, ") for item in next_steps(chosen)
    )  # what can be
    again = next_steps(replace(classes()[0], readings=({}, {})))
    assert "opened 2 times" in again[-1]
