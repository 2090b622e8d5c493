"""Pictures hold their values, whatever these are."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_reports import share

from burnish.evaluate import charts
from burnish.records import Score


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_an_axis_holds_its_values_and_has_ticks(values: list[float]) -> None:
    scale = charts.axis(values)
    assert scale.low <= min(values)
    assert scale.high >= max(values)
    assert charts.LEFT <= scale.at(min(values)) <= scale.at(max(values)) <= charts.RIGHT
    assert 2 <= len(scale.ticks()) <= 12


def test_a_score_without_bounds_is_still_drawn() -> None:
    rungs = [
        ("a", Score("perplexity", 9.0, math.nan, math.inf, 3, "bootstrap", higher=False)),
        ("b", share("x", 0.5, 3)),
    ]
    assert "nan%" not in charts.ladder(rungs, None, "a", {})


def test_a_wide_span_of_a_loss_is_drawn_on_a_log_axis() -> None:
    scale = charts.axis([20.0, 900.0], log=True)
    assert scale.log
    assert scale.at(134.0) == pytest.approx(50, abs=2)
    assert scale.ticks() == [20, 50, 100, 200, 500, 1000]


def test_curves_bear_gaps_and_what_is_not_a_number() -> None:
    curve: list[dict[str, Any]] = [{"step": 1, "train_loss": float("nan")}, {"step": 2, "valid_loss": None}]
    assert "polyline" not in charts.losses("lora", curve, None)
    many = [{"step": step, "train_loss": 1.0 / step, "learning_rate": 0.1} for step in range(1, 20_000)]
    assert len(charts.losses("lora", many, 7)) < 20_000
    assert "kept: step 7" in charts.losses("lora", many, 7)
