"""Every file of data/shapes keeps the same promises."""

from __future__ import annotations

import json

import pytest

from burnish import kinds
from burnish.data.guess import choose
from burnish.data.rows import Row, ShapeProblem
from burnish.records import Example, Where
from burnish.task import GOALS

SHAPES = kinds.names("data/shapes")


@pytest.fixture(params=SHAPES)
def shape(request):
    return request.param


def test_its_sample_is_matched_by_its_own_guess(shape):
    module = kinds.load("data/shapes", shape)
    columns = module.guess(list(module.SAMPLE), [module.SAMPLE])
    assert columns is not None
    assert set(columns) <= set(module.ROLES)
    assert all(any(role in columns for role in either) for either in module.NEEDS)
    assert set(module.GOALS) <= set(GOALS)


def test_its_sample_becomes_an_example_that_survives_json(shape):
    module = kinds.load("data/shapes", shape)
    columns = module.guess(list(module.SAMPLE), [module.SAMPLE])
    example = module.to_example(module.SAMPLE, columns, Where("sample.jsonl", 3))
    assert example.shape == shape
    assert example.surface
    assert Example.from_json(json.loads(json.dumps(example.to_json()))) == example


def test_its_sample_is_taken_for_it_and_for_no_other_shape(shape):
    module = kinds.load("data/shapes", shape)
    assert choose([Row(module.SAMPLE, Where("sample.jsonl", 1))]).shape == shape


def test_a_row_without_a_needed_column_is_a_problem_that_names_it(shape):
    module = kinds.load("data/shapes", shape)
    columns = module.guess(list(module.SAMPLE), [module.SAMPLE])
    for either in module.NEEDS:
        column = next(columns[role] for role in either if role in columns)
        rest = {key: value for key, value in module.SAMPLE.items() if key != column}
        with pytest.raises(ShapeProblem) as caught:
            module.to_example(rest, columns, Where("sample.jsonl", 3))
        assert caught.value.field == column
        assert caught.value.what
        assert caught.value.do
