"""What a language model is told of the numbers it should answer with: the training rows' range, and no other's."""

import random

import pytest
from conftest import words, write

from burnish.climb.ladder import ready


@pytest.mark.parametrize("method", ["auto", "sft"])
def test_the_training_numbers_range_is_asked_for_and_kept(method, desk):
    draw = random.Random(3)
    write(desk.folder / "n.csv", [{"text": words(draw), "score": i / 8} for i in range(60)])
    ladder = ready(desk.task("llama", "regress", "n.csv", data={"instruction": ""}, method={"kind": method}))
    told = [float(row.label) for row in ladder.rows("train")]
    for contract in (ladder.asked, ladder.trained):
        assert (contract.low, contract.high) == (min(told), max(told))
        assert contract.instruction == f"Answer with a number from {min(told):.6g} to {max(told):.6g}."
