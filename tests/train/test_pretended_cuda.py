"""Whole steps on a GPU that is not there: no operation mixes devices, the losses are the CPU's, and few things wait.

What runs is all of burnish but the kernels; attention's is replaced by plain PyTorch (see tests/pretend.py).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pretend
import pytest
import tiny
import torch

import burnish
from burnish.generate import engine
from burnish.models import flash, kernels, liger, placement, quantize, quicken
from burnish.models.model import Model
from burnish.train import distributed, loop
from burnish.train.optim import Masters

ROOM = {"fp32": 2e-5, "bf16": 2e-2}  # sums in another order; 8 bits
CASES = {  # every kind of model, method and adapter once, and every method with packs and without
    "sft": ("sft", "language", "answers", "llama", "full"),
    "sft-pairs": ("sft", "language", "answers", "t5", "lora"),
    "sft-gpt2": ("sft", "language", "answers", "gpt2", "qlora"),
    "dpo": ("dpo", "language", "pairs", "llama", "lora"),
    "masked": ("selfsupervised", "language", "document", "bert", "full"),
    "spans": ("selfsupervised", "language", "document", "bart", "lora"),
    "classes": ("classify", "classes", "classes", "albert", "full"),
    "padded": ("classify", "multi", "multi", "bart", "full"),
    "number": ("regress", "number", "number", "llama", "qlora"),
}


KEPT = (flash.found_for, quantize._levels, quantize._fours, quantize._dynamic)  # one device is not the next one's


@pytest.fixture(autouse=True)
def plainly(monkeypatch: Any) -> Iterator[None]:
    monkeypatch.setattr(flash, "WAYS", [("plain", lambda: flash.plain)])
    for known in KEPT:
        known.cache_clear()
    yield
    for known in KEPT:
        known.cache_clear()


def losses(
    case: str, precision: str, into: Any, factory: Any, there: bool, recompute: bool = False, **own: Any
) -> list[float]:
    """Of three steps and their validations."""
    method, head, target, kind, adapter = CASES[case]
    own = {"adapter": adapter, "precision": precision, "max_steps": 3, "validation": True, "save_every": 99} | own
    run = tiny.run(method, head, target, kind, factory, into / f"{there}", **own)
    quicken.install(run.model.hf)
    run.recompute = recompute
    run.share(replace(run.ranks, device=pretend.DEVICE if there else torch.device("cpu")))
    told = [*loop.fit(run)]
    assert run.model.device.type == ("cuda" if there else "cpu")
    return [event.numbers[name] for event in told for name in ("loss", "valid_loss") if name in event.numbers]


@pytest.mark.parametrize(
    ("case", "precision"), [*((case, "bf16") for case in CASES), *((case, "fp32") for case in ("sft", "dpo", "padded"))]
)
def test_a_run_is_the_cpus(case: str, precision: str, tmp_path_factory: Any, tmp_path: Any) -> None:
    wanted = losses(case, precision, tmp_path, tmp_path_factory, False)
    with pretend.cuda():
        told = losses(case, precision, tmp_path, tmp_path_factory, True)
    assert told == pytest.approx(wanted, rel=ROOM[precision], abs=ROOM[precision])


def test_activations_are_made_again(tmp_path_factory: Any, tmp_path: Any) -> None:
    wanted = losses("sft", "bf16", tmp_path, tmp_path_factory, False)
    with pretend.cuda():
        told = losses("sft", "bf16", tmp_path, tmp_path_factory, True, recompute=True)
    assert told == pytest.approx(wanted, rel=ROOM["bf16"], abs=ROOM["bf16"])


def test_a_pass_seldom_waits_for_the_device(tmp_path_factory: Any, tmp_path: Any, monkeypatch: Any) -> None:
    """A pass waits where the head's places are found, where transformers looks for packs and where an embedding drops
    its padding; a step for its loss and norm (and once for the harness: torch's clipping asks C++ for the device)."""
    before: list[int] = []
    with pretend.cuda() as gpu:
        plain = loop.gradient

        def counted(*told: Any) -> Any:
            before.append(gpu.waits.total())
            return plain(*told)

        monkeypatch.setattr(loop, "gradient", counted)
        losses("sft", "bf16", tmp_path, tmp_path_factory, True, max_steps=9, evaluate_every=99, save_every=99)
    assert 0 < before[5] - before[4] == before[4] - before[3] <= 7


def test_what_lies_on_two_devices_is_found() -> None:
    """The test above can fail."""
    with pretend.cuda() as gpu:
        there = torch.randn(3, 4).to("cuda").requires_grad_()
        with pytest.raises(pretend.Mixed):
            there + torch.ones(4)
        assert (there * 2.0 + torch.tensor(1.0)).device == pretend.DEVICE  # a plain number may come from the host
        there.relu().sum().backward()
        assert there.grad is not None
        assert there.grad.is_cuda
        assert torch.zeros(2, device=there.device).new_ones(1).is_cuda
        assert not gpu.has(there.cpu())
        with pytest.raises(TypeError):
            there.detach().numpy()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bart", "t5"])
def test_answers_are_the_cpus(kind: str, tmp_path_factory: Any) -> None:
    """Logits, likelihoods and greedy texts of a model that has moved."""
    given = tiny.rows(kind, "answers", tmp_path_factory)
    model: Model = tiny.model(kind, "language", tmp_path_factory).eval()

    def told(where: str) -> tuple[torch.Tensor, list[float], list[list[int]]]:
        model.to(where)
        odds = [value for value, _ in engine.likelihood(model, given, 256)]
        texts = engine.generate(model, [row.ids.tolist() for row in given], [0], 5, 256)
        with torch.no_grad():
            return model(tiny.collate(given, 2).to(where)).logits.cpu(), odds, [item.ids for item in texts]

    wanted = told("cpu")
    with pretend.cuda():
        found = told("cuda")
    torch.testing.assert_close(found[0], wanted[0])
    assert found[1] == pytest.approx(wanted[1], rel=1e-5)
    assert found[2] == wanted[2]


@pytest.mark.slow
def test_a_climb_runs_on_it(tmp_path_factory: Any, tmp_path: Any, monkeypatch: Any) -> None:
    """Plan, training, the artifact and answering of every rung, as a user gives the command."""
    monkeypatch.setattr(placement, "best", lambda: pretend.DEVICE)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (100 << 30, 140 << 30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a GPU that is not there")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setenv("BURNISH_HOME", str(tmp_path / "home"))
    draw, words = random.Random(0), ["amber", "brook", "cedar", "delta", "ember", "frost", "grove", "heron", "ivory"]
    rows = [f"{' '.join(draw.choices(words, k=9))},{'yes' if i % 2 else 'no'}" for i in range(80)]
    (tmp_path / "rows.csv").write_text("\n".join(["review,stars", *rows]))
    base, told = str(tiny.folder("llama", tmp_path_factory)), []
    burnish.init(str(tmp_path / "rows.csv"), out=str(tmp_path / "task.yaml"), base=base)
    short = ["train.max_steps=3", "rungs=[zero-shot, few-shot, lora]", "evaluate.resamples=100"]
    with pretend.cuda():
        burnish.climb(str(tmp_path / "task.yaml"), set=short, say=lambda _, event: told.append(event))
    (started,) = [event.numbers for event in told if event.kind == "started" and "kernels" in event.numbers]
    assert started["precision"] == "bf16"
    assert started["kernels"].endswith("attention by plain")
    assert started["needs"]["verdict"] == "fits"
    assert sum(event.kind == "step" for event in told) == 3


def test_masters_are_stepped_few_at_a_time(tmp_path_factory: Any, monkeypatch: Any) -> None:
    """As many as the largest takes room: the same bits as one at a time, in fewer calls of the optimizer."""

    def stepped() -> tuple[dict[str, torch.Tensor], int]:
        model = tiny.model("llama", "language", tmp_path_factory)
        model.to("cuda")
        masters = Masters(model.hf, model.trainable(), torch.bfloat16)
        optimizer = torch.optim.AdamW(masters.values.values(), lr=1e-2, fused=True)
        draw, calls = torch.Generator().manual_seed(0), 0
        plain = optimizer.step

        def counted(*told: Any) -> None:
            nonlocal calls
            calls += 1
            plain(*told)

        optimizer.step = counted
        for _ in range(2):
            for value in masters.values.values():
                value.grad = torch.randn(value.shape, generator=draw).to("cuda")
            masters.step(optimizer)
        return {name: value.cpu().clone() for name, value in masters.numbers.items()}, calls // 2

    with pretend.cuda():
        told, few = stepped()
        monkeypatch.setattr(Masters, "_together", lambda self, waiting: [[name] for name in waiting])
        wanted, many = stepped()
    assert (few, many) == (13, 22)
    assert all(torch.equal(told[name], wanted[name]) for name in wanted)


def test_one_process_plans_for_the_device_it_trains_on(monkeypatch: Any) -> None:
    """It took the CPU's precision and memory for a model on a GPU."""
    monkeypatch.setattr(placement, "best", lambda: pretend.DEVICE)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with distributed.begin() as ranks:
        assert ranks.device == pretend.DEVICE


def test_what_the_steps_are_done_by_is_said(tmp_path_factory: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(liger, "version", lambda _: "0.8.5")
    monkeypatch.setattr(liger, "proven", lambda *_: frozenset(liger.STEPS))
    hf = tiny.model("llama", "language", tmp_path_factory).hf
    with pretend.cuda():
        assert quicken.said(hf, pretend.DEVICE, torch.bfloat16) == "liger-kernel 0.8.5; attention by plain"
        told = quicken.said(hf, pretend.DEVICE, torch.float32)
        assert told == "liger-kernel 0.8.5; attention by products of documents of like length"
    monkeypatch.setattr(kernels, "compiled", lambda: None)
    told = quicken.said(hf, torch.device("cpu"), torch.float32)
    assert told == "PyTorch's operations (no C++ compiler here)"
