"""A GPU that is not there: tensors keep their numbers on the CPU and say that they are on `cuda`.

Within `cuda()` whatever moves to a device is marked by its storage; results follow their inputs, forward and backward.
An operation on both sides raises, as it would on a GPU, and what would make the host wait for the device is counted.
No kernel of a GPU runs, so nothing is said of those.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("cuda", 0)
ATEN = torch.ops.aten
COPIES = {ATEN.copy_.default, ATEN._to_copy.default}
WAITS = {  # the size or the value of their result is known on the device alone
    *(ATEN._local_scalar_dense.default, ATEN.nonzero.default, ATEN.equal.default, ATEN.masked_select.default),
    *(ATEN._unique2.default, ATEN.unique_dim.default, ATEN.unique_consecutive.default, ATEN.is_nonzero.default),
    ATEN.repeat_interleave.Tensor,
}
MADE = {torch.tensor, torch.as_tensor}


class Mixed(RuntimeError):
    """Tensors of two devices in one operation."""


class Gpu:
    """What lies on the device, and `waits`: how often the host waited for it, by the line of burnish that did."""

    def __init__(self) -> None:
        self._there: dict[int, StorageWeakRef] = {}  # while it is referred to, no other storage takes its address
        self._pinned: dict[int, StorageWeakRef] = {}
        self.waits: Counter[str] = Counter()

    def has(self, value: Tensor) -> bool:
        return _storage(value) in self._there

    def mark(self, value: Tensor, there: bool) -> None:
        if there:
            self._there[_storage(value)] = _kept(value)
        else:
            self._there.pop(_storage(value), None)

    def pin(self, value: Tensor) -> Tensor:
        value = value.clone()
        self._pinned[_storage(value)] = _kept(value)
        return value

    def moved(self, value: Tensor, there: bool, *told: Any, **named: Any) -> Tensor:
        """A copy on the other side, or the same tensor where it is there already."""
        free = named.get("non_blocking") and (_storage(value) in self._pinned or not there)
        if self.has(value) == there:
            return torch.Tensor.to(value, *told, **named) if told or named else value
        if not free:
            self.waited()
        made = torch.Tensor.to(value, *told, **named | {"copy": True}).clone()
        self.mark(made, there)
        return made

    def waited(self) -> None:
        frames = [line for line in traceback.extract_stack() if "/burnish/" in line.filename]
        self.waits["/".join(frames[-1].filename.split("/")[-2:]) + f" {frames[-1].name}" if frames else "?"] += 1


class _Operations(TorchDispatchMode):
    """Sees every operation, also those of the backward pass."""

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [item for item in tree_leaves((args, kwargs)) if isinstance(item, Tensor) and not item.is_meta]
        there = [self.gpu.has(item) for item in given]
        if any(there) and not all(there) and func not in COPIES:
            here = [item for item, on in zip(given, there, strict=True) if not on and item.ndim]
            if func in (ATEN.index.Tensor, ATEN.index_put_.default, ATEN.index_put.default) and there[0]:
                here = [item for item in here if item.dtype not in (torch.int64, torch.bool)]
                self.gpu.waited()  # its places come from the host
            if here:
                raise Mixed(f"{func}: {[tuple(item.shape) for item in here]} on the CPU, others on cuda")
        if any(there) and (func in WAITS or (func is ATEN.index.Tensor and given[-1].dtype == torch.bool)):
            self.gpu.waited()
        if func is ATEN.copy_.default and there[0] != there[1] and given[1].ndim:
            self.gpu.waited()
        on = any(there) and func is not ATEN._local_scalar_dense.default
        before = {_storage(item) for item in given}
        out = func(*args, **(kwargs or {}))
        for item in tree_leaves(out):
            if isinstance(item, Tensor) and not item.is_meta and _storage(item) not in before:
                self.gpu.mark(item, on)
        return out


class _Calls(TorchFunctionMode):
    """Sees what Python asks of a tensor: its device, moves, and tensors made on a device."""

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, gpu = dict(kwargs or {}), self.gpu
        name = getattr(func, "__name__", "")
        if name == "__get__" and args and isinstance(args[0], Tensor) and not _meta(args[0]):
            if func == torch.Tensor.device.__get__ and gpu.has(args[0]):
                return DEVICE
            if func == torch.Tensor.is_cuda.__get__:
                return gpu.has(args[0])
        if func is torch.Tensor.pin_memory:
            return gpu.pin(args[0])
        if func in (torch.Tensor.cpu, torch.Tensor.cuda):
            return gpu.moved(args[0], func is torch.Tensor.cuda)
        if func is torch.Tensor.numpy and gpu.has(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if func is torch.Tensor.to and not _meta(args[0]):
            return self._to(*args, **kwargs)
        told = kwargs.get("device")
        if told is not None and torch.device(told).type == "cuda":
            kwargs["device"] = "cpu"
            out = func(*args, **kwargs)
            gpu.mark(out, True)
            if func in MADE:
                gpu.waited()  # from pageable memory
            return out
        return func(*args, **kwargs)

    def _to(self, value: Tensor, *told: Any, **named: Any) -> Tensor:
        rest = [item for item in told if not isinstance(item, (str, torch.device))]
        places = [item for item in told if isinstance(item, (str, torch.device))]
        place = named.pop("device", places[0] if places else None)
        if rest and isinstance(rest[0], Tensor):
            place, rest = (DEVICE if self.gpu.has(rest[0]) else "cpu"), [rest[0].dtype, *rest[1:]]
        rest = [item for item in rest if item is not None]
        if place is None:
            return torch.Tensor.to(value, *rest, **named)
        kind = torch.device(place).type
        if kind not in ("cpu", "cuda"):
            return torch.Tensor.to(value, place, *rest, **named)
        if len(rest) > 1 or (rest and isinstance(rest[0], bool)):  # dtype, non_blocking, copy by their places
            names = ["non_blocking", "copy"] if isinstance(rest[0], bool) else ["dtype", "non_blocking", "copy"]
            named, rest = named | dict(zip(names, rest, strict=False)), []
        return self.gpu.moved(value, kind == "cuda", *rest, **named)


def _kept(value: Tensor) -> StorageWeakRef:
    return StorageWeakRef((value._values() if value.is_sparse else value).untyped_storage())


def _storage(value: Tensor) -> int:
    with torch._C.DisableTorchFunction():
        return int((value._values() if value.is_sparse else value).untyped_storage()._cdata)


def _meta(value: Any) -> bool:
    with torch._C.DisableTorchFunction():
        return bool(value.is_meta)


@contextmanager
def cuda() -> Iterator[Gpu]:
    """Within it `tensor.to("cuda")` works, on a machine without one."""
    gpu = Gpu()
    calls, run = _Calls(gpu), torch.autograd._engine_run_backward

    def backward(*told: Any, **named: Any) -> Any:  # a mode is off while it handles the call that got here
        with calls:
            return run(*told, **named)

    seen = checkpoint._allowed_determinism_checks_to_fns
    plain = seen["default"]
    seen["default"] = lambda value: (value.shape, value.dtype)  # looked at from C++, where all is on the CPU
    torch.autograd._engine_run_backward = backward
    try:
        with calls, _Operations(gpu):
            yield gpu
    finally:
        torch.autograd._engine_run_backward = run
        seen["default"] = plain


__all__ = ["DEVICE", "Gpu", "Mixed", "cuda"]
