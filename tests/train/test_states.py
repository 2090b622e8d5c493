"""What frozen layers say is kept where that pays, is the same to the bit, and its loss or damage changes no number."""

import errno
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file

from burnish import store, taskfile
from burnish.models import base, bottom
from burnish.models.bottom import Bottom
from burnish.records import Example, Where
from burnish.tokens.batch import Batches
from burnish.tokens.contract import Contract
from burnish.train import checkpoint, costs, describe, optim, states, tune
from burnish.train.job import Job, prepare
from burnish.train.needs import needs
from burnish.train.terms import Machine, Rows, Work

TEXTS = ["Once there was a king.", "He had a fox.", "The fox had a tail, 9 feet long!", "So it was.", "And is."]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("BURNISH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BURNISH_STATES", "on")
    return tmp_path / "home"


@pytest.fixture
def job(tmp_path_factory, tmp_path, home):
    """A function that makes a Job of the rung partial in a folder of its own, on the same five rows, three epochs."""
    rows = [Example("document", Where("tales.txt", i + 1), text=text) for i, text in enumerate(TEXTS)]
    for split, some in (("train", rows[:3]), ("validation", rows[3:])):
        store.write_jsonl(tmp_path / "data" / f"{split}.jsonl", [row.to_json() for row in some])

    def make(name="a", kind="llama", rung="partial", layers=1, targets=(), **own):
        found = base.inspect(str(tiny.folder(kind, tmp_path_factory)))
        told = {"epochs": 3, "batch_size": 2, "save_every": 2, "evaluate_every": 2, "dropout": 0.0} | own
        contract = Contract("write", "document", "document", "raw", "", 96, "split")
        asked = {"train": told, "goal": {"task": "write"}, "partial": {"layers": layers}}
        asked["lora"] = {"targets": list(targets)}
        return Job(
            taskfile.resolve(asked), rung, found, contract, "selfsupervised", {},
            tmp_path / "data", tmp_path / name, {"run": "r"}, {},
        )  # fmt: skip

    return make


def losses(events):
    return [event.numbers.get("loss", event.numbers.get("valid_loss")) for event in events if event.kind in SAID]


SAID = ("step", "validated")


def warnings(events):
    return [event.numbers["text"] for event in events if event.kind == "warned"]


def weights(job):
    return load_file(job.folder / "artifact" / "model.safetensors")


def kept(home):
    return sorted(home.glob("cache/*/states.npy"))


@pytest.fixture
def without(job, monkeypatch):
    """The events and weights of the same run with nothing kept."""

    def make(**own):
        with monkeypatch.context() as patch:
            patch.setenv("BURNISH_STATES", "off")
            plain = job("plain", **own)
            return list(tune.tune(plain)), weights(plain)

    return make


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_ends_in_the_same_weights(kind, precision, job, without, home):
    """To the bit in bfloat16; float32 may sum a product of few rows in another order: 1e-5 after three epochs."""
    mine = job(kind=kind, precision=precision)
    events, (plain, theirs) = list(tune.tune(mine)), without(kind=kind, precision=precision)
    assert len(kept(home)) == 2
    started = next(event for event in events if event.kind == "started").numbers["needs"]["states"]
    assert (started["layers"], started["splits"], started["reason"]) == (1, ["train", "validation"], "")
    room = {"fp32": 1e-5, "bf16": 0.0}[precision]
    assert losses(events) == pytest.approx(losses(plain), rel=room, abs=0)
    for name, value in weights(mine).items():
        assert (value - theirs[name]).abs().max() <= room


def test_lora_on_upper_layers_has_a_frozen_bottom_too(job, monkeypatch):
    own = {"rung": "lora", "targets": ["layers.1.mlp.down_proj", "layers.1.self_attn.q_proj"]}
    events = list(tune.tune(job(**own)))
    assert next(event for event in events if event.kind == "started").numbers["needs"]["states"]["layers"] == 1
    monkeypatch.setenv("BURNISH_STATES", "off")
    assert losses(events) == pytest.approx(losses(tune.tune(job("plain", **own))), rel=1e-5, abs=0)


def test_the_frozen_layers_run_once_a_row(job, monkeypatch):
    rows, real = [], Bottom.states
    ran = []
    monkeypatch.setattr(Bottom, "states", lambda self, batch: rows.append(batch.rows) or real(self, batch))
    install = Bottom.install

    def watched(self):
        done = install(self)
        inner = bottom.stack(self.model.hf.base_model)[1][0].mlp
        inner.register_forward_hook(lambda _, told, out: ran.extend([1] * (out.shape[1] > 3)))  # not the proofs
        rows.clear()
        return done

    monkeypatch.setattr(Bottom, "install", watched)
    list(tune.tune(job()))
    assert sum(rows) == len(TEXTS)
    assert len(ran) == len(rows)
    ran.clear()
    list(tune.tune(job("again")))
    assert not ran
    assert not rows  # found on disk


@pytest.mark.parametrize("cold", [False, True])
def test_a_stopped_run_goes_on_with_the_same_bits(cold, job, home, monkeypatch):
    whole = job("whole")
    straight = list(tune.tune(whole))
    stopped = job("stopped")
    events, first = tune.tune(stopped), []
    for event in events:
        first.append(event)
        if event.kind == "saved":
            events.close()
            break
    assert checkpoint.identity_of(stopped.folder / "checkpoints")["states"] == ["train", "validation"]
    if cold:
        for path in kept(home):
            shutil.rmtree(path.parent)
    monkeypatch.delenv("BURNISH_STATES")  # it goes on as it began, whatever would be chosen now
    rest = list(tune.tune(stopped))
    assert len(kept(home)) == 2
    assert losses(first) + losses(rest) == losses(straight)
    for name, value in weights(stopped).items():
        assert torch.equal(value, weights(whole)[name])


def test_a_full_disk_keeps_nothing_and_goes_on(job, without, home, monkeypatch):
    def full(*told):
        raise OSError(errno.ENOSPC, "No space left on device")

    real = states._write
    calls = []

    def second(stream, *told):
        yield from real(stream, *told)
        calls.append(1)
        if len(calls) == 2:
            full()

    monkeypatch.setattr(states, "_write", second)
    mine = job()
    events = list(tune.tune(mine))
    assert any("validation" in text and "No space left" in text for text in warnings(events))
    assert len(kept(home)) == 1
    assert not list(home.glob("cache/*/.states*"))
    assert checkpoint.identity_of(mine.folder / "checkpoints")["states"] == ["train"]
    assert losses(events) == pytest.approx(losses(without()[0]), rel=1e-5, abs=0)


def test_older_files_make_room(job, home, monkeypatch):
    list(tune.tune(job(batch_size=2)))
    first = kept(home)
    taken = sum(path.stat().st_size for path in first)
    monkeypatch.setattr(states, "SHARE", taken * 1.5 / shutil.disk_usage(home).free)
    monkeypatch.setattr(states, "saving", lambda *told: states.Saving(1, ("train",)))
    list(tune.tune(job("b", precision="bf16" if optim.precision("auto", torch.device("cpu")) == "fp32" else "fp32")))
    assert len(kept(home)) < 3
    assert set(kept(home)) - set(first)


@pytest.mark.parametrize("how", ["flip", "cut"])
def test_damage_is_seen_said_and_mended(how, job, home):
    first = list(tune.tune(job()))
    path = kept(home)[0]
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.unlink()
    path.write_bytes(data if how == "flip" else data[:-4])
    events = list(tune.tune(job("b")))
    assert ["changed" in text for text in warnings(events)] == [True]
    assert losses(events) == losses(first)


def test_a_stop_while_they_run_trains_nothing(job, home, monkeypatch):
    monkeypatch.setattr(store, "_stop", True)
    events = list(tune.tune(job()))
    assert (events[-1].kind, events[-1].step) == ("stopped", 0)
    assert not kept(home)


def test_what_passes_more_than_one_tensor_is_run_and_said(job, home, monkeypatch):
    monkeypatch.setattr(Bottom, "install", lambda self: False)
    mine = job()
    events = list(tune.tune(mine))
    assert ["cannot be told apart" in text for text in warnings(events)] == [True]
    assert "states" not in checkpoint.identity_of(mine.folder / "checkpoints")
    assert events[-1].kind == "finished"


@pytest.mark.parametrize(
    ("own", "reason"),
    [({"kind": "gpt2", "dropout": 0.1}, "dropout"), ({"kind": "bert"}, "drawn anew"), ({}, "")],
)
def test_why_nothing_is_kept(own, reason, job):
    needed = needs(job(**own), prepare(job(**own)))
    assert needed.states["layers"] == 1
    assert reason in needed.states["reason"]
    assert bool(needed.states["splits"]) == (not reason)


@pytest.mark.parametrize("own", [{"rung": "full"}, {"rung": "lora"}, {"layers": 2}, {"kind": "t5"}])
def test_where_no_layer_is_frozen_nothing_is_said(own, job):
    assert needs(job(**own), prepare(job(**own))).states == {}


def test_the_name_knows_rows_weights_and_cut(tmp_path_factory, home):
    model = tiny.model("llama", "language", tmp_path_factory, "partial", layers=1)
    rows = tiny.rows("llama", "document", tmp_path_factory)
    other = replace(rows[0], ids=rows[0].ids[::-1].copy())
    told = {states.key(Bottom(model, 1), *asked) for asked in ((rows, 64), (rows, 32), ([other, *rows[1:]], 64))}
    told.add(states.key(Bottom(model, 2), rows, 64))
    with torch.no_grad():
        model.hf.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    told.add(states.key(Bottom(model, 1), rows, 64))
    assert len(told) == 5


def test_rows_bring_their_own_states(tmp_path_factory, home):
    model = tiny.model("llama", "language", tmp_path_factory, "partial", layers=1).eval()
    rows = tiny.rows("llama", "document", tmp_path_factory)
    given, found = Batches(rows, 3, 40, 0, 0, packed=True), []

    def working():
        found.append((yield from states.keep(Bottom(model, 1), given)))

    assert {event.kind for event in working()} == {"phase"}
    (batches,), seen = found, 0
    for step in (1, 2, 3):
        for batch in batches.step(step):
            plain = Bottom(model, 1).states(replace(batch, states=None))
            assert (batch.states - plain).abs().max() <= 1e-6 * plain.abs().max()
            seen += batch.rows
    assert seen == len(rows)
    assert [len(row.ids) for row in batches.rows[2:4]] == [len(row.ids) for row in rows[2:4]]


# --- the choice ----------------------------------------------------------------------------------------------

FAST = {(1, 1): (1e11, 1e11, 1e11)}


def choice(tmp_path_factory, epochs=3.0, machine=None, **own):
    """The saving for 30 rows of 40 tokens on a small model, and its Work."""
    model = tiny.model("llama", "language", tmp_path_factory, "partial", layers=1)
    lengths = np.full(5000, 40)
    rows = Rows(lengths, 0 * lengths, lengths)
    held = rows.where(np.arange(500))
    work = Work(describe.shape(model), rows, held, 10, round(500 * epochs), 1, 1, round(epochs * 200_000), **own)
    above = replace(work, shape=describe.shape(model, above=1))
    machine = machine or Machine(1e10, 1e9, 1e12, FAST, write=1e9, read=1e9)
    return states.saving(work, above, 1, 32, machine, (1024, False)), work


def test_it_is_kept_where_later_passes_pay_for_it(tmp_path_factory, monkeypatch):
    monkeypatch.delenv("BURNISH_STATES", raising=False)
    told, work = choice(tmp_path_factory, 30)
    assert told.splits == ("train",)  # validation is one pass: nothing is read twice
    assert told.bytes == work.train.ids.sum() * 32 * 4
    more, _ = choice(tmp_path_factory, 60)
    assert more.seconds > 2 * told.seconds > 0
    assert choice(tmp_path_factory, 1)[0].splits == ()
    assert "longer" in choice(tmp_path_factory, 1)[0].reason


def test_a_slow_or_small_disk_keeps_nothing(tmp_path_factory, monkeypatch):
    monkeypatch.delenv("BURNISH_STATES", raising=False)
    slow = Machine(1e10, 1e9, 1e12, FAST, write=1e5, read=1e5)
    assert "longer" in choice(tmp_path_factory, 30, slow)[0].reason
    small = Machine(1e10, 1e9, 9e7, FAST, write=1e9, read=1e9)
    assert "free disk" in choice(tmp_path_factory, 30, small)[0].reason


def test_the_switch(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("BURNISH_STATES", "off")
    assert "off" in choice(tmp_path_factory, 30)[0].reason
    monkeypatch.setenv("BURNISH_STATES", "on")
    assert choice(tmp_path_factory, 1)[0].splits == ("train", "validation")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_a_plan_counts_what_only_runs_forward(kind, tmp_path_factory):
    model = tiny.model(kind, "language", tmp_path_factory, "partial", layers=1)
    below = bottom.stack(model.hf.base_model)[1][0]
    many = sum(not list(module.children()) for module in below.modules())
    whole, above = describe.shape(model), describe.shape(model, above=1)
    assert (whole.idle, above.idle, above.calls) == (many, 0, whole.calls - many)
    full = describe.shape(tiny.model(kind, "language", tmp_path_factory))
    assert (full.idle, full.calls) == (0, whole.calls)
    rows = Rows(*(np.full(100, 40) for _ in range(3)))
    machine = Machine(1e10, 1e9, 1e12, FAST)
    said = [costs.seconds(Work(shape, rows, rows, 10, 10, 1, 1, 4000), 1024, False, machine) for shape in (whole, full)]
    assert said[0]["step"] < said[1]["step"]
    assert said[0]["validation"] == said[1]["validation"]
