"""The checks of gpu.py: each says what it expects, and returns what it found and whether that is it.

A check is a function of `tiny`; its docstring's first line is what is expected.  It returns (ok, found, numbers).
"""

from __future__ import annotations

import gc
import importlib.util
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
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

    known = liger.proven
    if on:
        liger.proven = lambda *_: frozenset()  # type: ignore[assignment]
    try:
        yield
    finally:
        liger.proven = known


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


@check(60)
def machine(tiny: bool) -> Found:
    """a GPU, its name, and at least 60 % of its bf16 peak in one large product"""
    from importlib.metadata import version

    names = ("torch", "transformers", "triton", "liger-kernel", "flash-attn", "trl", "peft", "bitsandbytes")
    told = {}
    for name in names:
        try:
            told[name] = version(name)
        except Exception:
            told[name] = "absent"
    size = 256 if tiny else 8192
    a, b = (torch().randn(size, size, device=device(), dtype=torch().bfloat16) for _ in "ab")
    rate = 2 * size**3 / seconds(lambda: a @ b)
    share = rate / fastest() if fastest() else 0.0
    where = torch().cuda.get_device_name() if torch().cuda.is_available() else "no GPU"
    said = f"{where}: {rate / 1e12:.0f} TFLOP/s ({share:.0%} of its peak); "
    return share >= 0.6, said + ", ".join(f"{k} {v}" for k, v in told.items()), {"rate": rate, "versions": told}


@check(120)
def steps(tiny: bool) -> Found:
    """liger's four steps prove themselves in bf16 and float32 where liger-kernel is installed"""
    from burnish.models import liger

    dtypes = torch().bfloat16, torch().float32
    found = {str(dtype): sorted(liger.proven(device(), dtype)) for dtype in dtypes}
    said = [liger.said(device(), dtype) for dtype in dtypes]
    if importlib.util.find_spec("liger_kernel") is None:
        raise Skipped(said[0])
    why = {}
    for name, (trial, plain) in liger.STEPS.items():
        draw = torch().Generator().manual_seed(0)
        try:
            told = trial(lambda *shape, draw=draw: torch().randn(shape, generator=draw).to(device(), dtypes[0]), plain)
            pairs = zip(told[::2], told[1::2], strict=True)
            why[name] = [float((a.float() - b).abs().max() / b.abs().max()) for a, b in pairs]
        except Exception as problem:
            why[name] = f"{type(problem).__name__}: {problem}"[:300]
    fine = all(set(part) == set(liger.STEPS) for part in found.values())
    return fine, "; ".join(said) + ("" if fine else f"; {why}"), {"proven": found, "apart": why}


@check(180)
def attention(tiny: bool) -> Found:
    """PyTorch's varlen kernel for heads of 64 and 128, grouped, causal or not, windows; over 5 times the products"""
    from burnish.models import flash
    from burnish.models.attention import _Packed
    from burnish.models.layout import Spans

    where, half = device(), torch().bfloat16
    cases = [(64, 4, True, False), (128, 4, True, True), (128, 1, False, False), (64, 1, True, False)]
    found = {str(case): (flash.found_for(where, half, *case, True) or ("none",))[0] for case in cases}
    sizes = [len(row.ids) for row in rows(256 if tiny else 8192, 99)]
    ends = [0, *torch().tensor(sizes).cumsum(0).tolist()]
    spans = Spans(ends, ends, where)
    values = [torch().randn(ends[-1], heads, 64, device=where, dtype=half) for heads in (32, 8, 8)]
    q, k, v = (value.requires_grad_() for value in values)
    kernel = (flash.found_for(where, half, 64, 4, True, False, True) or ("", flash.plain))[1]
    ways = {
        "kernel": lambda: kernel(q, k, v, spans, True, None, 0.125),
        "products": lambda: _Packed.apply(q, k, v, None, spans, True, None, 0.125, 0.0),
    }
    times = {name: seconds(lambda way=way: way().sum().backward(), 5) for name, way in ways.items()}
    both = [way().detach().float() for way in ways.values()]
    apart = float((both[0] - both[1]).abs().max() / both[1].abs().max())
    ratio = times["products"] / times["kernel"]
    why = {}
    for name, make in flash.WAYS:
        try:
            why[name] = flash._proves(make(), *flash.TRIALS[0], where, half, *cases[0], True)
        except Exception as problem:
            why[name] = f"{type(problem).__name__}: {problem}"[:300]
    ok = all(name.startswith("PyTorch") for name in found.values()) and ratio > 5 and apart < 2e-2
    said = f"{', '.join(sorted(set(found.values())))}; {ratio:.1f} times the products, {apart:.1e} apart"
    return ok, said, {"found": found, "seconds": times, "apart": apart, "ways": why}


@check(300)
def losses(tiny: bool) -> Found:
    """three steps of every kind of model and method give the CPU's losses: float32 to 1e-4, bf16 to 2e-2"""
    import tiny as models

    worst: dict[str, float] = {}
    failed = []
    for precision, room in (("fp32", 1e-4), ("bf16", 2e-2)):
        for adapter in ("full", "lora"):
            for method, head, target, kind in models.PAIRINGS[:: 9 if tiny else 1]:
                case = f"{method} {head} {kind} {adapter} {precision}"
                told = [_losses(method, head, target, kind, adapter, precision, on) for on in (False, True)]
                apart = max(abs(a - b) / max(abs(a), 1) for a, b in zip(*told, strict=True))
                worst[precision] = max(worst.get(precision, 0.0), apart)
                if not apart <= room:
                    failed.append(f"{case} {apart:.1e}")
    said = ", ".join(f"{name} {value:.1e} apart" for name, value in worst.items())
    return not failed, f"{said}; beyond: {failed or 'none'}", {"worst": worst, "beyond": failed}


def _losses(method: str, head: str, target: str, kind: str, adapter: str, precision: str, there: bool) -> list[float]:
    import tiny as models

    from burnish.models import quicken
    from burnish.train import loop

    with tempfile.TemporaryDirectory() as place:
        own: dict[str, Any] = {"precision": precision, "max_steps": 3, "save_every": 99}
        run = models.run(method, head, target, kind, _Factory(), Path(place), adapter=adapter, **own)
        run.model.to(device() if there else "cpu")
        quicken.install(run.model.hf)
        run.share(replace(run.ranks, device=run.model.device))
        return [event.numbers["loss"] for event in loop.fit(run) if event.kind == "step"]


class _Factory:
    """What tests/tiny.py asks of pytest: a folder for its models."""

    place = Path(tempfile.gettempdir()) / "burnish-tiny"

    def getbasetemp(self) -> Path:
        self.place.mkdir(exist_ok=True)
        return self.place


@check(240)
def full(tiny: bool) -> Found:
    """bf16 full SFT of a 1B Llama shape, packs of 8,192: at least 45 % of the bf16 peak (no head where no loss is)"""
    return _speed("full", tiny, 0.45)


@check(240)
def lora(tiny: bool) -> Found:
    """LoRA r16 of the same: faster than full SFT in tokens a second, with liger at least as fast as without"""
    return _speed("lora", tiny, None)


def _speed(rung: str, tiny: bool, wanted: float | None) -> Found:
    trainer = Trainer("tiny" if tiny else "1b", rung, 256 if tiny else 8192, 2)
    told: dict[str, Any] = {"said": trainer.said, "tokens": trainer.tokens, "parameters": trainer.parameters}
    for name, plain in (("chosen", False), ("without liger", True)):
        with plainly(plain):
            rate = trainer.rate(1 if tiny else 6)
        told[name] = {"tokens_per_second": rate, "mfu": trainer.work(rung) * rate / fastest() if fastest() else 0}
    told |= {"peak": peak(), "losses": trainer.losses}
    if torch().cuda.is_available():
        told["reserved"] = torch().cuda.max_memory_reserved()
    one, other = told["chosen"], told["without liger"]
    said = f"{one['tokens_per_second']:,.0f} tokens/s ({one['mfu']:.1%}), without liger "
    said += f"{other['tokens_per_second']:,.0f} ({other['mfu']:.1%}), peak {peak() / 1e9:.1f} GB; {trainer.said}"
    fine = all(map(math.isfinite, trainer.losses)) and trainer.losses[-1] < trainer.losses[0]
    enough = one["mfu"] >= wanted if wanted else one["tokens_per_second"] >= 0.97 * other["tokens_per_second"]
    return fine and enough, said, told


@check(180)
def profile(tiny: bool) -> Found:
    """a step of 1B full SFT: the device idle for less than 5 % of it, element-wise work less than 15 %"""
    trainer = Trainer("tiny" if tiny else "1b", "full", 256 if tiny else 8192, 2)
    for _ in range(3):
        trainer.step()
    kinds = torch().profiler.ProfilerActivity
    on = torch().cuda.is_available()
    start = wait()
    with torch().profiler.profile(activities=[kinds.CUDA] if on else [kinds.CPU]) as made:
        trainer.step()
        whole = wait() - start
    told = made.key_averages()
    times = {row.key[:90]: (row.self_device_time_total if on else row.self_cpu_time_total) / 1e6 for row in told}
    busy, top = sum(times.values()), sorted(times.items(), key=lambda item: -item[1])[:25]
    light = sum(value for name, value in times.items() if "elementwise" in name or "Memcpy" in name or "copy" in name)
    idle = 1 - busy / whole
    said = f"step {whole * 1e3:.0f} ms, idle {idle:.1%}, element-wise {light / whole:.1%}; most: "
    said += ", ".join(f"{name[:40]} {value / whole:.1%}" for name, value in top[:4])
    return idle < 0.05 and light < 0.15 * whole, said, {"step": whole, "idle": idle, "top": top}


@check(120)
def nf4(tiny: bool) -> Found:
    """the CPU's codes, and values to 1e-6; making a weight anew under 10 % of a QLoRA step (0.95 of LoRA's speed)"""
    from burnish.models import quantize

    weight = torch().randn(
        4096 if not tiny else 64, 4096 if not tiny else 128, generator=torch().Generator().manual_seed(0)
    )
    here, there = quantize.quantize(weight), quantize.quantize(weight.to(device()))
    codes = bool((here.codes == there.codes.cpu()).float().mean() > 0.9999)
    both = (
        quantize.dequantize(here),
        quantize.dequantize(
            here.__class__(
                *(part.to(device()) for part in (here.codes, here.scales, here.steps, here.mean)),
                here.shape,
                here.block,
            )
        ).cpu(),
    )
    values = bool((both[0] - both[1]).abs().max() <= 1e-6)
    once = seconds(lambda: quantize.dequantize(there, torch().bfloat16))
    rates = {}
    for rung in ("lora", "qlora"):
        trainer = Trainer("tiny" if tiny else "1b", rung, 256 if tiny else 8192, 1)
        rates[rung] = trainer.rate(1 if tiny else 5)
        del trainer
        gc.collect()
    ratio = rates["qlora"] / rates["lora"]
    said = f"codes {'equal' if codes else 'differ'}, values {'equal' if values else 'differ'}; "
    said += (
        f"{weight.numel() / once / 1e9:.0f} G weights/s; QLoRA at {ratio:.2f} of LoRA's {rates['lora']:,.0f} tokens/s"
    )
    return codes and values and ratio > 0.9, said, {"dequantize": once, "rates": rates}


@check(120)
def generation(tiny: bool) -> Found:
    """greedy text of a decoder and an encoder-decoder equals the CPU's, likelihoods to 1e-4"""
    import tiny as models

    from burnish.generate import engine

    apart, same = 0.0, []
    for kind in ("llama", "gpt2", "bart", "t5"):
        given = models.rows(kind, "answers", _Factory())
        told = []
        for where in ("cpu", device()):
            model = models.model(kind, "language", _Factory()).eval().to(where)
            odds = [value for value, _ in engine.likelihood(model, given, 256)]
            texts = engine.generate(model, [row.ids.tolist() for row in given], [0], 12, 256)
            told.append((odds, [item.ids for item in texts]))
        apart = max(apart, *(abs(a - b) / max(abs(a), 1) for a, b in zip(told[0][0], told[1][0], strict=True)))
        same.append(told[0][1] == told[1][1])
    return all(same) and apart < 1e-4, f"texts equal: {same}; likelihoods {apart:.1e} apart", {"apart": apart}


@check(150)
def resume(tiny: bool) -> Found:
    """stopped and gone on ends with the bits of a run that was not, for adamw, adafactor (and adamw-8bit)"""
    import tiny as models

    from burnish.train import loop

    told = {}
    for optimizer in ("adamw", "adafactor", "adamw-8bit"):
        if optimizer == "adamw-8bit" and importlib.util.find_spec("bitsandbytes") is None:
            continue
        ends = []
        for stop in (0, 2):
            with tempfile.TemporaryDirectory() as place:
                for last in (stop, 4) if stop else (4,):
                    own = {"precision": "bf16", "max_steps": 4, "save_every": 1, "optimizer": optimizer}
                    run = models.run("sft", "language", "answers", "llama", _Factory(), Path(place), **own)
                    run.share(run.ranks)
                    for event in loop.fit(run):
                        if event.kind == "saved" and event.step == last and last < 4:
                            break
                ends.append({name: value.detach().cpu() for name, value in run.model.trainable().items()})
        told[optimizer] = all(torch().equal(value, ends[1][name]) for name, value in ends[0].items())
    return all(told.values()), f"equal bits: {told}", {"equal": told}


@check(120)
def memory(tiny: bool) -> Found:
    """a step that does not fit is done again, cut finer: at least one warning, the loss of small packs to 1e-3"""
    trainer = Trainer("tiny" if tiny else "1b", "lora", 256 if tiny else 4096, 2)
    trainer.step()
    wanted, warned = trainer.losses[0], []
    del trainer
    gc.collect()
    from burnish.train import loop
    from burnish.train import memory as out

    trainer = Trainer("tiny" if tiny else "1b", "lora", 256 if tiny else 1 << 20, 1)
    trainer.run.batches = replace(
        trainer.run.batches, rows=rows(512 if tiny else 8192, SIZES["tiny" if tiny else "1b"][-1])
    )
    trainer.run.batches = replace(trainer.run.batches, batch_size=len(trainer.run.batches.rows))
    if torch().cuda.is_available():
        torch().cuda.empty_cache()
        used, free = torch().cuda.memory_allocated(), torch().cuda.get_device_properties(0).total_memory
        torch().cuda.set_per_process_memory_fraction(min((used + 6e9) / free, 1.0))
    try:
        work = out.within(partial(loop.gradient, trainer.run, trainer.masters, 1), trainer.run.smaller)
        while True:
            warned.append(next(work).numbers["text"])
    except StopIteration as done:
        loss = done.value[1]
    finally:
        if torch().cuda.is_available():
            torch().cuda.set_per_process_memory_fraction(1.0)
    apart = abs(loss - wanted) / wanted
    return (
        bool(warned) and apart < 1e-3,
        f"{len(warned)} warnings, {apart:.1e} apart; {warned[-1:]}",
        {"warned": warned},
    )


@check(400)
def large(tiny: bool) -> Found:
    """8B, packs of 2,048, recomputed: LoRA under 20 GB, QLoRA under 8 GB (docs/gpu-checks.md)"""
    told = {}
    for rung in ("lora", "qlora"):
        trainer = Trainer("tiny" if tiny else "8b", rung, 256 if tiny else 2048, 1, recompute=True)
        gc.collect()
        if torch().cuda.is_available():
            torch().cuda.empty_cache()
            torch().cuda.reset_peak_memory_stats()
        told[rung] = {"tokens_per_second": trainer.rate(1 if tiny else 3), "peak": peak(), "losses": trainer.losses}
        del trainer
        gc.collect()
    said = ", ".join(
        f"{name} {row['peak'] / 1e9:.1f} GB at {row['tokens_per_second']:,.0f} tokens/s" for name, row in told.items()
    )
    return told["lora"]["peak"] < 20e9 and told["qlora"]["peak"] < 8e9, said, told


COMMAND = """
import json, sys
import burnish, torch
told = []
burnish.init(sys.argv[1], out="task.yaml", base=sys.argv[2])
burnish.train("task.yaml", rung="full", set=["train.max_steps=30"], say=lambda _, event: told.append(event.to_json()))
peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
print("TOLD " + json.dumps([peak, [row for row in told if row["kind"] in ("started", "finished")]], default=str))
"""


@check(240)
def command(tiny: bool) -> Found:
    """`burnish train` itself: it ends well and says its kernels; what it planned stands beside what it took"""
    import tiny as models

    words = ["amber", "brook", "cedar", "delta", "ember", "frost", "grove", "heron", "ivory", "juniper", "kestrel"]
    told = [" ".join(words[(i * 5 + j * j) % 11] for j in range(4 + i % 40)) for i in range(240)]
    with tempfile.TemporaryDirectory() as place:
        told = [f"{text} {i},{'good' if i % 2 else 'bad'}" for i, text in enumerate(told)]
        (Path(place) / "reviews.csv").write_text("\n".join(["review,stars", *told]))
        base = models.folder("llama", _Factory())
        command = [sys.executable, "-c", COMMAND, str(Path(place) / "reviews.csv"), str(base)]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=200, check=False)
        lines = [line for line in done.stdout.splitlines() if line.startswith("TOLD ")]
        if not lines:
            raise RuntimeError(done.stderr[-1500:])
    top, (first, *_, last) = json.loads(lines[0][5:])
    kernels, needs = first["kernels"], first["needs"]
    said = f"{last.get('reason')} in {last['seconds']:.1f} s; {kernels}; most on the device {top / 1e6:.0f} MB"
    return bool(kernels) and last["kind"] == "finished", said, {"needs": needs, "peak": top, "kernels": kernels}


@check(240)
def compile(tiny: bool) -> Found:
    """no step that torch.compile makes faster than the chosen one by more than its compile time, over 500 steps"""
    from burnish.models import fused, liger

    where, half, long, wide = device(), torch().bfloat16, 64 if tiny else 8192, 128 if tiny else 8192
    gate, other = (torch().randn(long, wide, device=where, dtype=half, requires_grad=True) for _ in "ab")
    weight = torch().randn(wide, device=where, dtype=half, requires_grad=True)
    functions = {
        "gated": (lambda: fused.Gated.apply(gate, other), lambda: torch().nn.functional.silu(gate) * other),
        "norm": (
            lambda: fused.rms_norm(gate, weight, 1e-5),
            lambda: torch().nn.functional.rms_norm(gate, (wide,), weight, 1e-5),
        ),
    }
    told: dict[str, Any] = {}
    for name, (chosen, plain) in functions.items():
        start = wait()
        made = torch().compile(plain, dynamic=True)
        made().sum().backward()
        cost = wait() - start
        ways = {"chosen": chosen, "plain": plain, "compiled": made}
        told[name] = {way: seconds(lambda run=run: run().sum().backward(), 5) for way, run in ways.items()} | {
            "compile": cost
        }
    layers, micro, steps = 16, 4, 500
    worth = {
        name: layers * micro * steps * (row["chosen"] - row["compiled"]) - row["compile"] for name, row in told.items()
    }
    said = "; ".join(
        f"{name}: chosen {row['chosen'] * 1e6:.0f} us, plain {row['plain'] * 1e6:.0f}, "
        f"compiled {row['compiled'] * 1e6:.0f} after {row['compile']:.0f} s, worth {worth[name]:+.0f} s of 500 steps"
        for name, row in told.items()
    )
    return all(value < 0 for value in worth.values()), f"{said}; {liger.said(where, half)}", told


@check(240)
def flex(tiny: bool) -> Found:
    """flex attention, compiled, proves itself and takes less than three times varlen's time (a second choice)"""
    from burnish.models import flash
    from burnish.models.layout import Spans

    if not torch().cuda.is_available():
        raise Skipped("flex attention has no backward pass on a CPU")
    start = wait()
    ways = flash.WAYS
    flash.found_for.cache_clear()
    try:
        flash.WAYS = tuple(way for way in ways if way[0].startswith("flex"))
        found = flash.found_for(device(), torch().bfloat16, 64, 4, True, False, True)
    finally:
        flash.WAYS = ways
        flash.found_for.cache_clear()
    cost = wait() - start
    best = flash.found_for(device(), torch().bfloat16, 64, 4, True, False, True)
    if not found or not best:
        return False, f"flex {'proved itself' if found else 'did not prove itself'} in {cost:.0f} s", {}
    sizes = [len(row.ids) for row in rows(8192, 99)]
    ends = [0, *torch().tensor(sizes).cumsum(0).tolist()]
    values = [torch().randn(ends[-1], heads, 64, device=device(), dtype=torch().bfloat16) for heads in (32, 8, 8)]
    q, k, v = (value.requires_grad_() for value in values)
    spans = Spans(ends, ends, device())
    told = {
        name: seconds(lambda way=way: way(q, k, v, spans, True, None, 0.125).sum().backward(), 5)
        for name, way in (found, best)
    }
    ratio = told[found[0]] / told[best[0]]
    return ratio < 3, f"{ratio:.1f} times {best[0]}, found after {cost:.0f} s", {"seconds": told, "cost": cost}


@check(240, PYTORCH_CUDA_ALLOC_CONF="expandable_segments:True")
def segments(tiny: bool) -> Found:
    """the allocator's expandable segments: reserved memory within 10 % of `full`'s peak (there: see its `reserved`)"""
    trainer = Trainer("tiny" if tiny else "1b", "full", 256 if tiny else 8192, 2)
    rate = trainer.rate(1 if tiny else 4)
    reserved = float(torch().cuda.max_memory_reserved()) if torch().cuda.is_available() else 0.0
    over = reserved / max(peak(), 1.0) - 1
    return (
        over < 0.1,
        f"{rate:,.0f} tokens/s, reserved {over:.1%} more than the peak",
        {"rate": rate, "reserved": reserved},
    )


@check(580)
def peers(tiny: bool) -> Found:
    """benchmarks/train.py beside TRL with flash attention and Liger: LoRA at least 1.3 times as fast"""
    if tiny or importlib.util.find_spec("trl") is None:
        raise Skipped("trl is not installed, or sizes are tiny")
    own = [
        sys.executable,
        str(ROOT / "benchmarks" / "train.py"),
        "--cases",
        "gpu-lora,gpu-full",
        "--engines",
        "ours,trl-best",
    ]
    done = subprocess.run([*own, "--rounds", "2", "--json"], capture_output=True, text=True, timeout=570, check=False)
    told = json.loads(done.stdout.splitlines()[-1])
    ratio = told["gpu-lora"]["tokens_per_second_ratio"].get("trl-best", 0)
    return ratio >= 1.3, f"LoRA {ratio:.2f} times TRL", told


@check(580)
def several(tiny: bool) -> Found:
    """two GPUs: tests/train/test_distributed.py and test_sharded.py over nccl, losses to 1e-4"""
    if torch().cuda.device_count() < 2:
        raise Skipped(f"{torch().cuda.device_count()} GPUs here")
    names = ["tests/train/test_distributed.py", "tests/train/test_sharded.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "slow or not slow", *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=570, check=False)
    return done.returncode == 0, done.stdout.splitlines()[-1], {"said": done.stdout.splitlines()[-20:]}


sys.path.insert(0, str(ROOT / "tests"))  # tiny.py: one small model of every kind
