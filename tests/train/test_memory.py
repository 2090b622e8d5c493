"""Memory that runs out: the step is done again with less at once, the update is the same, nothing is lost."""

import os
import subprocess
import sys
import weakref
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import tiny
import torch

from burnish.errors import TrainError
from burnish.models import quicken
from burnish.train import checkpoint, loop, memory

SFT = ("sft", "language", "answers", "llama")
MESSAGES = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    RuntimeError("could not create a primitive"),
    RuntimeError("std::bad_alloc"),
]


@pytest.mark.parametrize("problem", MESSAGES, ids=lambda problem: type(problem).__name__)
def test_every_allocators_words_are_known(problem):
    assert memory.ran_out(problem)


@pytest.mark.parametrize("problem", [RuntimeError("shape mismatch"), ValueError("not enough memory"), KeyError("x")])
def test_other_errors_are_not_taken_for_it(problem):
    assert not memory.ran_out(problem)


def losses(events):
    return [event.numbers["loss"] for event in events if event.kind == "step"]


def holding(run, tokens, problem=MESSAGES[2]):
    """A model that fails when more than `tokens` are run at once, or, unless it recomputes, more than half of that."""
    real, seen = run.model.forward, []

    def forward(batch):
        room = tokens if run.model.hf.is_gradient_checkpointing or not torch.is_grad_enabled() else tokens // 2
        seen.append(batch.ids.numel())
        if batch.ids.numel() > room:
            raise problem
        return real(batch)

    run.model.forward = forward
    return seen


COMMON = {"batch_size": 8, "max_steps": 3, "validation": True, "save_every": 2, "clip": 0.0}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("problem", MESSAGES, ids=lambda problem: type(problem).__name__)
def test_a_step_that_does_not_fit_is_cut_finer_and_stays_the_same(problem, packed, tmp_path_factory, tmp_path):
    whole = tiny.run(*SFT, tmp_path_factory, tmp_path / "whole", **COMMON)
    straight = list(loop.fit(whole))
    run = tiny.run(*SFT, tmp_path_factory, tmp_path / "tight", **COMMON)
    run.batches = replace(run.batches, packed=packed)
    seen = holding(run, 80 if packed else 140, problem)
    events = list(loop.fit(run))
    warned = [event for event in events if event.kind == "warned"]
    assert len(warned) >= 2  # 8 rows, 130 tokens in all, or 248 with padding: halved until 40, or 70, are left
    assert all(event.kind == "warned" for event in events[: len(warned)])  # it learns once, not at every step
    assert all("Out of memory" in event.numbers["text"] for event in warned)
    assert not run.recompute
    assert losses(events) == pytest.approx(losses(straight), rel=1e-5)
    for name, value in run.model.trainable().items():
        torch.testing.assert_close(value, whole.model.trainable()[name], rtol=1e-3, atol=1e-5)
    assert max(seen[len(warned) :]) <= (80 if packed else 140)


def test_half_a_gradient_is_forgotten_before_the_step_is_done_again(tmp_path_factory, tmp_path):
    """It fails at the last micro-batch, when the others have left their gradients."""
    own = {**COMMON, "micro_tokens": 62, "max_steps": 1}
    whole = tiny.run(*SFT, tmp_path_factory, tmp_path / "whole", **own)
    straight = next(loop.fit(whole))
    run = tiny.run(*SFT, tmp_path_factory, tmp_path / "tight", **own)
    cut, real, calls = len(run.batches.step(1)), run.model.forward, []

    def forward(batch):
        calls.append(batch)
        if len(calls) == cut:
            raise MESSAGES[2]
        return real(batch)

    run.model.forward = forward
    step = next(event for event in loop.fit(run) if event.kind == "step")
    assert cut > 1
    assert step.numbers["grad_norm"] == pytest.approx(straight.numbers["grad_norm"], rel=1e-5)


def test_one_row_that_does_not_fit_is_recomputed_and_then_named(tmp_path_factory, tmp_path):
    run = tiny.run(*SFT, tmp_path_factory, tmp_path / "a", **COMMON)
    holding(run, 40)  # the longest row has 31: it fits only without its activations
    events = list(loop.fit(run))
    assert run.recompute
    assert "backward pass" in [event for event in events if event.kind == "warned"][-1].numbers["text"]
    run = tiny.run(*SFT, tmp_path_factory, tmp_path / "b", **COMMON)
    events = loop.fit(run)
    while next(events).kind != "saved":
        pass
    holding(run, 30)
    with pytest.raises(TrainError, match="one row") as caught:
        list(events)
    assert "rows.jsonl:2" in caught.value.where  # the one with 31 tokens
    assert "max_length" in caught.value.do
    assert checkpoint.newest(tmp_path / "b", run.identity).step == 2


def test_batches_that_cannot_be_cut_end_in_an_error(tmp_path_factory, tmp_path):
    run = tiny.run(*SFT, tmp_path_factory, tmp_path, **COMMON)
    run.lean = lambda: None
    holding(run, 20)
    with pytest.raises(TrainError, match="Out of memory"):
        list(loop.fit(run))


def test_a_validation_that_does_not_fit_is_cut_finer(tmp_path_factory, tmp_path):
    whole = tiny.run(*SFT, tmp_path_factory, tmp_path / "whole", **COMMON)
    told = [event.numbers["valid_loss"] for event in loop.fit(whole) if event.kind == "validated"]
    run = tiny.run(*SFT, tmp_path_factory, tmp_path / "tight", **COMMON)
    real = run.model.forward

    def forward(batch):
        if not torch.is_grad_enabled() and batch.ids.numel() > 70:
            raise MESSAGES[1]
        return real(batch)

    run.model.forward = forward
    events = list(loop.fit(run))
    assert [event.numbers["valid_loss"] for event in events if event.kind == "validated"] == pytest.approx(told)
    assert [event.kind for event in events].count("warned") == 2
    assert run.model.training


def test_what_was_given_up_is_remembered(tmp_path_factory, tmp_path):
    """A run that is killed goes on as finely cut as it was, and so with the same bits."""
    own = {**COMMON, "max_steps": 5, "dropout": 0.2}
    whole = tiny.run(*SFT, tmp_path_factory, tmp_path / "whole", **own)
    holding(whole, 40)
    list(loop.fit(whole))
    first = tiny.run(*SFT, tmp_path_factory, tmp_path / "killed", **own)
    holding(first, 40)
    events = loop.fit(first)
    while next(events).kind != "saved":
        pass
    events.close()
    again = tiny.run(*SFT, tmp_path_factory, tmp_path / "killed", **own)
    rest = list(loop.fit(again))
    assert [event.kind for event in rest].count("warned") == 0
    assert (again.progress.micro_tokens, again.recompute) == (whole.progress.micro_tokens, True)
    for name, value in again.model.trainable().items():
        assert torch.equal(value, whole.model.trainable()[name])


def other(problem):
    raise problem


def test_another_error_is_not_tried_again(tmp_path_factory, tmp_path):
    run = tiny.run(*SFT, tmp_path_factory, tmp_path, **COMMON)
    run.model.forward = lambda batch: other(RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        list(loop.fit(run))


@dataclass(eq=False)
class Saved:
    value: torch.Tensor


@pytest.mark.parametrize(("dropout", "precision", "adapter"), [(0.0, "fp32", "full"), (0.2, "bf16", "lora")])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "bart", "t5"])
def test_recomputing_changes_no_bit_and_keeps_less(kind, dropout, precision, adapter, tmp_path_factory, tmp_path):
    """As training runs them: packed, with fused parts, with dropout."""
    case = ("classify", "classes", "classes") if kind in tiny.ENCODERS else SFT[:3]
    own, kept, grads = {"dropout": dropout, "precision": precision, "adapter": adapter}, {}, {}
    for recompute in (False, True):
        run = tiny.run(*case, kind, tmp_path_factory, tmp_path / str(recompute), **own)
        quicken.install(run.model.hf)
        run.batches = replace(run.batches, packed=run.model.packs)
        run.recompute = recompute
        run.lean()
        run.model.train()
        alive, sizes = weakref.WeakSet(), []

        def pack(value, alive=alive):
            alive.add(saved := Saved(value.detach()))  # an operation's own output would keep the operation
            return saved

        run.model.register_forward_hook(
            lambda *told, alive=alive, sizes=sizes: sizes.append(sum(saved.value.nbytes for saved in alive))
        )
        masters = loop.Masters(run.model.hf, run.model.trainable(), run.precision)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.value):
            loop.gradient(run, masters, 1)
        kept[recompute] = sum(sizes)
        grads[recompute] = {name: value.grad for name, value in masters.values.items() if value.grad is not None}
    assert kept[True] < 0.5 * kept[False]
    if kind in ("bart", "t5"):  # what layers send back to the encoder or a position table is added in another order
        assert tiny.distance(grads[False], grads[True]) < (1e-6 if precision == "fp32" else 1e-2)
    else:
        assert all(torch.equal(value, grads[True][name]) for name, value in grads[False].items())


def test_a_model_that_cannot_recompute_is_left_as_it_is(tmp_path_factory, tmp_path):
    run = tiny.run("classify", "classes", "classes", "albert", tmp_path_factory, tmp_path)
    run.recompute = True
    assert list(loop.fit(run))[-1].kind == "finished"
    assert not run.recompute


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import pytest, tiny, torch, resource
from pathlib import Path
from burnish.train import loop, memory

class Factory:
    def getbasetemp(self):
        return Path({folder!r})

torch.set_num_threads(1)
torch.manual_seed(0)
run = tiny.run("sft", "language", "answers", "llama", Factory(), Path({folder!r}) / "run",
               batch_size=8, max_steps=3, clip=0.0)
hungry = run.model.forward

def forward(batch):  # 2 MB a token, kept until backward
    out = hungry(batch)
    ballast = torch.ones(batch.ids.numel(), 512 * 1024, requires_grad=True)
    out.hidden = None if out.hidden is None else out.hidden + 0 * (ballast * ballast).sum() / ballast.numel()
    if out.hidden is None:
        out._logits = out.logits + 0 * (ballast * ballast).sum() / ballast.numel()
    return out

run.model.forward = forward
if {limit!r} == "address":
    now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 700_000_000, resource.RLIM_INFINITY))
    events = list(loop.fit(run))
else:
    with memory.guarded(700_000_000):
        events = list(loop.fit(run))
print([event.kind for event in events].count("warned"), run.progress.step, run.progress.micro_tokens)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits on memory are Linux's")
@pytest.mark.parametrize("limit", ["address", "guarded"])
def test_a_real_allocator_that_refuses_is_survived(limit, tmp_path):
    """Eight rows (248 tokens with padding) take over a gigabyte; 700 MB are allowed."""
    code = SCRIPT.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path), limit=limit)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    warned, step, size = map(int, done.stdout.split())
    assert warned >= 1
    assert step == 3
    assert 0 < size < 248
