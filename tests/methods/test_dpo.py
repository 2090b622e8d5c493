"""DPO against formulas that can be checked by hand, and against the only policy it may lead to."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from burnish.methods import dpo
from burnish.models.model import Outputs


def batch(reference: Tensor, each: int = 2) -> Any:
    return SimpleNamespace(rows=len(reference), each=each, extras={"reference": reference})


def said(likelihoods: list[list[float]], tokens: int = 1) -> Outputs:
    """What a model says that gives each answer this log-likelihood, spread over so many tokens."""
    each = torch.tensor(likelihoods, dtype=torch.float64).flatten().repeat_interleave(tokens) / tokens
    logits = torch.stack([each, torch.log1p(-each.exp())], 1)
    row = torch.arange(2 * len(likelihoods)).repeat_interleave(tokens)
    return Outputs(logits, torch.zeros(len(row), dtype=torch.long), torch.ones(len(row), dtype=torch.float64), row)


def loss(policy: list[list[float]], reference: list[list[float]], tokens: int = 1, **own: Any) -> float:
    told = batch(torch.tensor(reference, dtype=torch.float64))
    return float(dpo.loss(said(policy, tokens), told, dpo.Settings(**own)))


def test_where_the_policy_is_the_reference_every_pair_costs_ln_2() -> None:
    same = [[-3.0, -9.0], [-40.0, -2.0]]
    for beta in (0.05, 0.1, 1.5):
        assert loss(same, same, beta=beta) == pytest.approx(2 * math.log(2), abs=1e-12)


def test_the_worked_case_of_torchtune() -> None:
    """Ratios of 0, 10 and 20 nats at beta 0.1: minus log sigmoid of 0, 1 and 2."""
    told = loss([[-1.0, -1.0], [-1.0, -6.0], [-1.0, -11.0]], [[-1.0, -1.0], [-6.0, -1.0], [-11.0, -1.0]], beta=0.1)
    assert told == pytest.approx(sum(math.log1p(math.exp(-x)) for x in (0, 1, 2)))


def test_likelihoods_are_sums_over_tokens_and_not_means() -> None:
    short, long = (loss([[-4.0, -6.0]], [[-5.0, -5.0]], tokens) for tokens in (1, 10))
    assert long == pytest.approx(short)


@pytest.mark.parametrize("wrong", [0.0, 0.1, 0.4])
def test_smoothing_is_mitchells(wrong: float) -> None:
    """preference_loss of github.com/eric-mitchell/direct-preference-optimization, trainers.py, reverse KL."""
    policy, reference, beta = [[-4.0, -7.0], [-9.0, -3.0]], [[-5.0, -5.0], [-6.0, -6.0]], 0.3
    expected = 0.0
    for (chosen, rejected), (was_chosen, was_rejected) in zip(policy, reference, strict=True):
        margin = beta * ((chosen - rejected) - (was_chosen - was_rejected))
        right, flipped = (1 / (1 + math.exp(-sign * margin)) for sign in (1, -1))
        expected += -math.log(right) * (1 - wrong) - math.log(flipped) * wrong
    assert loss(policy, reference, beta=beta, label_smoothing=wrong) == pytest.approx(expected)


def test_ipo_is_a_square_about_half_of_one_over_beta() -> None:
    """Per token: (-4 + 5) / 2 - (-6 + 5) / 2 is 1, and 1 / (2 x 0.25) is 2."""
    assert loss([[-4.0, -6.0]], [[-5.0, -5.0]], tokens=2, loss="ipo", beta=0.25) == pytest.approx(1.0)


def test_the_sft_term_is_the_chosen_answers_own_loss_per_token() -> None:
    plain, more = (loss([[-4.0, -6.0]], [[-5.0, -5.0]], tokens=2, sft=sft) for sft in (0.0, 0.5))
    assert more - plain == pytest.approx(0.5 * 4.0 / 2)


def test_what_both_answers_begin_with_counts_in_both() -> None:
    """Documents: a beginning of -2 nats, then -4 and -6."""
    logits = torch.log_softmax(torch.tensor([[2.0, 0.0], [0.5, 0.0], [-1.0, 0.0]], dtype=torch.float64), 1)
    out = Outputs(logits, torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=torch.float64), torch.arange(3))
    told = dpo.loss(out, batch(torch.zeros(1, 2, dtype=torch.float64), 3), dpo.Settings(beta=1.0, sft=1.0))
    chosen = float(logits[:2, 0].sum())
    margin = float(logits[1, 0] - logits[2, 0])
    assert float(told) == pytest.approx(math.log1p(math.exp(-margin)) - chosen / 2)


def test_it_ends_where_the_closed_form_says() -> None:
    """Six answers, rewards 0 to 1, labels drawn by them: the policy becomes reference x exp(reward / beta), normed.

    Rafailov et al. 2023, eq. 4.  Total variation below 0.02 with 400 batches of 2,048 pairs (0.012 in the literature's
    setting); a wrong beta or a mean for a sum is off by 0.1.
    """
    start = torch.tensor([0.3, 0.25, 0.2, 0.12, 0.08, 0.05], dtype=torch.float64)
    reward, beta = torch.arange(6, dtype=torch.float64) / 5, 0.5
    wanted = start * torch.exp(reward / beta)
    wanted /= wanted.sum()
    torch.testing.assert_close(
        wanted, torch.tensor([0.1315, 0.1634, 0.1950, 0.1746, 0.1736, 0.1619], dtype=torch.float64), rtol=0, atol=1e-4
    )
    theta, draw = start.log().requires_grad_(), torch.Generator().manual_seed(1)
    optimizer, kept = torch.optim.Adam([theta], 0.02), []
    for step in range(400):
        pairs = torch.multinomial(start, 4096, True, generator=draw).view(-1, 2)
        odds = torch.sigmoid(reward[pairs[:, 0]] - reward[pairs[:, 1]])
        won = torch.rand(len(odds), generator=draw, dtype=torch.float64) < odds
        pairs = torch.where(won[:, None], pairs, pairs.flip(1))
        out = Outputs(
            theta.expand(pairs.numel(), -1), pairs.flatten(), torch.ones(pairs.numel()), torch.arange(pairs.numel())
        )
        told = dpo.loss(out, batch(start.log()[pairs]), dpo.Settings(beta=beta)) / len(pairs)
        optimizer.zero_grad()
        told.backward()
        optimizer.step()
        if step >= 200:
            kept.append(torch.softmax(theta.detach(), 0))
    assert float((torch.stack(kept).mean(0) - wanted).abs().sum() / 2) < 0.02
