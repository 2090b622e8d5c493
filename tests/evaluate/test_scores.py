"""Scores and comparisons: joined by id, nothing dropped, the right interval and test for each metric."""

import dataclasses

import numpy as np
import pytest

from burnish.errors import BurnishError, DataError
from burnish.evaluate.scores import Scoring, applicable, pick_metric
from burnish.evaluate.statistics import wilson
from burnish.records import Example, Message, Prediction, Where

LABELS = ("bad", "good")


def rows(n):
    return [Example("labelled", Where("rows.csv", i + 2), text=f"t{i}", label=LABELS[i % 2]) for i in range(n)]


def guesses(examples, right):
    """The first `right` rows right, the rest wrong."""
    other = dict(zip(LABELS, LABELS[::-1], strict=True))
    return [
        Prediction(e.id, str(e.where), label=e.label if i < right else other[e.label]) for i, e in enumerate(examples)
    ]


def numbered(n, noise, seed=0):
    random = np.random.default_rng(seed)
    examples = [Example("labelled", Where("f", i), text=f"t{i}", label=float(i % 10)) for i in range(n)]
    return examples, [
        [Prediction(e.id, "f", number=e.label + float(random.normal() * scale)) for e in examples] for scale in noise
    ]


def pair(scoring, a, a_said, b, b_said):
    (found,) = scoring.compare({a: a_said, b: b_said})
    return found


def test_a_proportion_gets_wilson_and_anything_else_the_bootstrap():
    examples = rows(20)
    found = Scoring("accuracy", examples, LABELS, confidence=0.9).score(guesses(examples, 16))
    assert (found.value, found.n, found.method, found.higher, found.confidence) == (0.8, 20, "wilson", True, 0.9)
    assert (found.low, found.high) == pytest.approx(wilson(16, 20, 0.9))
    found = Scoring("f1-macro", examples, LABELS, resamples=200).score(guesses(examples, 16))
    assert found.method == "bootstrap"
    assert found.low < found.value < found.high
    assert found == Scoring("f1-macro", examples, LABELS, resamples=200).score(guesses(examples, 16))


def test_predictions_are_joined_by_id_whatever_their_order():
    examples = rows(9)
    told = guesses(examples, 5)
    assert Scoring("accuracy", examples, LABELS).score(told[::-1]) == Scoring("accuracy", examples, LABELS).score(told)


def test_every_example_needs_exactly_one_prediction():
    examples = rows(4)
    told = guesses(examples, 4)
    with pytest.raises(DataError, match=r"1 of 4 examples have no prediction(.|\n)*rows\.csv:5"):
        Scoring("accuracy", examples, LABELS).score(told[:3])
    with pytest.raises(DataError, match="belong to no example"):
        Scoring("accuracy", examples[:3], LABELS).score(told)
    with pytest.raises(DataError, match="same id"):
        Scoring("accuracy", examples, LABELS).score([*told[:3], told[0]])
    with pytest.raises(DataError, match="same id"):
        Scoring("accuracy", [*examples[:3], examples[0]], LABELS).score(told)
    with pytest.raises(DataError, match="no rows"):
        Scoring("accuracy", [], LABELS).score([])
    with pytest.raises(BurnishError, match="Unknown metric"):
        Scoring("acuracy", examples, LABELS).score(told)


def test_a_perfect_bootstrap_score_is_not_called_certain():
    examples = rows(10)
    found = Scoring("f1-macro", examples, LABELS, resamples=100).score(guesses(examples, 10))
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(wilson(10, 10)[0])


def test_comparison_of_proportions_counts_fixed_and_broken_rows():
    examples = rows(40)
    a, b = guesses(examples, 20), guesses(examples, 30)
    b[0] = dataclasses.replace(b[0], label=None, problem="no label found")
    found = pair(Scoring("accuracy", examples, LABELS), "few-shot", a, "lora", b)
    assert (found.a, found.b, found.fixed, found.broken, found.n, found.test) == (
        "few-shot", "lora", 10, 1, 40, "mcnemar",
    )  # fmt: skip
    assert found.difference == pytest.approx(9 / 40)
    assert found.low < found.difference < found.high
    assert found.p == found.p_holm == pytest.approx(0.00634765625)  # the exact 0.01171875 less half its last term


def test_comparison_of_numbers_says_which_error_is_smaller():
    examples, (rough, fine) = numbered(60, (3.0, 0.5))
    found = pair(Scoring("rmse", examples, resamples=200), "zero-shot", rough, "full", fine)
    assert found.difference < 0
    assert found.high < 0
    assert found.p < 0.01
    assert (found.fixed, found.broken) == (0, 0)
    turned = pair(Scoring("rmse", examples, resamples=200), "full", fine, "zero-shot", rough)
    assert (turned.difference, turned.low) == pytest.approx((-found.difference, -found.high), abs=0.1)


def test_all_pairs_are_corrected_together():
    examples = rows(60)
    named = {"baseline": guesses(examples, 30), "few-shot": guesses(examples, 38), "lora": guesses(examples, 45)}
    found = Scoring("accuracy", examples, LABELS).compare(named)
    assert [(item.a, item.b) for item in found] == [
        ("baseline", "few-shot"), ("baseline", "lora"), ("few-shot", "lora"),
    ]  # fmt: skip
    assert all(item.p_holm >= item.p for item in found)
    assert max(item.p_holm / item.p for item in found) == pytest.approx(3)


def test_applicable_metrics_are_those_the_rows_can_carry():
    assert pick_metric("classify") == "accuracy"
    examples = rows(4)
    silent = [Prediction(e.id, "f", problem="no label found") for e in examples]
    assert applicable("classify", examples, silent) == ("accuracy", "f1-macro", "f1-micro", "precision", "recall")
    turns = (Message("user", "q"), Message("assistant", "a"))
    chat = [Example("conversation", Where("f"), messages=turns)]
    likely = [Prediction(chat[0].id, "f", nll=1.0, tokens=1, bytes=1)]
    assert applicable("chat", chat, likely) == ("perplexity", "bits-per-byte")
    spoken = [dataclasses.replace(likely[0], text="b")]
    assert applicable("chat", chat, spoken) == ("perplexity", "bits-per-byte", "chrf", "rouge-l")
    assert "perplexity" not in applicable("chat", chat, [dataclasses.replace(spoken[0], nll=None)])
