"""Values a reader can check by hand, and the promise that an unusable answer never helps."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish import kinds
from burnish.errors import DataError
from burnish.metrics._text import words
from burnish.metrics.rouge_l import _common
from burnish.records import Example, Message, Prediction, Where

LABELS = ("bad", "good", "mixed")
HERE = Where("rows.csv", 7)


def measure(metric, examples, predictions, labels=LABELS):
    module = kinds.load("metrics", metric)
    rows = [module.components(e, p, labels) for e, p in zip(examples, predictions, strict=True)]
    return module.value(np.array(rows, dtype=float))


def labelled(*golds):
    return [Example("labelled", HERE, text=str(i), label=gold) for i, gold in enumerate(golds)]


def said(*labels):
    return [Prediction("", "", label=label) for label in labels]


def numbers(*values):
    return [Prediction("", "", number=value) for value in values]


def answers(*texts):
    turns = (Message("user", "q"),)
    return [Example("instruction", HERE, messages=(*turns, Message("assistant", text))) for text in texts]


def texts(*values):
    return [Prediction("", "", text=value) for value in values]


def test_accuracy_of_one_and_of_several_labels():
    assert measure("accuracy", labelled("bad", "good"), said("bad", "bad")) == 0.5
    several = labelled(("bad", "good"), ("good",), ())
    assert measure("accuracy", several, said(("good", "bad"), ("good", "mixed"), ())) == pytest.approx(2 / 3)


def test_all_majority_on_90_to_10_has_micro_f1_90_but_macro_474():
    rows, told = labelled(*["bad"] * 90, *["good"] * 10), said(*["bad"] * 100)
    assert measure("f1-micro", rows, told) == pytest.approx(0.90)
    assert measure("f1-macro", rows, told) == pytest.approx(0.474, abs=5e-4)
    assert measure("recall", rows, told) == pytest.approx(0.5)
    assert measure("precision", rows, told) == pytest.approx(0.45)


@given(st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, None])), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_micro_f1_of_one_label_per_row_is_accuracy_even_with_missing_answers(pairs):
    rows, told = labelled(*(gold for gold, _ in pairs)), said(*(label for _, label in pairs))
    assert measure("f1-micro", rows, told) == pytest.approx(measure("accuracy", rows, told))


@pytest.mark.parametrize("metric", ["accuracy", "precision", "recall", "f1-micro", "f1-macro"])
@pytest.mark.parametrize("labels", [("bad", "good"), LABELS])
def test_no_label_a_problem_and_an_unknown_label_are_all_wrong_answers(metric, labels):
    rows = labelled(*["bad", "good"] * 10)
    right = [example.label for example in rows]
    missing = measure(metric, rows, said(None, *right[1:]), labels)
    assert missing < measure(metric, rows, said(*right), labels)
    assert missing == measure(metric, rows, said("excellent", *right[1:]), labels)
    broken = [Prediction("", "", label="bad", problem="cut off"), *said(*right[1:])]
    assert missing == measure(metric, rows, broken, labels)
    if len(labels) == 2:
        assert missing == pytest.approx(measure(metric, rows, said("good", *right[1:]), labels))


def test_a_class_that_never_occurs_does_not_count():
    rows, told = labelled("bad", "good"), said("bad", "good")
    assert measure("f1-macro", rows, told, (*LABELS, "unseen")) == 1
    share = 1 / 3  # the missing answer is one wrong label spread over three classes: "bad" gets a third of it
    missing = measure("f1-macro", rows, said("bad", None), (*LABELS, "unseen"))
    assert missing == pytest.approx((2 / (2 + share) + 0) / 2)


def test_a_gold_label_that_is_no_class_names_its_line():
    with pytest.raises(DataError, match=r"rows\.csv:7"):
        measure("accuracy", labelled("awful"), said("bad"))
    with pytest.raises(DataError, match=r"rows\.csv:7"):
        measure("accuracy", labelled(None), said("bad"))
    with pytest.raises(DataError, match=r"rows\.csv:7"):
        measure("rmse", labelled("bad"), numbers(1.0))


def test_errors_of_numbers_by_hand():
    rows, told = labelled(1.0, 2.0, 4.0), numbers(1.0, 4.0, 3.0)
    assert measure("mse", rows, told) == pytest.approx(5 / 3)
    assert measure("rmse", rows, told) == pytest.approx(math.sqrt(5 / 3))
    assert measure("mae", rows, told) == pytest.approx(1.0)


def test_spearman_shares_ranks_between_ties():
    rows, told = labelled(1.0, 2.0, 3.0, 4.0), numbers(1.0, 1.0, 2.0, 9.0)
    assert measure("spearman", rows, told) == pytest.approx(4.5 / math.sqrt(5 * 4.5))


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
def test_a_constant_guess_has_no_correlation(metric):
    assert measure(metric, labelled(1.0, 2.0, 4.0), numbers(0.1, 0.1, 0.1)) == pytest.approx(0.0)


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_missing_number_counts_as_the_far_end_of_the_gold_range(value):
    rows = labelled(1.0, 2.0, 5.0)
    assert measure("mae", rows, numbers(1.0, value, 5.0)) == pytest.approx(1.0)
    assert measure("mae", labelled(3.0), numbers(value)) == pytest.approx(3.0)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12), st.data())
@settings(max_examples=50, deadline=None)
def test_withholding_a_number_never_beats_any_guess_within_the_gold_range(golds, data):
    inside = st.floats(min(golds), max(golds))
    told = [data.draw(inside) for _ in golds]
    for metric in ("mse", "rmse", "mae"):
        full = measure(metric, labelled(*golds), numbers(*told))
        assert measure(metric, labelled(*golds), numbers(None, *told[1:])) >= full - 1e-9


def test_perplexity_of_a_uniform_model_is_its_vocabulary_and_bits_per_byte_are_eight():
    rows = [Example("document", HERE, text=text) for text in ("abc", "defghij")]
    told = [Prediction("", "", nll=n * math.log(256), tokens=n, bytes=n) for n in (3, 7)]
    assert measure("perplexity", rows, told) == pytest.approx(256)
    assert measure("bits-per-byte", rows, told) == pytest.approx(8.0)


def test_perplexity_weighs_tokens_not_rows():
    rows = [Example("document", HERE, text=text) for text in ("a", "b")]
    told = [Prediction("", "", nll=1.0, tokens=1), Prediction("", "", nll=0.0, tokens=9)]
    assert measure("perplexity", rows, told) == pytest.approx(math.exp(0.1))
    assert measure("perplexity", rows, [Prediction("", "", nll=1e6, tokens=1), told[1]]) == math.inf


@pytest.mark.parametrize("nll", [None, math.nan])
def test_a_missing_likelihood_is_refused(nll):
    rows = [Example("document", HERE, text="a")]
    with pytest.raises(DataError, match="flatter"):
        measure("perplexity", rows, [Prediction("", "", nll=nll, tokens=1)])


def test_accuracy_norm_is_the_likeliest_for_its_length():
    row = Example("choices", HERE, label="B", choices=("no", "a long answer"))
    by_letter, by_length = ("accuracy", "accuracy-norm")
    told = [Prediction("", "", label="A", loglikelihoods=(-4.0, -6.0))]
    assert (measure(by_letter, [row], told, "ABC"), measure(by_length, [row], told, "ABC")) == (0, 1)
    told = [Prediction("", "", label="B")]  # a floor has none
    assert measure(by_length, [row], told, "ABC") == 1
    told = [Prediction("", "", loglikelihoods=(-4.0, -6.0), problem="cut off")]
    assert measure(by_length, [row], told, "ABC") == 0


def test_exact_match_strips_and_composes_but_minds_case():
    rows = answers("café", "Yes", "no")
    assert measure("exact-match", rows, texts(" cafe\u0301\n", "yes", None)) == pytest.approx(1 / 3)


def test_rouge_l_by_hand_and_in_other_scripts():
    rows = answers("the cat sat on the mat")
    assert measure("rouge-l", rows, texts("the cat was on a mat")) == pytest.approx(4 / 6)
    assert measure("rouge-l", rows, texts("")) == 0
    assert measure("rouge-l", rows, [Prediction("", "", text="the cat", problem="cut off")]) == 0
    assert measure("rouge-l", answers("Καλημέρα κόσμε"), texts("καλημέρα")) == pytest.approx(2 / 3)
    assert words("今天 good天") == ["今", "天", "good", "天"]


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12))
@settings(max_examples=100, deadline=None)
def test_longest_common_subsequence_equals_the_table(a, b):
    table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if left == right else max(table[i, j + 1], table[i + 1, j])
    assert _common(a, b) == table[-1, -1]


def test_chrf_is_zero_without_an_answer_and_a_hundred_for_the_same_text():
    assert measure("chrf", answers("the cat"), texts("the cat")) == pytest.approx(100)
    assert measure("chrf", answers("the cat", "a"), texts(None, "")) == 0
