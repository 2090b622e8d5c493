"""A moment of training sets the arithmetic right: measured on the same rows, remembered, and without a trace."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import transformers

from burnish import kinds, taskfile
from burnish.models import base as models
from burnish.models import load
from burnish.models.base import Head
from burnish.tokens.batch import Batches
from burnish.tokens.rows import Tokens
from burnish.train import calibrate, costs, describe, estimate, loop, rehearse
from burnish.train.rehearse import Trial
from burnish.train.timetable import timetable

CUT = 2048, False
PAIRS = [("llama", "full"), ("gpt2", "lora"), ("llama", "qlora"), ("bert", "full"), ("t5", "lora"), ("bart", "full")]


@pytest.fixture
def made(tmp_path_factory, tmp_path, monkeypatch):
    """A function that makes a Trial of a tiny model, and the Work and Machine of its run."""
    monkeypatch.setattr(rehearse, "WORTH", 0.0)
    monkeypatch.setenv("BURNISH_HOME", str(tmp_path))

    def make(kind="llama", rung="lora", head=None, method="sft", **train):
        base = models.inspect(str(tiny.folder(kind, tmp_path_factory)))
        task = taskfile.resolve({"train": {"batch_size": 8, "max_steps": 20, "precision": "fp32", **train}})
        head = head or Head("language")
        draw = np.random.default_rng(0)
        rows = [row(draw.integers(5, 30), kind in tiny.PAIRS, head, number) for number in range(40)]
        batches = Batches(rows, 8, 0, 0, 0)
        method = kinds.load("methods", method)
        times = timetable(task.train, len(rows), base.width, 1e-3)
        trial = Trial(base, head, rung, task, method, method.Settings(), times, batches)
        short = describe.skeleton(base, head, rung, task)
        cpu = torch.device("cpu")
        held = replace(batches, rows=rows[:4])
        work = describe.work(short, task, times, batches, held, False, cpu, describe.quantised(rung))
        return trial, work, calibrate.machine(work.shape, work.element, cpu)

    return make


def row(size, source, head, number):
    ids = np.arange(5, 5 + size, dtype=np.int32) % 20
    label = None if head.kind == "language" else number % head.size
    weights = np.ones(size, np.float32)
    return Tokens(ids, weights, f"e{number}", f"rows:{number}", source=ids if source else None, label=label)


@pytest.mark.parametrize(("kind", "rung"), PAIRS)
def test_a_step_takes_what_was_measured_of_it(kind, rung, made, monkeypatch):
    """A clock that says one second at every look: a pass takes 1 s, an update 1 s, a step of equal work 2 s."""
    trial, work, machine = made(kind, rung)
    ticks = iter(range(10**6))
    monkeypatch.setattr(calibrate, "clock", lambda: float(next(ticks)))
    found = rehearse.paced(trial, work, machine, CUT)
    once = rehearse._portion(work, replace(trial.batches, micro_tokens=CUT[0]), 2)
    assert costs.seconds(once, *CUT, found)["step"] == pytest.approx(2, rel=0.3)  # rows of a step differ in length
    assert costs.updating(work, machine) * found.updates == pytest.approx(1)
    assert found.pace != machine.pace


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_what_is_rehearsed_is_as_large_as_what_is_trained(kind, tmp_path_factory):
    """An output layer that is tied to the embedding is one with it here too."""
    base = models.inspect(str(tiny.folder(kind, tmp_path_factory)))
    own = load.dummy(base, Head("language"), load.configured(base, Head("language"), base.folder))
    assert load.count(own.hf.parameters()) == load.count(load.load(base, Head("language")).hf.parameters())


def test_heads_for_classes_are_rehearsed_too(made):
    trial, work, machine = made("bert", "full", Head("classes", ("a", "b")), "classify")
    assert rehearse.paced(trial, work, machine, CUT).pace != 1


def test_pairs_bring_a_reference_of_nothing_and_their_plan_counts_the_reference(made):
    _, work, machine = made()
    told = costs.seconds(replace(work, refers=True), *CUT, machine)
    plain = costs.seconds(work, *CUT, machine)
    assert told["all"] - plain["all"] == pytest.approx(told["reference"])
    assert 0 < told["reference"] < plain["training"]


def test_everything_said_of_a_run_grows_with_its_pace(made):
    _, work, machine = made()
    slow = replace(machine, pace=2 * machine.pace, updates=2 * machine.updates)
    told, twice = (costs.seconds(work, *CUT, item) for item in (machine, slow))
    assert twice["step"] == pytest.approx(2 * told["step"])
    assert twice["validation"] == pytest.approx(2 * told["validation"])
    assert twice["saving"] == told["saving"]


def test_what_was_rehearsed_is_said_with_a_smaller_bound(made):
    _, work, machine = made()
    told = [estimate.estimate(work, replace(machine, pace=pace)).seconds.error for pace in (1.0, 1.1)]
    assert told == [costs.FIT.untried, costs.FIT.seconds]


def test_it_is_remembered_until_something_changes(made, monkeypatch):
    trial, work, machine = made()
    found = rehearse.paced(trial, work, machine, CUT)
    calls = []
    monkeypatch.setattr(rehearse, "_measured", lambda *told: calls.append(1) or {"pace": 3.0, "updates": 4.0})
    assert rehearse.paced(trial, work, machine, CUT) == found
    assert not calls
    assert rehearse.paced(trial, work, machine, (CUT[0], True)).pace == 3
    lighter = replace(trial, task=replace(trial.task, train=replace(trial.task.train, optimizer="sgd")))
    assert rehearse.paced(lighter, work, machine, CUT).updates == 4
    fewer = replace(trial, batches=replace(trial.batches, rows=trial.batches.rows[5:]))
    assert rehearse.paced(fewer, work, machine, CUT).pace == 3
    assert len(calls) == 3


def test_a_damaged_memory_is_measured_anew(made, tmp_path):
    trial, work, machine = made()
    rehearse.paced(trial, work, machine, CUT)
    (path,) = (tmp_path / "cache").glob("pace-*.json")
    path.write_text("[]")
    rehearse.paced(trial, work, machine, CUT)
    assert set(json.loads(path.read_text())) == {"pace", "updates"}


def test_an_architecture_that_cannot_be_rehearsed_is_left_to_the_arithmetic(made, monkeypatch):
    trial, work, machine = made()
    monkeypatch.setattr(loop, "gradient", lambda *told: 1 / 0)
    assert rehearse.paced(trial, work, machine, CUT) == machine


def test_what_would_take_too_long_is_left_to_the_arithmetic(made, monkeypatch):
    trial, work, machine = made()
    monkeypatch.setattr(loop, "gradient", lambda *told: pytest.fail("rehearsed"))
    slow = replace(machine, products=dict.fromkeys(machine.products, (1.0, 1.0, 1.0)))
    assert rehearse.paced(trial, work, slow, CUT) == slow


def test_a_run_of_a_moment_is_not_kept_waiting(made, monkeypatch):
    trial, work, machine = made()
    monkeypatch.setattr(loop, "gradient", lambda *told: pytest.fail("rehearsed"))
    monkeypatch.setattr(rehearse, "WORTH", 1e6)
    assert rehearse.paced(trial, work, machine, CUT) == machine


def test_random_numbers_are_drawn_afterwards_as_if_it_had_not_been(made):
    trial, work, machine = made()
    torch.manual_seed(5)
    rehearse.paced(trial, work, machine, CUT)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))


CONFIGS = [
    transformers.LlamaConfig(num_hidden_layers=9),
    transformers.GPT2Config(n_layer=9),
    transformers.Qwen3Config(num_hidden_layers=9, layer_types=["full_attention"] * 8 + ["sliding_attention"]),
    transformers.T5Config(num_layers=9, num_decoder_layers=7),
    transformers.BartConfig(encoder_layers=9, decoder_layers=5),
    transformers.AlbertConfig(num_hidden_layers=9),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_a_shortened_model_has_so_many_layers_and_its_own_widths(config):
    told = rehearse.shortened(config, 3)
    with torch.device("meta"):
        whole, short = (transformers.AutoModel.from_config(item) for item in (config, told))
    names = [name for name, _ in short.named_parameters()]
    blocks = {part for name in names for part in name.split(".") if part.isdigit()}
    assert blocks <= {"0", "1", "2"}
    shapes = dict(whole.named_parameters())
    assert all(shapes[name].shape == value.shape for name, value in short.named_parameters())
    assert rehearse.shortened(config, 9).to_dict() == config.to_dict()
    assert told.num_hidden_layers == 3


def test_a_small_model_is_rehearsed_whole_and_a_large_one_by_few_rows_and_layers(made):
    trial, work, machine = made(batch_size=16)
    deep = replace(work, shape=replace(work.shape, ids=replace(work.shape.ids, kept=30 * work.shape.ids.largest)))

    def small(speed):
        rates = replace(machine, products=dict.fromkeys(machine.products, (speed,) * 3), call=0.0, stream=1e15)
        return rehearse._small(trial, deep, (64, False), rates)

    sizes = [(few.batch_size, layers) for few, layers in map(small, (1e15, 1e8, 1e3))]
    assert sizes[0] == (16, 30)
    assert sizes[1][0] < 16
    assert sizes[2] == (sizes[1][0], rehearse.FEWEST)
