"""Losses on numbers that can be checked by hand."""

import math
from types import SimpleNamespace

import pytest
import torch

from burnish.methods import classify, regress, selfsupervised, sft
from burnish.methods._losses import cross_entropy
from burnish.models.model import Outputs
from burnish.tokens.batch import Batch


def batch(**own):
    return SimpleNamespace(ids=torch.zeros(2, 3), **own)


@pytest.mark.parametrize("method", [sft, selfsupervised])
def test_a_model_that_knows_nothing_pays_the_log_of_the_vocabulary(method):
    out = Outputs(torch.zeros(5, 64), torch.arange(5), torch.tensor([1.0, 1, 0.5, 0, 1]))
    assert float(method.loss(out, None, method.Settings())) == pytest.approx(3.5 * math.log(64))


def test_weights_scale_each_target():
    """-log softmax([0, ln 3]) is ln 4 for the first and ln(4/3) for the second."""
    logits = torch.tensor([[0.0, math.log(3)]] * 2)
    told = cross_entropy(logits, torch.tensor([0, 1]), torch.tensor([2.0, 3.0]))
    assert float(told) == pytest.approx(2 * math.log(4) + 3 * math.log(4 / 3))


def test_no_targets_no_loss():
    assert float(cross_entropy(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long), torch.zeros(0))) == 0.0


def test_one_class_of_many():
    out = Outputs(torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]))
    told = classify.loss(out, batch(label=torch.tensor([1, 0])), classify.Settings())
    assert float(told) == pytest.approx(math.log(4 / 3) + math.log(2))


def test_several_classes_are_several_coins():
    """sigmoid(ln 3) = 3/4; the mean over classes, so that more classes do not mean larger steps."""
    out = Outputs(torch.tensor([[math.log(3), 0.0], [0.0, -math.log(3)]]))
    told = classify.loss(out, batch(label=torch.tensor([[1.0, 0.0], [1.0, 1.0]])), classify.Settings())
    assert float(told) == pytest.approx((math.log(4 / 3) + math.log(2)) / 2 + (math.log(2) + math.log(4)) / 2)


def test_smoothed_classes():
    """0.2 over two classes: 0.9 and 0.1."""
    logits = torch.tensor([[0.0, math.log(3)]])
    told = classify.loss(Outputs(logits), batch(label=torch.tensor([1])), classify.Settings(label_smoothing=0.2))
    assert float(told) == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4))
    coin = classify.loss(Outputs(logits[:, 1:]), batch(label=torch.ones(1, 1)), classify.Settings(label_smoothing=0.2))
    assert float(coin) == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4))


def test_squared_error():
    out = Outputs(torch.tensor([[1.0], [-2.0]]))
    assert float(regress.loss(out, batch(label=torch.tensor([0.5, 1.0])), regress.Settings())) == pytest.approx(9.25)


def test_weights_of_a_batch():
    weights = torch.tensor([[0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])
    told = Batch(torch.zeros(2, 3), weights, torch.zeros(2, 3), torch.ones(2, 3), ("f:1", "f:2"), ("a", "b"))
    assert [method.weight(told) for method in (sft, selfsupervised, classify, regress)] == [2.5, 2.5, 2.0, 2.0]
