"""How fast and how large this machine is, measured in about two seconds and remembered.

In: the shapes of a model's matrices.  Out: a Machine.  Rates are kept in BURNISH_HOME/cache by processor, threads and
library versions, so that a second plan measures nothing; what is free is asked anew each time.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import torch

from burnish import store
from burnish.train import memory
from burnish.train.terms import Machine, Shape

ROWS = 512  # tokens of a measured product
WIDEST = 4096  # of a measured matrix: larger ones are as fast
BUDGET = 2.0  # seconds for all products
clock = time.perf_counter  # on a busy machine a benchmark takes the processor's
SMALL = 1 << 20  # numbers of an element-wise operation: as many as a layer's activations


def machine(shape: Shape, element: int, device: torch.device) -> Machine:
    """This machine as it is now, with measured rates for a model's matrix products.

    element: 2 multiplies in bfloat16, 4 in float32.
    """
    wanted = {(min(item.inputs, WIDEST), min(item.outputs, WIDEST)): 0 for item in shape.linears}
    rates = _rates(list(wanted), torch.bfloat16 if element == 2 else torch.float32, device)
    process, home = psutil.Process(), store.home()
    resident = process.memory_info().rss
    while not home.exists():
        home = home.parent
    return Machine(
        float(resident + memory.free()),
        float(resident),
        float(shutil.disk_usage(home).free),
        {size: tuple(rates[_key(*size)]) for size in wanted if _key(*size) in rates},
        **{name: rates[name] for name in ("stream", "draw", "call", "write", "read")},
        gpu=float(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 0.0,
    )


def _rates(sizes: list[tuple[int, int]], dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Rates from the cache, with what it lacks measured now."""
    name = hashlib.sha256(f"{told()} {dtype} {_device(device)}".encode()).hexdigest()[:12]
    path = store.home() / "cache" / f"machine-{name}.json"
    try:
        rates: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        rates = {}
    missing = [size for size in sizes if _key(*size) not in rates]
    if not missing and "draw" in rates:
        return rates
    if "draw" not in rates:
        rates |= {"stream": _stream(dtype, device), "draw": _draw(device), "call": _call(device), **_disk(path.parent)}
    began = clock()
    for size in missing:
        if clock() - began < BUDGET:
            rates[_key(*size)] = _product(*size, dtype, device)
    store.write_json(path, rates)
    return rates


def told() -> tuple[Any, ...]:
    """What rates hold for: processor, threads and PyTorch."""
    return torch.__version__, platform.machine(), platform.processor(), os.cpu_count(), torch.get_num_threads()


def _key(inputs: int, outputs: int) -> str:
    return f"{inputs}x{outputs}"


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _best(work: Callable[[], object], device: torch.device, times: int = 7) -> float:
    """Least seconds of a piece of work that has been done once before: what neighbours leave of it is no property."""
    work()
    told = []
    for _ in range(times):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        before = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        told.append(clock() - before)
    return max(min(told), 1e-9)


def _product(inputs: int, outputs: int, dtype: torch.dtype, device: torch.device) -> list[float]:
    """Floating-point operations a second of x Wᵀ, of its gradient by x, and by W."""
    x, weight, gradient = (
        torch.randn(size, device=device).to(dtype) for size in ((ROWS, inputs), (outputs, inputs), (ROWS, outputs))
    )
    works: Iterable[Callable[[], object]] = (
        lambda: torch.nn.functional.linear(x, weight),
        lambda: gradient @ weight,
        lambda: gradient.t() @ x,
    )
    return [2.0 * ROWS * inputs * outputs / _best(work, device, 4) for work in works]


def _stream(dtype: torch.dtype, device: torch.device) -> float:
    """Bytes a second that an element-wise operation reads and writes, its result allocated anew as in a model."""
    values = torch.randn(SMALL, device=device).to(dtype)
    return 2.0 * values.numel() * values.element_size() / _best(lambda: values * 2, device, 15)


def _draw(device: torch.device) -> float:
    """Random numbers a second, as dropout draws them."""
    values = torch.empty(SMALL, dtype=torch.bool, device=device)
    return values.numel() / _best(lambda: values.bernoulli_(0.9), device)


def _call(device: torch.device) -> float:
    """Seconds of an operation on almost nothing, with its part of a backward pass."""
    start = torch.ones(8, device=device, requires_grad=True)

    def work() -> None:
        value = start
        for _ in range(50):
            value = value * 1.0
        value.sum().backward()

    return _best(work, device) / 50


def _disk(folder: Path) -> dict[str, float]:
    """Bytes a second written durably, and read."""
    data, path = os.urandom(1 << 23), folder / f".calibrate-{os.getpid()}"
    before = time.perf_counter()
    store.write_bytes(path, data)
    wrote = time.perf_counter() - before
    before = time.perf_counter()
    hashlib.sha256(path.read_bytes()).digest()  # what is read is checked
    read = time.perf_counter() - before
    path.unlink()
    return {"write": len(data) / wrote, "read": len(data) / read}
