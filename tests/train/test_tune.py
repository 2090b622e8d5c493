"""One rung from rows on disk to an artifact: what is cached, what is said, and what a second start keeps to."""

import json
from dataclasses import replace

import pytest
import tiny
import torch
from safetensors.torch import load_file

from burnish import artifact, store, taskfile
from burnish.errors import CheckpointError, ModelError, TrainError
from burnish.evaluate import predict
from burnish.models import base, places
from burnish.records import Example, Where
from burnish.task import Evaluate
from burnish.tokens.contract import Contract
from burnish.train import checkpoint, optim, tune
from burnish.train import job as jobs
from burnish.train.job import Job

TEXTS = ["Once there was a king.", "He had a fox.", "The fox had a tail, 9 feet long!", "So it was.", "And is."]


@pytest.fixture
def job(tmp_path_factory, tmp_path, monkeypatch):
    """A function that makes a Job in a folder of its own, on the same five rows."""
    monkeypatch.setenv("BURNISH_HOME", str(tmp_path / "home"))
    rows = [Example("document", Where("tales.txt", i + 1), text=text) for i, text in enumerate(TEXTS)]
    for split, some in (("train", rows[:3]), ("validation", rows[3:])):
        store.write_jsonl(tmp_path / "data" / f"{split}.jsonl", [row.to_json() for row in some])
    found = base.inspect(str(tiny.folder("llama", tmp_path_factory)))

    def make(name="a", rung="full", contract=None, **own):
        told = {"max_steps": 4, "epochs": 0, "batch_size": 2, "save_every": 2, "evaluate_every": 2} | own
        contract = contract or Contract("write", "document", "document", "raw", "", 96, "split")
        return Job(
            taskfile.resolve({"train": told, "goal": {"task": "write"}}), rung, found, contract, "selfsupervised", {},
            tmp_path / "data", tmp_path / name, {"run": "r"}, {},
        )  # fmt: skip

    return make


def steps(events):
    return [event.numbers["loss"] for event in events if event.kind == "step"]


def test_a_second_start_encodes_nothing(job, monkeypatch):
    first = list(tune.tune(job("a")))
    monkeypatch.setattr(jobs, "encode_all", lambda *told: pytest.fail("encoded again"))
    second = list(tune.tune(job("b", rung="full")))
    assert steps(first) == steps(second) != []
    monkeypatch.undo()


@pytest.mark.parametrize(("rung", "read"), [("lora", {"bf16"}), ("partial", {"bf16", "fp32"}), ("full", {"fp32"})])
def test_weights_are_read_in_the_type_they_keep(rung, read, job, monkeypatch):
    """Of a frozen base there are never four bytes a number: only what trains has a float32 master."""
    real, told = places.read, set()
    monkeypatch.setattr(places, "read", lambda name, place, dtype, *rows: told.add(dtype) or real(name, place, dtype))
    list(tune.tune(job(rung=rung, precision="bf16")))
    assert told == {optim.DTYPES[name] for name in read}


def test_an_artifact_answers_as_long_as_it_was_judged_by(job, monkeypatch):
    """evaluate.max_new_tokens holds for `predict` and `chat` too."""
    list(tune.tune(replace(job(), task=replace(job().task, evaluate=Evaluate(max_new_tokens=7)))))
    made, told = artifact.load(job().folder / "artifact"), []
    monkeypatch.setattr(predict, "Answerer", lambda *given: told.append(given[3]))
    predict.answerer(made)
    predict.answerer(made, Evaluate(max_new_tokens=9))
    assert told == [7, 9]


def test_another_contract_encodes_anew(job, monkeypatch):
    list(tune.tune(job("a")))
    real, calls = jobs.encode_all, []
    monkeypatch.setattr(jobs, "encode_all", lambda *told: calls.append(told) or real(*told))
    shorter = Contract("write", "document", "document", "raw", "", 20, "split")
    list(tune.tune(job("b", contract=shorter)))
    assert len(calls) == 2


def test_a_damaged_cache_is_said_and_mended(job, tmp_path):
    list(tune.tune(job("a")))
    for path in (tmp_path / "home" / "cache").glob("*/ids.npy"):
        path.write_bytes(b"no")
    events = list(tune.tune(job("b")))
    warned = [event.numbers["text"] for event in events if event.kind == "warned"]
    assert len(warned) == 2
    assert all("encoded again" in text and "ids.npy" in text for text in warned)
    assert events[-1].kind == "finished"


@pytest.mark.parametrize("machine", ["fp32", "bf16"])
def test_auto_precision_is_said_and_kept(job, machine, monkeypatch, tmp_path):
    """A run that is continued on another machine goes on as it began."""
    other = {"fp32": "bf16", "bf16": "fp32"}[machine]
    monkeypatch.setattr(optim, "precision", lambda wanted, device: machine)
    whole = list(tune.tune(job("whole")))
    events = tune.tune(job("stopped"))
    begun = []
    for event in events:
        begun.append(event)
        if event.kind == "saved":
            break
    events.close()
    monkeypatch.setattr(optim, "precision", lambda wanted, device: other)
    rest = list(tune.tune(job("stopped")))
    assert begun[0].numbers["precision"] == rest[0].numbers["precision"] == machine
    assert checkpoint.newest(tmp_path / "stopped" / "checkpoints").step == 4
    assert checkpoint.identity_of(tmp_path / "stopped" / "checkpoints")["precision"] == machine
    assert steps(whole) == [*steps(begun), *steps(rest)]
    files = [load_file(tmp_path / name / "artifact" / "model.safetensors") for name in ("whole", "stopped")]
    assert all(torch.equal(value, files[1][name]) for name, value in files[0].items())
    assert {value.dtype for value in files[0].values()} == {torch.float32}


def test_precision_changes_the_numbers(job):
    assert steps(tune.tune(job("a", precision="fp32"))) != steps(tune.tune(job("b", precision="bf16")))


def test_another_precision_is_refused_in_the_loop(job, tmp_path):
    events = tune.tune(job("a", precision="fp32"))
    while next(events).kind != "saved":
        pass
    events.close()
    with pytest.raises(CheckpointError, match="precision"):
        checkpoint.newest(tmp_path / "a" / "checkpoints", {"run": "r", "precision": "bf16"})


def test_what_happened_before_the_first_step_stays_in_the_log(job, tmp_path, monkeypatch):
    real = tune.load.load

    def tight(*told, **own):
        model = real(*told, **own)
        forward = model.forward

        def once(batch):
            if torch.is_grad_enabled() and batch.rows > 1:
                raise MemoryError
            return forward(batch)

        model.forward = once
        return model

    monkeypatch.setattr(tune.load, "load", tight)
    list(tune.tune(job("a")))
    rows = [json.loads(line) for line in (tmp_path / "a" / "events.jsonl").read_text().splitlines()]
    kinds = [row["kind"] for row in rows]
    assert kinds[0] == "warned"
    assert kinds.count("step") == 4


def test_memory_that_the_weights_do_not_fit_is_no_traceback(job, monkeypatch):
    def full(*told, **own):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    monkeypatch.setattr(tune.load, "load", full)
    with pytest.raises(TrainError, match="Out of memory"):
        list(tune.tune(job("a")))


def test_a_tokenizer_larger_than_the_model_is_told_with_a_row(job):
    made = job()
    few = replace(made, base=replace(made.base, vocabulary=20))
    with pytest.raises(ModelError, match="the model knows 20") as caught:
        list(tune.tune(few))
    assert "row " in caught.value.where
