"""What a GPU computes with: products, liger's steps, attention; what is expected of each."""

from __future__ import annotations

import importlib.util

from gpu_checks.tools import Found, Skipped, check, device, fastest, rows, seconds, torch


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
