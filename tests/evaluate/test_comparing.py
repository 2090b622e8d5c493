"""Two artifacts side by side: the sentence names the better one, the figures stand the way it says."""

import re

import pytest

from burnish.evaluate.compare import compared
from burnish.evaluate.scores import Scoring
from burnish.records import Example, Prediction, Where

ROWS = [Example("labelled", Where("rows.csv", i), id=str(i), text=f"row {i}", label="good") for i in range(60)]


def said(right):
    return [Prediction(row.id, "", label="good" if i < right else "bad") for i, row in enumerate(ROWS)]


def side_by_side(first, second):
    return compared(("a", "b"), "classify", Scoring("accuracy", ROWS, ("good", "bad")), (said(first), said(second)))


@pytest.mark.parametrize(("first", "second", "better", "other"), [(30, 50, "b", "a"), (50, 30, "a", "b")])
def test_the_better_one_is_named_first_with_its_own_figures(first, second, better, other):
    told = side_by_side(first, second)
    assert told.better == better
    assert told.sentence.startswith(f"{better} is better than {other}: accuracy 0.833 against 0.500 on 60 rows")
    assert re.search(r"difference of \+0\.333 \(\+0\.\d+ to \+0\.\d+, p < 0\.001\)", told.sentence)


def test_what_cannot_be_told_apart_is_told_with_what_these_rows_could_show():
    told = side_by_side(30, 31)
    assert told.better == ""
    assert "b and a cannot be told apart" in told.sentence
    assert "cannot reliably be told from luck with these rows" in told.sentence
