"""What every file in metrics/ must keep to: a new metric is checked by being there."""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest

from burnish import kinds
from burnish.evaluate.scores import USUAL, Scoring, applicable
from burnish.records import Example, Message, Prediction, Where
from burnish.task import GOALS

LABELS = ("bad", "good")
TEXTS = ("the cat sat", "a dog barked", "it rained all day", "no")
METRICS = kinds.names("metrics")


def examples(metric):
    number = kinds.load("metrics", metric).NEEDS == "number"
    ranked = "prefer" in kinds.load("metrics", metric).FOR
    for i, text in enumerate(TEXTS):
        turns = (Message("user", f"q{i}"), Message("assistant", text))
        label = float(i) if number else "A" if ranked else LABELS[i % 2]
        choices = (text, "worse") if ranked else ()
        yield Example("instruction", Where("f", i + 1), messages=turns, label=label, choices=choices)


def perfect(metric):
    return [
        Prediction(
            example.id,
            str(example.where),
            text=example.answer,
            label=example.label if isinstance(example.label, str) else None,
            number=example.label if isinstance(example.label, float) else None,
            nll=0.0,
            tokens=3,
            bytes=len(example.answer),
            loglikelihoods=(-1.0, -90.0) if example.choices else None,
        )
        for example in examples(metric)
    ]


def measure(metric, predictions):
    return Scoring(metric, list(examples(metric)), LABELS, resamples=100).score(predictions)


@pytest.mark.parametrize("metric", METRICS)
class TestEveryMetric:
    def test_declares_what_it_is(self, metric):
        module = kinds.load("metrics", metric)
        assert module.__doc__
        assert set(module.FOR) <= set(GOALS)
        assert module.FOR
        assert isinstance(module.HIGHER, bool)
        assert module.RANGE[0] < module.RANGE[1]
        assert module.KIND in ("proportion", "mean", "aggregate")
        assert module.NEEDS in {item.name for item in dataclasses.fields(Prediction)}

    def test_a_perfect_answer_scores_best(self, metric):
        module = kinds.load("metrics", metric)
        assert measure(metric, perfect(metric)).value == pytest.approx(module.RANGE[1 if module.HIGHER else 0])

    def test_rows_have_one_length_and_their_order_means_nothing(self, metric):
        module = kinds.load("metrics", metric)
        rows = np.array(
            [module.components(e, p, LABELS) for e, p in zip(examples(metric), perfect(metric)[::-1], strict=True)]
        )
        assert rows.ndim == 2
        assert module.value(rows) == pytest.approx(module.value(rows[[2, 0, 3, 1]]))
        if module.KIND != "aggregate":
            assert rows.shape[1] == 1
            assert module.value(rows) == pytest.approx(rows.mean())
        if module.KIND == "proportion":
            assert set(rows[:, 0]) <= {0.0, 1.0}

    def test_many_samples_at_once_are_each_sample_alone(self, metric):
        module, random = kinds.load("metrics", metric), np.random.default_rng(0)
        said = perfect(metric)
        said = [*said[1:3], dataclasses.replace(said[0], nll=2.0, number=None), said[3]]
        rows = np.array([module.components(e, p, LABELS) for e, p in zip(examples(metric), said, strict=True)])
        stack = rows[random.integers(0, len(rows), (3, 5, 7))]
        want = [[module.value(sample) for sample in samples] for samples in stack]
        assert module.value(stack) == pytest.approx(np.array(want), nan_ok=True)
        assert isinstance(module.value(rows), float)  # and so a plain number in JSON

    def test_an_unusable_answer_makes_the_score_worse(self, metric):
        module, right = kinds.load("metrics", metric), perfect(metric)
        if module.NEEDS == "nll":
            pytest.skip("a missing likelihood is refused, see tests/metrics")
        broken = [dataclasses.replace(right[0], problem="cut off"), *right[1:]]
        better, worse = measure(metric, right).value, measure(metric, broken).value
        assert worse < better if module.HIGHER else worse > better

    def test_its_interval_holds_its_value(self, metric):
        found = measure(metric, perfect(metric)[::1])
        assert found.low <= found.value <= found.high
        assert not math.isnan(found.low + found.high)


def test_every_goal_has_a_usual_metric_made_for_it():
    assert set(USUAL) == set(GOALS)
    for goal, metric in USUAL.items():
        assert goal in kinds.load("metrics", metric).FOR
        rows = list(examples(metric))
        assert applicable(goal, rows, perfect(metric))[0] == metric


def test_metrics_start_without_heavy_libraries():
    told = (
        "import sys; from burnish import kinds; [kinds.load('metrics', m) for m in kinds.names('metrics')];"
        "print([m for m in ('torch', 'transformers', 'scipy', 'pandas', 'sklearn') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", told], capture_output=True, text=True).stdout.strip() == "[]"
