"""The loop: what it says, when it stops, what it refuses, and that stopping and going on changes no bit."""

import itertools
from types import SimpleNamespace

import pytest
import tiny
import torch

from burnish import store
from burnish.errors import CheckpointError, TrainError
from burnish.methods import regress, sft
from burnish.train import checkpoint, loop

SFT = ("sft", "language", "answers", "gpt2")


def weights(run):
    return {name: value.detach().clone() for name, value in run.model.trainable().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_it_says_everything_in_order(tmp_path_factory, tmp_path):
    run = tiny.run(*SFT, tmp_path_factory, tmp_path, validation=True, max_steps=5, evaluate_every=2, save_every=3)
    events = list(loop.fit(run))
    assert [(event.kind, event.step) for event in events] == [
        ("step", 1),
        ("step", 2),
        ("validated", 2),
        ("step", 3),
        ("saved", 3),
        ("step", 4),
        ("validated", 4),
        ("step", 5),
        ("validated", 5),
        ("saved", 5),
        ("finished", 5),
    ]
    assert [event.seconds for event in events] == sorted(event.seconds for event in events)
    steps = [event.numbers for event in events if event.kind == "step"]
    assert all(
        {"loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second", "memory", "steps", "epoch"} <= set(step)
        for step in steps
    )
    assert [step["epoch"] for step in steps] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3])
    assert sum(step["tokens"] for step in steps) == events[-1].numbers["tokens"] == run.progress.tokens
    assert sum(step["tokens"] for step in steps[:3]) == sum(tiny.LENGTHS)
    assert events[-1].numbers["reason"] == "all steps done"
    assert all(event.to_json()["kind"] == event.kind for event in events)


def test_an_epoch_sees_every_row_once(tmp_path_factory, tmp_path):
    run = tiny.run(*SFT, tmp_path_factory, tmp_path)
    seen = [row for step in (1, 2, 3) for batch in run.batches.step(step) for row in batch.examples]
    assert sorted(seen) == [f"row{i}" for i in range(8)]
    other = [row for step in (4, 5, 6) for batch in run.batches.step(step) for row in batch.examples]
    assert sorted(other) == sorted(seen)
    assert other != seen


def broken(method, at, kind):
    """The method with a loss, or only a gradient, that is not finite from step `at` on."""
    calls = itertools.count(1)

    def loss(outputs, batch, settings):
        told = method.loss(outputs, batch, settings)
        if not torch.is_grad_enabled() or next(calls) < at:
            return told
        if kind == "gradient":  # the root of 0 is 0 and its slope is infinite
            return told + torch.sqrt((outputs.logits - outputs.logits.detach()).abs().sum())
        return told * float(kind)

    return SimpleNamespace(weight=method.weight, loss=loss)


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["nan", "inf", "gradient"])
def test_what_is_not_finite_never_reaches_a_weight(kind, clip, tmp_path_factory, tmp_path):
    run = tiny.run(*SFT, tmp_path_factory, tmp_path, save_every=2, clip=clip)
    run.method = broken(sft, 3, kind)
    events = loop.fit(run)
    while next(events).kind != "saved":
        pass
    before = weights(run)
    with pytest.raises(TrainError, match=f"{'gradient' if kind == 'gradient' else 'loss'} of step 3") as caught:
        next(events)
    assert same(weights(run), before)
    named = [f"rows.jsonl:{i + 1}" for _, i in run.batches.drawn(3)]
    assert all(where in caught.value.where for where in named)
    assert caught.value.do
    found = checkpoint.newest(tmp_path, run.identity)
    assert found is not None
    assert found.step == 2
    assert same(found.tensors("weights"), before)


def scripted(script):
    """regress, but the validation losses are these."""
    told = iter(script)

    def loss(outputs, batch, settings):
        if torch.is_grad_enabled():
            return regress.loss(outputs, batch, settings)
        return torch.tensor(next(told) * len(batch.ids))

    return SimpleNamespace(weight=regress.weight, loss=loss)


@pytest.mark.parametrize(
    ("script", "patience", "last", "best"),
    [
        ([3, 2, 2.5, 2.6, 1, 1], 2, 4, 2),
        ([3, 2, 2, 2, 1, 1], 2, 4, 2),  # equal is no improvement
        ([3, 2, 2.5, 1, 4, 5], 2, 6, 4),
        ([3, 4, 5, 6, 7, 8], 0, 6, 1),  # never stops early, still keeps the best
        ([6, 5, 4, 3, 2, 1], 1, 6, 6),
        ([1, 2, 0, 0, 0, 0], 1, 2, 1),
    ],
)
def test_it_stops_early_and_keeps_the_best(script, patience, last, best, tmp_path_factory, tmp_path):
    run = tiny.run(
        "regress", "number", "number", "gpt2", tmp_path_factory, tmp_path,
        validation=True, max_steps=6, evaluate_every=1, save_every=100, patience=patience,
    )  # fmt: skip
    run.method = scripted(script)
    at = {}
    for event in loop.fit(run):
        if event.kind == "validated":
            at[event.step] = weights(run)
            assert event.numbers["valid_loss"] == pytest.approx(script[event.step - 1])
    assert max(at) == last
    assert (run.progress.best_step, run.progress.best) == (best, pytest.approx(script[best - 1]))
    assert same(weights(run), at[best])
    assert event.kind == "finished"
    assert event.numbers["best_step"] == best
    assert ("no improvement" in event.numbers["reason"]) == (last < 6)


def test_a_run_that_stopped_early_stays_stopped(tmp_path_factory, tmp_path):
    """Killed after its last save and before its artifact: the second sitting trains no further."""
    case = ("regress", "number", "number", "gpt2", tmp_path_factory, tmp_path)
    own = {"validation": True, "max_steps": 6, "evaluate_every": 1, "patience": 2}
    first = tiny.run(*case, **own)
    first.method = scripted([3, 2, 2.5, 2.6])
    list(loop.fit(first))
    again = tiny.run(*case, **own)
    again.method = scripted([])
    assert [event.kind for event in loop.fit(again)] == ["resumed", "finished"]
    assert same(weights(first), weights(again))
    assert again.progress.best_step == 2


RESUMED = [
    *((case, adapter, {}) for case in tiny.CASES for adapter in ("full", "lora")),
    *((case, adapter, {"dropout": 0.2}) for case in tiny.CASES[:3] for adapter in ("full", "lora")),
    (tiny.CASES[0], "full", {"precision": "bf16"}),
    (tiny.CASES[0], "lora", {"precision": "bf16", "dropout": 0.1}),
    (tiny.CASES[0], "full", {"optimizer": "sgd"}),
    (tiny.CASES[0], "full", {"optimizer": "adam", "l1": 0.01}),
    (tiny.CASES[0], "full", {"optimizer": "adafactor", "precision": "bf16"}),
    (tiny.CASES[2], "full", {"micro_tokens": 20}),
]
KIND = {"sft": "bart", "selfsupervised": "bert", "dpo": "llama", "classify": "gpt2", "regress": "albert"}


@pytest.mark.parametrize(("case", "adapter", "own"), RESUMED)
def test_stopping_at_step_3_equals_not_stopping(case, adapter, own, tmp_path_factory, tmp_path):
    method, head, target, _ = case
    common = {"adapter": adapter, "validation": True, "max_steps": 6, "evaluate_every": 2, "save_every": 3, **own}

    def begin(into):
        return tiny.run(method, head, target, KIND[method], tmp_path_factory, tmp_path / into, **common)

    whole = begin("whole")
    straight = list(loop.fit(whole))
    killed = begin("killed")
    events = loop.fit(killed)
    while next(events).step < 5:  # two steps past the checkpoint: they are done again
        pass
    events.close()
    torch.manual_seed(99)
    torch.randn(17)  # another process has another random state
    again = begin("killed")
    rest = list(loop.fit(again))
    assert (rest[0].kind, rest[0].step) == ("resumed", 3)
    assert same(weights(whole), weights(again))
    kept = ("loss", "learning_rate", "grad_norm", "valid_loss", "tokens", "best_step")
    told = [
        [(event.kind, event.step, *(event.numbers.get(name) for name in kept)) for event in events if event.step > 3]
        for events in (straight, rest)
    ]
    assert told[0] == told[1]
    assert (whole.progress.best, whole.progress.tokens) == (again.progress.best, again.progress.tokens)


def test_a_stop_is_saved_and_said(tmp_path_factory, tmp_path, monkeypatch):
    whole = tiny.run(*SFT, tmp_path_factory, tmp_path / "whole")
    list(loop.fit(whole))
    run = tiny.run(*SFT, tmp_path_factory, tmp_path / "stopped", save_every=100)
    monkeypatch.setattr(store, "_stop", False)
    kinds = []
    for event in loop.fit(run):
        kinds.append((event.kind, event.step))
        if kinds[-1] == ("step", 2):
            store.request_stop()
    assert kinds == [("step", 1), ("step", 2), ("saved", 2), ("stopped", 2)]
    monkeypatch.setattr(store, "_stop", False)
    again = tiny.run(*SFT, tmp_path_factory, tmp_path / "stopped", save_every=100)
    assert next(iter(loop.fit(again))).kind == "resumed"
    list(loop.fit(again))
    assert same(weights(whole), weights(again))


def test_another_runs_checkpoint_is_refused(tmp_path_factory, tmp_path):
    list(loop.fit(tiny.run(*SFT, tmp_path_factory, tmp_path)))
    other = tiny.run(*SFT, tmp_path_factory, tmp_path)
    other.identity = {"run": "another"}
    with pytest.raises(CheckpointError, match="another run"):
        list(loop.fit(other))


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_dropout_changes_the_losses_and_is_a_function_of_the_step(adapter, tmp_path_factory, tmp_path):
    def losses(into, dropout):
        run = tiny.run(*SFT, tmp_path_factory, tmp_path / into, adapter=adapter, dropout=dropout, learning_rate=0.02)
        return [event.numbers["loss"] for event in loop.fit(run) if event.kind == "step"]

    dry = losses("dry", 0.0)
    assert losses("a", 0.3) == losses("b", 0.3) != dry


def test_clipping_bounds_the_gradient_and_says_its_norm(tmp_path_factory, tmp_path):
    """SGD with rate 1, no momentum, no decay: the weights move by exactly the clipped gradient."""
    moved = {}
    for clip in (0.0, 0.05):
        own = {"optimizer": "sgd", "betas": [0.0, 0.9], "weight_decay": 0.0, "learning_rate": 1.0, "warmup": 0}
        own |= {"schedule": "constant", "max_steps": 1, "clip": clip}
        run = tiny.run(*SFT, tmp_path_factory, tmp_path / str(clip), **own)
        before = weights(run)
        norm = next(loop.fit(run)).numbers["grad_norm"]
        moved[clip] = sum(float((value - before[name]).pow(2).sum()) for name, value in weights(run).items()) ** 0.5
    assert moved[0.0] == pytest.approx(norm, rel=1e-3)
    assert moved[0.05] == pytest.approx(0.05, rel=1e-3)
    assert norm > 0.05


def test_l1_pulls_weights_to_zero(tmp_path_factory, tmp_path):
    """The same step with and without: matrices differ by rate x strength x sign(w), vectors not at all."""
    after = {}
    for l1 in (0.0, 0.01):
        own = {"optimizer": "sgd", "betas": [0.0, 0.9], "weight_decay": 0.0, "learning_rate": 0.1, "warmup": 0}
        own |= {"schedule": "constant", "max_steps": 1, "clip": 0.0, "l1": l1}
        run = tiny.run(*SFT, tmp_path_factory, tmp_path / str(l1), **own)
        before = weights(run)
        list(loop.fit(run))
        after[l1] = weights(run)
    for name, value in before.items():
        pull = 0.1 * 0.01 * value.sign() if value.ndim >= 2 else torch.zeros_like(value)
        torch.testing.assert_close(after[0.0][name] - after[0.01][name], pull, rtol=0, atol=2e-7)


def test_bf16_arithmetic_keeps_float32_weights(tmp_path_factory, tmp_path):
    """Pure bf16 loses small updates: AdamW at 1e-5 must still move every matrix (correctness.md, row 9)."""
    run = tiny.run(*SFT, tmp_path_factory, tmp_path, precision="bf16", learning_rate=1e-5, warmup=0)
    before = weights(run)
    list(loop.fit(run))
    assert all(value.dtype == torch.float32 for value in weights(run).values())
    assert all(not torch.equal(value, before[name]) for name, value in weights(run).items())


@pytest.mark.slow
def test_a_toy_problem_is_learned(tmp_path_factory, tmp_path):
    """A flat loss is a failing test: eight rows are learned by heart."""
    for method, head, target, kinds in tiny.CASES:
        kind = kinds[0]
        own = {"max_steps": 40, "learning_rate": 5e-3, "batch_size": 8, "dropout": 0.0}
        run = tiny.run(method, head, target, kind, tmp_path_factory, tmp_path / f"{method}-{head}", **own)
        losses = [event.numbers["loss"] for event in loop.fit(run) if event.kind == "step"]
        assert losses[-1] < 0.5 * losses[0], (method, head)


def test_a_validation_that_is_no_number_is_never_the_best(tmp_path_factory, tmp_path):
    run = tiny.run(
        "regress", "number", "number", "gpt2", tmp_path_factory, tmp_path,
        validation=True, max_steps=4, evaluate_every=1, patience=0,
    )  # fmt: skip
    run.method = scripted([float("nan"), 3, 2, float("inf")])
    list(loop.fit(run))
    assert (run.progress.best_step, run.progress.best) == (3, 2.0)


def test_any_seed_will_do(tmp_path_factory, tmp_path):
    run = tiny.run(*SFT, tmp_path_factory, tmp_path, seed=2**63 - 1, max_steps=2)
    assert [event.kind for event in loop.fit(run)][-1] == "finished"
