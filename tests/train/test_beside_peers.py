"""The arithmetic of benchmarks/train.py: which rows, which tokens, which ratios, and what survives a failure."""

import argparse
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Any:
    if not FOLDER.exists():
        pytest.skip("the benchmarks are not beside the tests")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("train")


@given(some.lists(some.integers(1, 10), max_size=30))
def test_packs_hold_every_row_once_and_no_more_than_their_budget(bench: ModuleType, lengths: list[int]) -> None:
    made = importlib.import_module("engines.job").packs(lengths, 10)
    assert sorted(i for pack in made for i in pack) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in pack) <= 10 for pack in made)


def test_the_same_rows_are_known_in_other_packs_and_other_rows_are_not(bench: ModuleType) -> None:
    rows = [[5, 6], [7], [8, 9]]
    assert bench.fingerprint([[8, 9, 7], [5, 6, 0, 0]]) == bench.fingerprint(rows)
    assert bench.fingerprint([[8, 9, 7], [5, 7]]) != bench.fingerprint(rows)
    assert bench.fingerprint([[8, 9, 7]]) != bench.fingerprint(rows)


def test_a_clock_counts_what_follows_the_first_step_and_then_stops(bench: ModuleType) -> None:
    torch = pytest.importorskip("torch")
    job = importlib.import_module("engines.job")
    clock = job.Clock(job.Job("ours", "", "", "lora", 8, 1, 2, steps=2, rate=1e-3, began=0.0))
    clock.read(torch.tensor([[4, 5, 0]]))
    clock.step()
    clock.read(torch.tensor([[4, 5, 6], [7, 0, 0]]))
    with pytest.raises(job.Enough):
        clock.step()
    assert clock.told()["tokens"] == 4
    assert clock.told()["seconds"] > 0


def row(number: int, rate: float, memory: float = 1e9) -> dict[str, Any]:
    told = {"round": number, "rate": rate, "work": rate, "memory": memory, "first": 1.0, "others": 0.0, "stolen": 0.0}
    return told | {"facts": "", "curve": [], "gemm": 4e11}


def test_a_failed_round_is_shown_and_the_others_are_compared_with_their_own_round(
    bench: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = [row(1, 100.0), row(2, 300.0), row(3, 200.0)]
    peer = [{"round": 1, "failed": "killed"}, row(2, 100.0), row(3, 100.0, 4e9)]
    found = bench.table("lora", {"ours": ours, "trl-best": peer})
    assert found["tokens_per_second_ratio"]["trl-best"] == 2.5
    assert found["peak_memory_ratio"]["trl-best"] == 0.25
    assert "rounds failed 100 100" in capsys.readouterr().out


def test_a_peer_that_always_fails_is_shown_with_its_message(
    bench: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    found = bench.table("lora", {"ours": [row(1, 1.0)], "litgpt": [{"round": 1, "failed": "no such thing"}]})
    assert found["tokens_per_second_ratio"] == {}
    assert "failed: no such thing" in capsys.readouterr().out


def test_what_is_kept_is_not_measured_again_but_what_failed_is(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def measure(name: str, *_: Any) -> dict[str, Any]:
        asked.append(name)
        return {"failed": "killed"} if len(asked) == 2 else row(0, 1.0)

    monkeypatch.setattr(bench, "measure", measure)
    job = {"model": "", "rows": "", "adapter": "lora", "pack": 8, "packs": 1, "batch": 1, "rate": 1.0}
    monkeypatch.setattr(bench, "given", lambda *_: job)
    told = argparse.Namespace(engines="ours,trl-best", rounds=2, steps=1, limit=1)
    path = str(tmp_path / "out.jsonl")
    bench.rounds_of("lora", told, 1, tmp_path, bench.Kept(path, resume=False))
    assert asked == ["ours", "trl-best", "trl-best", "ours"]  # who begins changes
    with pytest.raises(SystemExit, match="resume"):
        bench.Kept(path, resume=False)
    with open(path, "a") as file:
        file.write('{"key": ["lora", 1')  # cut short
    found = bench.rounds_of("lora", told, 1, tmp_path, bench.Kept(path, resume=True))
    assert asked[4:] == ["trl-best"]
    assert len(bench.Kept(path, resume=True).rows) == 4
    assert not any("failed" in item for items in found.values() for item in items)


def test_an_engine_runs_only_where_it_is_comparable(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BURNISH_PEER_LITGPT", raising=False)
    fits = {name: [item for item in bench.ENGINES if not bench.unfit(item, case)] for name, case in bench.CASES.items()}
    assert fits["classify"] == ["ours", "trainer"]
    assert "trainer" not in fits["lora-memory"]
    assert "trl-best" in fits["lora-memory"]
    assert "litgpt" not in fits["lora"]


def test_a_setting_of_an_engine_is_overridden_and_an_unknown_one_refused(bench: ModuleType) -> None:
    assert bench.engine("trainer:attention=eager+rows=2")["how"]["rows"] == 2
    assert bench.engine("trainer:attention=eager")["how"]["attention"] == "eager"
    assert bench.ENGINES["trainer"]["how"]["attention"] == "sdpa"
    with pytest.raises(SystemExit, match="atention"):
        bench.engine("trainer:atention=eager")


def test_rows_are_the_same_every_time_with_the_stated_lengths(bench: ModuleType) -> None:
    made = bench.rows(1000)
    assert made == bench.rows(1000)
    lengths = sorted(len(ids) for ids, _, _ in made)
    assert 150 < sum(lengths) / len(lengths) < 200
    assert lengths[-1] <= bench.LONGEST
    assert min(token for ids, _, _ in made for token in ids) > 0  # 0 is padding


def test_a_difference_in_what_is_learned_is_held_against_the_seeds(bench: ModuleType) -> None:
    noise = bench.learned.difference({"ours": [1.0, 1.2], "p": [1.1, 1.3]}, "p")
    assert noise["difference"] == pytest.approx(-0.1)
    assert noise["within"] == 1
    assert bench.learned.difference({"ours": [1.0, 1.001], "p": [1.1, 1.101]}, "p")["within"] == 0
