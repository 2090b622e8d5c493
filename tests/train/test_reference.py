"""The reference is the model before its first step: worked out once, kept, and the same after a kill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

import burnish
from burnish import kinds, store
from burnish.errors import Interrupted
from burnish.methods import _losses
from burnish.models import load
from burnish.tokens.batch import join
from burnish.train import loop, reference
from burnish.train.distributed import Ranks
from burnish.train.run import Run

START = {"base": "tiny"}


def made(factory: Any, folder: Path, adapter: str = "full", **own: Any) -> Run:
    """A run over eight pairs that knows what it starts from."""
    run = tiny.run("dpo", "language", "pairs", "llama", factory, folder, adapter, save_every=1, validation=True, **own)
    run.start = dict(START)
    run.share(Ranks())
    return run


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BURNISH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(store, "_stop", False)
    return tmp_path / "home"


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_the_first_loss_is_ln_2_and_the_values_are_the_models_own(
    adapter: str, tmp_path: Path, tmp_path_factory: Any
) -> None:
    run = made(tmp_path_factory, tmp_path / "run", adapter)
    assert run.batches.shared
    with torch.no_grad():
        batch = join(list(run.batches.rows))
        wanted = _losses.answers(run.model.eval()(batch), batch)[0]
    losses = [event.numbers["loss"] for event in loop.fit(run) if event.kind == "step"]
    assert losses[0] == pytest.approx(np.log(2), abs=1e-5)
    assert losses[-1] < losses[0] - 0.01
    told = np.stack([row.reference for row in run.batches.rows])
    assert told == pytest.approx(wanted.numpy(), abs=1e-4)


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_a_base_that_is_read_late_shares_and_packs_as_one_read_at_once(
    adapter: str, tmp_path: Path, tmp_path_factory: Any
) -> None:
    """What is shown on the model is shown when it has its weights: before, it would be no and stay so."""
    run = made(tmp_path_factory, tmp_path / "run", adapter)
    late = load.load(run.model.base, run.model.head, dropout=0.0, outlined=True)
    kinds.load("adapters", adapter).attach(late, {}, 0.0, 3)
    run.model, run.batches = late, replace(run.batches, packed=False, shared=False)
    run.share(Ranks())
    assert run.batches.shared
    assert run.batches.packed


def test_it_is_worked_out_once(home: Path, tmp_path: Path, tmp_path_factory: Any, monkeypatch: Any) -> None:
    first = made(tmp_path_factory, tmp_path / "a")
    list(loop.fit(first))
    kept = sorted(path.parent.name for path in home.glob("cache/*/reference.npy"))
    assert len(kept) == 2  # training and validation rows
    passes: list[str] = []
    plain = reference._likelihoods
    monkeypatch.setattr(reference, "_likelihoods", lambda run, name: passes.append(name) or plain(run, name))
    again = made(tmp_path_factory, tmp_path / "b", learning_rate=1e-2)
    list(loop.fit(again))
    assert passes == []
    for row, other in zip(first.batches.rows, again.batches.rows, strict=True):
        assert row.reference.tolist() == other.reference.tolist()

    other = made(tmp_path_factory, tmp_path / "c")
    other.start = {"base": "another"}
    list(loop.fit(other))
    assert passes == ["batches", "validation"]

    damaged = next(home.glob("cache/*/reference.npy"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x7f")
    list(loop.fit(made(tmp_path_factory, tmp_path / "d")))
    list(loop.fit(replace(other, folder=tmp_path / "e", batches=other.batches)))
    assert len(passes) == 3


@pytest.mark.parametrize("adapter", ["full", "lora"])
@pytest.mark.parametrize("forgotten", [False, True])
def test_a_killed_run_ends_with_the_same_bits(
    adapter: str, forgotten: bool, home: Path, tmp_path: Path, tmp_path_factory: Any
) -> None:
    """forgotten: the cache is gone too; the model before its first step is made again, and says the same."""
    whole = made(tmp_path_factory, tmp_path / "whole", adapter)
    list(loop.fit(whole))
    stopped = made(tmp_path_factory, tmp_path / "run", adapter)
    events = loop.fit(stopped)
    while (event := next(events)).kind != "saved" or event.step < 3:
        pass
    events.close()
    if forgotten:
        for path in home.glob("cache/*/*"):
            path.unlink()
    resumed = made(tmp_path_factory, tmp_path / "run", adapter)
    assert next(event for event in loop.fit(resumed) if event.kind == "resumed").step == 3
    list(loop.fit(resumed))
    for name, value in whole.model.trainable().items():
        assert torch.equal(value, resumed.model.trainable()[name]), name


def test_a_stop_meanwhile_trains_nothing(tmp_path: Path, tmp_path_factory: Any) -> None:
    run = made(tmp_path_factory, tmp_path / "run")
    store.request_stop()
    with pytest.raises(Interrupted, match="before the first step"):
        list(loop.fit(run))
    assert not (tmp_path / "run").exists()


def test_memory_that_runs_out_meanwhile_halves_what_is_run_at_once(
    tmp_path: Path, tmp_path_factory: Any, monkeypatch: Any
) -> None:
    run = made(tmp_path_factory, tmp_path / "run")
    plain, calls = _losses.answers, []

    def greedy(outputs: Any, batch: Any) -> Any:
        calls.append(batch.rows)
        if len(calls) == 1:
            raise MemoryError
        return plain(outputs, batch)

    monkeypatch.setattr(_losses, "answers", greedy)
    events = list(loop.fit(run))
    assert "Out of memory" in events[0].numbers["text"]
    assert calls[1] < calls[0]
    losses = [event.numbers["loss"] for event in events if event.kind == "step"]
    assert losses[0] == pytest.approx(np.log(2), abs=1e-5)


def test_a_plan_counts_the_pass_of_the_reference(tmp_path: Path, tmp_path_factory: Any) -> None:
    rows = [{"prompt": f"say {n}", "chosen": f"yes, {n}", "rejected": f"no, {n} it is"} for n in range(30)]
    store.write_jsonl(tmp_path / "pairs.jsonl", rows)
    task = {
        "goal": {"task": "prefer"},
        "data": {"files": [str(tmp_path / "pairs.jsonl")], "near_duplicates": 0, "on_problem": "drop"},
        "base": {"name": str(tiny.folder("llama", tmp_path_factory))},
    }
    store.write_json(tmp_path / "task.yaml", task)  # JSON is YAML
    phases = burnish.plan(str(tmp_path / "task.yaml"), rung="lora")["rungs"]["lora"]["phases"]
    assert 0 < phases["reference"] < phases["training"]
