"""Costs are sums over the stored records, priced by a table that a person edits."""

import mmap
from dataclasses import replace

import pytest
import yaml

from burnish.errors import TaskError
from burnish.evaluate import cost
from burnish.records import Prediction, RungResult

TABLE = cost.Prices("EUR", machine_hour=3.6, watts=36.0, hosted={"far": cost.Hosted(1.0, 2.0)})
SAID = [
    Prediction("a", "", prompt_tokens=100, completion_tokens=2, seconds=0.5),
    Prediction("b", "", prompt_tokens=300, completion_tokens=4, seconds=1.5),
]


def test_running_is_the_mean_record_times_a_thousand():
    found = cost.running(SAID, 7, TABLE)
    assert found["prompt_tokens"] == pytest.approx(200_000)
    assert found["completion_tokens"] == pytest.approx(3_000)
    assert found["seconds"] == pytest.approx(1000)
    assert found["price"] == pytest.approx(1.0)  # 1,000 s at 3.6 an hour
    assert found["watt_hours"] == pytest.approx(10.0)
    assert found["hosted"] == {"far": pytest.approx(0.206)}
    assert found["memory"] == 7
    assert cost.running([], 7, TABLE) == {}


def test_making_is_priced_by_the_hour():
    assert cost.making(100, 5, 9, TABLE) == pytest.approx(
        {"seconds": 100, "tokens": 5, "memory": 9, "watt_hours": 1.0, "price": 0.1}
    )


def rung(name, seconds, each, prompt):
    said = [Prediction("a", "", prompt_tokens=prompt, completion_tokens=1, seconds=each)]
    told = {"making": cost.making(seconds, 0, 0, TABLE), "running": cost.running(said, 0, TABLE)}
    return RungResult(name, cost=told)


def test_break_even_by_hand():
    few, lora = rung("few-shot", 100, 0.5, 412), rung("lora", 1100, 0.1, 31)
    found = cost.break_even(lora, few)
    # making costs 1.0 more; a request 0.0004 less
    assert found.requests == pytest.approx(2500, abs=1)
    assert found.tokens == pytest.approx(381)
    assert "lora pays for itself after 2,500 requests: its prompts are 381 tokens shorter" in found.sentence("EUR")


def test_break_even_never_and_at_once():
    few, lora = rung("few-shot", 100, 0.1, 31), rung("lora", 1100, 0.5, 31)
    assert cost.break_even(lora, few).requests is None
    assert "never pays for itself" in cost.break_even(lora, few).sentence("EUR")
    assert cost.break_even(rung("lora", 50, 0.05, 9), few).requests == 0
    assert cost.break_even(replace(lora, cost={}), few) is None


def test_the_table_is_written_for_editing_and_the_tasks_own_goes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("BURNISH_HOME", str(tmp_path / "home"))
    first = cost.prices(tmp_path)
    assert first.machine_hour == yaml.safe_load((tmp_path / "home" / "prices.yaml").read_text())["machine_hour"]
    (tmp_path / "prices.yaml").write_text("currency: EUR\nmachine_hour: 2\nwatts: 300\n")
    own = cost.prices(tmp_path)
    assert (own.currency, own.machine_hour, own.watts, dict(own.hosted)) == ("EUR", 2.0, 300.0, {})


@pytest.mark.parametrize(
    "text",
    ["machine_hour: -1\nwatts: 3", "machine_hour: x\nwatts: 3", "watts: 3", "[]", "machine_hour: 1\nwatts: 1\nprize: 2",
     "hosted: {a: 3}\nmachine_hour: 1\nwatts: 1", "{"],
)  # fmt: skip
def test_a_bad_table_is_named(text, tmp_path):
    (tmp_path / "prices.yaml").write_text(text)
    with pytest.raises(TaskError, match="table of prices"):
        cost.prices(tmp_path)


def test_peak_memory_is_that_of_the_block():
    with cost.peak() as small:
        pass
    with cost.peak() as large:
        block = mmap.mmap(-1, 80 << 20)  # fresh pages: freed memory that Python still holds would hide them
        block.write(bytes(80 << 20))
    block.close()
    assert large.bytes > small.bytes + (50 << 20)
