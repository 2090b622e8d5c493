"""liger-kernel behind the fused steps: Triton's interpreter runs its kernels on the CPU, and they say what we say."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from burnish.models import liger

KERNELS = {
    "norm": ("norm", "norm_back"),
    "gated": ("gated", "gated_back"),
    "turned": ("turned",),
    "cross_entropy": ("cross_entropy",),
}
ABSENT = [name for name in ("triton", "liger_kernel") if importlib.util.find_spec(name) is None]
SCRIPT = """
import json
import sys

import numpy as np
import pytest
import torch
import triton.language as tl
from liger_kernel.ops import rms_norm
from triton.runtime import interpreter

import test_fused
from burnish.models import kernels, liger

plain = interpreter._implicit_cvt


def scalar(value):  # a compiled kernel gets a float as float32; the interpreter as it is, which has no `.to`
    if type(value) is float:
        return tl.tensor(interpreter.TensorHandle(np.array([value], np.float32), tl.float32), tl.float32)
    return plain(value)


interpreter._implicit_cvt = scalar
rms_norm.rsqrt = lambda x: 1 / tl.sqrt(x)  # libdevice's is code for a GPU, which the interpreter does not know
kernels.compiled = lambda: None
liger.DEVICE = "cpu"
called = set()
for name in ("norm", "norm_back", "gated", "gated_back", "turned", "cross_entropy"):
    def counted(*told, _own=getattr(liger, name), _name=name, **named):
        called.add(_name)
        return _own(*told, **named)
    setattr(liger, name, counted)
told = {}
for dtype in (torch.float32, torch.bfloat16):
    told[str(dtype)] = sorted(liger.proven(torch.device("cpu"), dtype))
    called.clear()
    with pytest.MonkeyPatch.context() as patch:
        test_fused.test_rms_norm((2, 5, 64), dtype, False)
        test_fused.test_gated(dtype, False)
        test_fused.test_turned(dtype, False)
        for smoothing in (0.0, 0.1):
            test_fused.test_linear_cross_entropy(smoothing, dtype, False, patch)
    told[f"called {dtype}"] = sorted(called)
print(json.dumps(told))
"""


@pytest.mark.skipif(bool(ABSENT), reason=f"{' and '.join(ABSENT)} not installed")
def test_its_kernels_are_the_plain_formulas_in_tritons_interpreter() -> None:
    """Value and gradient through fused.py, as test_fused.py asks of every way; and all steps were liger's."""
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert told.returncode == 0, told.stderr[-2000:]
    found = json.loads(told.stdout.splitlines()[-1])
    # the interpreter keeps bfloat16 as uint16 and multiplies two of them as whole numbers, as `gated` does
    for dtype, beyond in (("torch.float32", set()), ("torch.bfloat16", {"gated"})):
        assert set(found[dtype]) == set(liger.STEPS) - beyond
        called = {name for step in set(liger.STEPS) - beyond for name in KERNELS[step]}
        assert set(found[f"called {dtype}"]) == called


def test_what_computes_otherwise_is_not_used(monkeypatch: Any) -> None:
    """A kernel that is a little off, and one that fails, are left to PyTorch; what was chosen says so."""
    device = torch.device("cpu")
    monkeypatch.setattr(liger, "version", lambda name: "0.8.5")
    monkeypatch.setattr(liger, "gated", lambda gate, other: torch.nn.functional.silu(gate) * other)
    sigmoid = torch.sigmoid

    def back(gradient: Any, gate: Any, other: Any) -> Any:
        slope = sigmoid(gate) * (1 + gate * (1 - sigmoid(gate)))
        return gradient * other * slope, gradient * torch.nn.functional.silu(gate)

    monkeypatch.setattr(liger, "gated_back", back)
    monkeypatch.setattr(liger, "norm", lambda x, weight, epsilon: (1.001 * x, x[:, 0]))
    monkeypatch.setattr(liger, "norm_back", lambda *_: (_[1], _[2]))

    def fails(*_: Any) -> Any:
        raise RuntimeError("no kernel image is available for this device")

    monkeypatch.setattr(liger, "turned", fails)
    monkeypatch.setattr(liger, "cross_entropy", fails)
    liger.proven.cache_clear()
    try:
        assert liger.proven(device, torch.float32) == {"gated"}
        lacking = "cross_entropy, norm, turned"
        assert liger.said(device, torch.float32) == f"liger-kernel 0.8.5, but for {lacking} PyTorch's operations"
        assert not liger.fits("gated", torch.ones(2, 2))  # that is the CPU's
    finally:
        liger.proven.cache_clear()


def test_without_it_steps_are_pytorchs(monkeypatch: Any) -> None:
    def absent(_: str) -> str:
        raise liger.PackageNotFoundError

    monkeypatch.setattr(liger, "version", absent)
    said = liger.said(torch.device("cpu"), torch.float32)
    assert said == "PyTorch's operations (liger-kernel is not installed)"
