"""Rungs on frozen features equal scikit-learn on the same features."""

from dataclasses import replace

import asking
import numpy as np
import pytest
import tiny
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from burnish.errors import DataError
from burnish.prompting import _frozen, linear_probe, nearest_neighbour
from burnish.prompting._world import World
from burnish.records import Example, Where

SEVERAL = [("bad",), ("fair", "good"), (), ("good",)]


def world(tmp_path_factory, goal="classify", labels=tiny.LABELS, kind="bert", train=60, held=30, **own):
    ready = asking.answerer(kind, tmp_path_factory, goal, multi=isinstance(labels[0], tuple), **own)
    return World(ready, asking.labelled(train, labels, 1), asking.labelled(held, labels, 2), "accuracy", {})


def features(told, rows):
    return _frozen.features(told.answerer, rows)[0]


def scaled(told, tensors, rows):
    return ((features(told, rows) - tensors["mean"]) / tensors["spread"]).double().numpy()


class TestLinearProbe:
    """Tolerance 1e-3 of a probability: each stops by a rule of its own."""

    @pytest.mark.parametrize("penalty", linear_probe.PENALTIES)
    def test_classes_are_scikit_learns_logistic_regression(self, penalty, tmp_path_factory, monkeypatch):
        monkeypatch.setattr(linear_probe, "PENALTIES", (penalty,))
        told = world(tmp_path_factory)
        made = linear_probe.choose(told)
        x, y = scaled(told, made.tensors, told.train), [row.label for row in told.train]
        theirs = LogisticRegression(C=1 / (penalty * len(y)), max_iter=20000, tol=1e-8).fit(x, y)
        wanted = theirs.predict_proba(scaled(told, made.tensors, told.validation))
        for row, shares in zip(
            linear_probe.answer(told.answerer, made.recipe, made.tensors, told.validation), wanted, strict=True
        ):
            assert list(row.probabilities.values()) == pytest.approx(shares, abs=1e-3)
            assert row.label == tiny.LABELS[int(np.argmax(list(row.probabilities.values())))]

    @pytest.mark.parametrize("penalty", [1e-2, 1.0])
    def test_several_classes_are_one_regression_each(self, penalty, tmp_path_factory, monkeypatch):
        """The mean over rows and classes: a class sees a penalty three times as strong as its own mean."""
        monkeypatch.setattr(linear_probe, "PENALTIES", (penalty,))
        told = world(tmp_path_factory, labels=SEVERAL)
        made = linear_probe.choose(told)
        x, held = scaled(told, made.tensors, told.train), scaled(told, made.tensors, told.validation)
        said = list(linear_probe.answer(told.answerer, made.recipe, made.tensors, told.validation))
        for name in tiny.LABELS:
            y = [name in row.label for row in told.train]
            wanted = LogisticRegression(C=1 / (penalty * len(y) * 3), max_iter=20000, tol=1e-8).fit(x, y)
            found = [row.probabilities[name] for row in said]
            assert found == pytest.approx(wanted.predict_proba(held)[:, 1], abs=1e-3)

    @pytest.mark.parametrize("penalty", linear_probe.PENALTIES)
    def test_numbers_are_scikit_learns_ridge(self, penalty, tmp_path_factory, monkeypatch):
        monkeypatch.setattr(linear_probe, "PENALTIES", (penalty,))
        told = world(tmp_path_factory, "regress", (10.0, 20.0, 45.0))
        made = linear_probe.choose(told)
        x = scaled(told, made.tensors, told.train)
        y = np.array([row.label for row in told.train])
        theirs = Ridge(alpha=penalty * len(y) / 2).fit(x, (y - y.mean()) / y.std())
        wanted = theirs.predict(scaled(told, made.tensors, told.validation)) * y.std() + y.mean()
        said = [row.number for row in linear_probe.answer(told.answerer, made.recipe, made.tensors, told.validation)]
        assert said == pytest.approx(wanted, abs=1e-3 * y.std())

    def test_the_penalty_with_the_lowest_validation_loss_is_chosen(self, tmp_path_factory, monkeypatch):
        told = world(tmp_path_factory)
        losses = {}
        for penalty in linear_probe.PENALTIES:
            with monkeypatch.context() as only:
                only.setattr(linear_probe, "PENALTIES", (penalty,))
                losses[penalty] = linear_probe.choose(told).shown["validation_loss"]
        assert linear_probe.choose(told).recipe["penalty"] == min(losses, key=lambda penalty: losses[penalty])

    def test_it_learns_what_the_features_tell(self, tmp_path_factory):
        """The class is whether a text has an even number of letters z, which the mean state shows."""
        texts = ["z" * (i % 40 + 1) + "a" * (40 - i % 40) for i in range(80)]
        rows = [
            Example("labelled", Where("f", i), text=f"{text} {i}", label=("bad", "good")[text.count("z") > 20])
            for i, text in enumerate(texts)
        ]
        told = replace(world(tmp_path_factory, labels=("bad", "good")), train=rows[:60], validation=rows[60:70])
        made = linear_probe.choose(told)
        said = list(linear_probe.answer(told.answerer, made.recipe, made.tensors, rows[70:]))
        assert sum(a.label == b.label for a, b in zip(said, rows[70:], strict=True)) >= 9


class TestNearestNeighbour:
    def near(self, told, made, rows):
        return torch.nn.functional.normalize(features(told, rows) - made.tensors["centre"], dim=1).double().numpy()

    @pytest.mark.parametrize("k", nearest_neighbour.NEIGHBOURS)
    def test_votes_are_scikit_learns(self, k, tmp_path_factory, monkeypatch):
        monkeypatch.setattr(nearest_neighbour, "NEIGHBOURS", (k,))
        told = world(tmp_path_factory)
        made = nearest_neighbour.choose(told)
        theirs = KNeighborsClassifier(k, algorithm="brute").fit(
            self.near(told, made, told.train), [row.label for row in told.train]
        )
        wanted = theirs.predict_proba(self.near(told, made, told.validation))
        said = list(nearest_neighbour.answer(told.answerer, made.recipe, made.tensors, told.validation))
        assert [list(row.probabilities.values()) for row in said] == [pytest.approx(shares) for shares in wanted]

    def test_numbers_are_the_neighbours_mean(self, tmp_path_factory, monkeypatch):
        monkeypatch.setattr(nearest_neighbour, "NEIGHBOURS", (3,))
        told = world(tmp_path_factory, "regress", (1.0, 2.0, 7.0))
        made = nearest_neighbour.choose(told)
        theirs = KNeighborsRegressor(3, algorithm="brute").fit(
            self.near(told, made, told.train), [row.label for row in told.train]
        )
        said = [
            row.number for row in nearest_neighbour.answer(told.answerer, made.recipe, made.tensors, told.validation)
        ]
        assert said == pytest.approx(theirs.predict(self.near(told, made, told.validation)))

    def test_a_text_seen_in_training_finds_itself(self, tmp_path_factory, monkeypatch):
        monkeypatch.setattr(nearest_neighbour, "NEIGHBOURS", (1,))
        told = world(tmp_path_factory, labels=SEVERAL)
        made = nearest_neighbour.choose(told)
        said = nearest_neighbour.answer(told.answerer, made.recipe, made.tensors, told.train)
        assert [row.label for row in said] == [row.label for row in told.train]


class TestWithoutValidation:
    def test_a_row_does_not_vouch_for_itself(self, tmp_path_factory):
        """Labels by chance: one neighbour is perfect on rows it has seen, and many are better on others."""
        told = replace(world(tmp_path_factory, train=100), validation=[])
        assert nearest_neighbour.choose(told).recipe["neighbours"] > 1
        assert linear_probe.choose(told).recipe["penalty"] > min(linear_probe.PENALTIES)


class TestTooLong:
    @pytest.mark.parametrize("rung", [linear_probe, nearest_neighbour])
    def test_the_tasks_rule_holds_for_rows_to_learn_from(self, rung, tmp_path_factory):
        told = world(tmp_path_factory, train=20, held=10, too_long="error")
        long = replace(told.train[3], text="snow " * 60)
        train = [*told.train[:3], long, *told.train[4:]]
        with pytest.raises(DataError, match=r"tokens, more than") as caught:
            rung.choose(replace(told, train=train))
        assert caught.value.where == str(long.where)
        dropping = world(tmp_path_factory, train=20, held=10, too_long="drop")
        dropped = rung.choose(replace(dropping, train=train))
        without = rung.choose(replace(dropping, train=[*train[:3], *train[4:]]))
        assert dropped.recipe == without.recipe
        assert all(torch.allclose(dropped.tensors[key], without.tensors[key], atol=1e-4) for key in without.tensors)
        cutting = world(tmp_path_factory, train=20, held=10, too_long="cut-prompt")
        rung.choose(replace(cutting, train=train))
