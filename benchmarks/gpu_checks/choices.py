"""What only measurements decide: compiling, flex attention, the allocator; beside peers, on several GPUs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from typing import Any

from gpu_checks.tools import ROOT, Found, Skipped, Trainer, check, device, peak, rows, seconds, torch, wait


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
