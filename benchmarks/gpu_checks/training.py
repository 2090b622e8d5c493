"""Training on a GPU: the losses of a CPU, and how fast."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpu_checks.tools import Factory, Found, Trainer, check, device, fastest, peak, plainly, torch, wait


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
        run = models.run(method, head, target, kind, Factory(), Path(place), adapter=adapter, **own)
        run.model.to(device() if there else "cpu")
        quicken.install(run.model.hf)
        run.share(replace(run.ranks, device=run.model.device))
        return [event.numbers["loss"] for event in loop.fit(run) if event.kind == "step"]


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
