"""What the checks share: how one is named and run, models, rows, clocks and peaks of a GPU."""

from __future__ import annotations

import gc
import json
import math
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[2]
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}  # bf16, dense, by NVIDIA
SIZES = {  # Llama shapes: width, inside, layers, heads, heads of keys, words
    "1b": (2048, 8192, 16, 32, 8, 128256),
    "8b": (4096, 14336, 32, 32, 8, 128256),
    "tiny": (64, 96, 2, 4, 2, 512),
}
Found = tuple[bool | None, str, dict[str, Any]]


class Skipped(Exception):
    """A check that this machine cannot run, with the reason."""


@dataclass(frozen=True)
class Check:
    """run: the function.  limit: seconds.  environment: variables that its process needs."""

    run: Callable[[bool], Found]
    limit: float
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def expected(self) -> str:
        return (self.run.__doc__ or "").splitlines()[0]


CHECKS: dict[str, Check] = {}


def check(limit: float, **environment: str) -> Callable[[Callable[[bool], Found]], Callable[[bool], Found]]:
    def put(function: Callable[[bool], Found]) -> Callable[[bool], Found]:
        CHECKS[function.__name__.strip("_").replace("_", "-")] = Check(function, limit, environment)
        return function

    return put


def run(name: str, tiny: bool) -> dict[str, Any]:
    """Run a check by name, and leave the device empty behind it."""
    try:
        ok, found, numbers = CHECKS[name].run(tiny)
        return {"ok": None if tiny and not torch().cuda.is_available() else ok, "found": found, "numbers": numbers}
    except Skipped as why:
        return {"skipped": str(why)}
    finally:
        gc.collect()
        if torch().cuda.is_available():
            torch().cuda.empty_cache()
            torch().cuda.reset_peak_memory_stats()


def traced(problem: BaseException) -> list[str]:
    return "".join(traceback.format_exception(problem)).splitlines()[-30:]


def torch() -> Any:
    """PyTorch, imported in the process that runs checks and not in the one that prints."""
    import torch

    return torch


def device() -> Any:
    from burnish.models import placement

    return placement.best()


def wait() -> float:
    """The time when the device is done."""
    if torch().cuda.is_available():
        torch().cuda.synchronize()
    return time.perf_counter()


def seconds(work: Callable[[], Any], times: int = 20) -> float:
    """Median seconds of a piece of work on the device, after three that do not count."""
    for _ in range(3):
        work()
    told = []
    for _ in range(times):
        start = wait()
        work()
        told.append(wait() - start)
    return statistics.median(told)


def peak() -> float:
    """Most bytes that tensors took on the device."""
    return float(torch().cuda.max_memory_allocated()) if torch().cuda.is_available() else 0.0


def fastest() -> float:
    """The device's dense bf16 operations a second as its maker says, or 0."""
    name = torch().cuda.get_device_name() if torch().cuda.is_available() else ""
    return next((rate for part, rate in PEAKS.items() if part in name), 0.0)


@contextmanager
def plainly(on: bool) -> Iterator[None]:
    """Within it, if on, liger's kernels are not used."""
    from burnish.models import liger

    with mock.patch.object(liger, "proven", return_value=frozenset()) if on else nullcontext():
        yield


def folder(size: str, into: Path) -> Path:
    """A model folder that has a configuration alone."""
    wide, inside, layers, heads, keys, words = SIZES[size]
    told = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": wide, "vocab_size": words}
    told |= {"intermediate_size": inside, "num_hidden_layers": layers, "num_attention_heads": heads}
    told |= {"num_key_value_heads": keys, "max_position_embeddings": 8192, "tie_word_embeddings": size == "1b"}
    (into / "config.json").write_text(json.dumps(told))
    return into


def rows(tokens: int, words: int) -> list[Any]:
    """Documents of log-normal lengths, median 127 (as benchmarks/train.py), all but the first two fifths answered."""
    import numpy as np

    from burnish.tokens.rows import Tokens

    draw, told, left = np.random.default_rng(0), [], tokens
    while left > 0:
        long = min(int(np.clip(draw.lognormal(math.log(127), 0.79), 8, 1022)), max(left, 8))
        weights = np.ones(long, np.float32)
        weights[: max(round(0.4 * long), 1)] = 0
        told.append(Tokens(draw.integers(5, words, long).astype(np.int32), weights, str(len(told)), ""))
        left -= long
    return told


class Trainer:
    """Steps of training as the loop takes them, on rows drawn for it: bf16, AdamW, masters in float32."""

    def __init__(self, size: str, rung: str, pack: int, packs: int, recompute: bool = False) -> None:
        from burnish import kinds
        from burnish.models import base, load, placement, quicken, shards
        from burnish.task import Train
        from burnish.tokens.batch import Batches
        from burnish.train import optim
        from burnish.train.run import Run
        from burnish.train.timetable import timetable

        with tempfile.TemporaryDirectory() as place:
            found = base.inspect(str(folder(size, Path(place))), random=True)
            head = base.Head("language")
            model = load.dummy(found, head, load.configured(found, head, found.folder), 0.0)
        model.hf.to(torch().bfloat16 if rung != "full" else torch().float32).to(placement.best())
        if rung == "qlora":
            shards.compress(model.hf, shards.linears(model.hf, True, frozenset()))
        if rung != "full":
            object.__setattr__(found, "random", False)  # adapters want a base that can be found again
            kinds.load("adapters", "lora").attach(model, {"rank": 16, "alpha": 32.0}, 0.0, 0)
        self.taken = quicken.install(model.hf)
        self.said = quicken.said(model.hf, model.device, torch().bfloat16)
        told = rows(pack * packs, SIZES[size][-1])
        train = Train(batch_size=len(told), max_steps=99, epochs=0, learning_rate=1e-5, warmup=0)
        batches = Batches(told, len(told), pack, 0, 0, packed=model.packs)
        method = kinds.load("methods", "sft")
        times = timetable(train, len(told), found.width, 1e-5)
        precision = torch().bfloat16
        rest = batches, None, Path(), {}, precision
        self.run = Run(model, method, method.Settings(), train, times, *rest, recompute=recompute)
        self.masters = optim.Masters(model.hf, model.trainable(), precision)
        self.optimizer = optim.build(self.masters.values, train)
        self.run.lean()
        model.train()
        self.tokens = sum(len(row.ids) for row in told)
        self.supervised = sum(float(row.weights.sum()) for row in told) / self.tokens
        self.parameters = sum(value.numel() for value in model.hf.parameters())
        self.losses: list[float] = []

    def work(self, rung: str) -> float:
        """Operations of products a token: 6 a weight, 4 where it is frozen, of the head only where there is a loss."""
        head = self.run.model.hf.get_output_embeddings().weight.numel()
        body = sum(value.numel() for value in self.run.model.hf.parameters() if value.ndim > 1) - head
        body -= 0 if self.run.model.hf.config.tie_word_embeddings else head  # the embedding's own is no product
        return (6 if rung == "full" else 4) * (body + head * self.supervised)

    def step(self) -> None:
        from burnish.train import loop

        micro, loss = loop.gradient(self.run, self.masters, 1 + len(self.losses))
        loop.update(self.run, self.masters, self.optimizer, 1 + len(self.losses), micro, loss)
        self.losses.append(loss)

    def rate(self, steps: int) -> float:
        """Tokens a second, the median step of several after two that do not count."""
        told = []
        for _ in range(steps + 2):
            start = wait()
            self.step()
            told.append(wait() - start)
        return self.tokens / statistics.median(told[2:])


class Factory:
    """What tests/tiny.py asks of pytest: a folder for its models."""

    place = Path(tempfile.gettempdir()) / "burnish-tiny"

    def getbasetemp(self) -> Path:
        self.place.mkdir(exist_ok=True)
        return self.place
