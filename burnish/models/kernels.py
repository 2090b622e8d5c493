"""The kernels of kernels.cpp, attend.cpp and branch.cpp: compiled once for this machine, then called without a copy.

In: contiguous CPU tensors in float32 or bfloat16.  Out: the same memory, changed.  Without a C++ compiler there are
none, and fused.py and attention.py do the same work with PyTorch's own operations.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from burnish import store

SOURCES = [Path(__file__).with_name(name) for name in ("kernels.cpp", "attend.cpp", "branch.cpp")]
HEADER = Path(__file__).with_name("kernels.hpp")
FLAGS = (
    *("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fopenmp", "-w"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math", "-freciprocal-math"),
)
ENDINGS = {torch.float32: "f32", torch.bfloat16: "bf16"}


@cache
def compiled() -> Any:
    """The compiled kernels, or None where there is no compiler, no memory to write to, or BURNISH_KERNELS=off."""
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    if compiler is None or os.environ.get("BURNISH_KERNELS") == "off":
        return None
    texts = [path.read_text(encoding="utf-8") for path in (HEADER, *SOURCES)]
    told = (*texts, *FLAGS, compiler, torch.__version__, platform.machine(), _processor())
    name = hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]
    path = store.home().absolute() / "cache" / "kernels" / f"{name}.so"
    try:
        if not path.exists():
            _build(compiler, path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError):  # a compiler that is broken or lacks OpenMP: slower, not wrong
        return None


def _processor() -> str:
    """What -march=native means here: a home folder may be shared by machines that differ."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line for line in lines if line.startswith("flags")), platform.processor())


def _build(compiler: str, path: Path) -> None:
    """Compile beside the place and rename: two processes may do it at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        subprocess.run(
            [compiler, *FLAGS, "-o", str(made), *map(str, SOURCES)], check=True, capture_output=True, timeout=120
        )
        made.replace(path)


def fits(*tensors: Tensor) -> bool:
    """Whether the kernels can work on these: on the CPU, of one known dtype, without gaps."""
    kind = tensors[0].dtype
    known = kind in ENDINGS and all(item.device.type == "cpu" and item.dtype == kind for item in tensors)
    return known and all(item.is_contiguous() for item in tensors) and compiled() is not None


def call(name: str, *told: Any) -> None:
    """Run a kernel; tensors become addresses, floats C floats, whole numbers longs.  The first tensor has the dtype."""
    function = getattr(compiled(), f"{name}_{ENDINGS[told[0].dtype]}")
    function(*[_c(item) for item in told])


def _c(item: Any) -> Any:
    if item is None:
        return None
    if isinstance(item, Tensor):
        return ctypes.c_void_p(item.data_ptr())
    return ctypes.c_float(item) if isinstance(item, float) else ctypes.c_long(item)
