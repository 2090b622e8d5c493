"""Our metrics against the reference libraries.  Tolerance 1e-9: the same formula in another order of float sums."""

import random

import numpy as np
import pytest

from burnish import kinds
from burnish.records import Example, Message, Prediction, Where

CLASSES = tuple("abcde")
CLOSE = {"rel": 1e-9, "abs": 1e-12}


def measure(metric, examples, predictions):
    module = kinds.load("metrics", metric)
    rows = [module.components(e, p, CLASSES) for e, p in zip(examples, predictions, strict=True)]
    return module.value(np.array(rows, dtype=float))


def labelled(golds):
    return [Example("labelled", Where("f"), text="t", label=gold) for gold in golds]


@pytest.mark.parametrize("sets", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_class_metrics_equal_scikit_learn_with_absent_classes(sets):
    sk = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for _ in range(sets):
        weights = rng.dirichlet(np.full(len(CLASSES), 0.5))
        gold, told = (list(rng.choice(CLASSES, size=rng.integers(1, 15), p=weights)) for _ in range(2))
        told = [rng.choice([t, g]) for t, g in zip(np.resize(told, len(gold)), gold, strict=True)]
        examples = labelled(map(str, gold))
        predictions = [Prediction("", "", label=str(label)) for label in told]
        assert measure("accuracy", examples, predictions) == pytest.approx(sk.accuracy_score(gold, told), **CLOSE)
        wanted = sk.precision_recall_fscore_support(gold, told, average="macro", zero_division=0)
        for metric, want in zip(("precision", "recall", "f1-macro"), wanted[:3], strict=True):
            assert measure(metric, examples, predictions) == pytest.approx(want, **CLOSE), (metric, gold, told)


def test_class_metrics_equal_scikit_learn_with_several_labels_per_row():
    sk = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    for _ in range(100):
        gold, told = (rng.random((12, len(CLASSES))) < 0.3 for _ in range(2))
        occurs = (gold | told).any(axis=0)  # scikit-learn would count a class that never occurs as 0
        named = [[tuple(np.array(CLASSES)[row].tolist()) for row in table] for table in (gold, told)]
        examples, predictions = labelled(named[0]), [Prediction("", "", label=label) for label in named[1]]
        assert measure("accuracy", examples, predictions) == pytest.approx(sk.accuracy_score(gold, told), **CLOSE)
        for metric, average in (("f1-macro", "macro"), ("f1-micro", "micro")):
            want = sk.f1_score(gold[:, occurs], told[:, occurs], average=average, zero_division=0)
            assert measure(metric, examples, predictions) == pytest.approx(want, **CLOSE)


def test_number_metrics_equal_scipy_and_scikit_learn():
    sk, stats = pytest.importorskip("sklearn.metrics"), pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(2)
    for _ in range(100):
        gold = rng.integers(0, 6, 20).astype(float)  # with ties
        told = np.round(gold + rng.normal(size=20), 1)
        examples, predictions = labelled(gold.tolist()), [Prediction("", "", number=x) for x in told.tolist()]
        wanted = {
            "mse": sk.mean_squared_error(gold, told),
            "rmse": sk.root_mean_squared_error(gold, told),
            "mae": sk.mean_absolute_error(gold, told),
            "pearson": stats.pearsonr(gold, told).statistic,
            "spearman": stats.spearmanr(gold, told).statistic,
        }
        for metric, want in wanted.items():
            assert measure(metric, examples, predictions) == pytest.approx(want, **CLOSE), metric


def sentences(count, letters):
    rng = random.Random(3)
    words = ["".join(rng.choices(letters, k=rng.randint(1, 6))) for _ in range(12)]
    for _ in range(count):
        gold = rng.choices(words, k=rng.randint(0, 12))
        told = [word if rng.random() < 0.6 else rng.choice(words) for word in gold][: rng.randint(0, 12)]
        yield " ".join(gold) + rng.choice([".", "", "!\n"]), "  ".join(told) + rng.choice(["?", "", " "])


def written(pairs):
    turns = [(Message("user", "q"), Message("assistant", gold)) for gold, _ in pairs]
    examples = [Example("instruction", Where("f"), messages=messages) for messages in turns]
    return examples, [Prediction("", "", text=told) for _, told in pairs]


def test_chrf_equals_sacrebleu_on_500_pairs_and_as_a_corpus():
    sacrebleu = pytest.importorskip("sacrebleu")
    pairs = list(sentences(500, "abcßé日本Ω' "))
    for pair in pairs:
        want = sacrebleu.corpus_chrf([pair[1]], [[pair[0]]]).score
        assert measure("chrf", *written([pair])) == pytest.approx(want, **CLOSE), pair
    want = sacrebleu.corpus_chrf([told for _, told in pairs], [[gold for gold, _ in pairs]]).score
    assert measure("chrf", *written(pairs)) == pytest.approx(want, **CLOSE)


def test_rouge_l_equals_rouge_score_on_500_pairs():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=False)
    pairs = list(sentences(500, "abC1_-'"))
    wants = [scorer.score(gold, told)["rougeL"].fmeasure for gold, told in pairs]
    for pair, want in zip(pairs, wants, strict=True):
        assert measure("rouge-l", *written([pair])) == pytest.approx(want, **CLOSE), pair
    assert measure("rouge-l", *written(pairs)) == pytest.approx(np.mean(wants), **CLOSE)
