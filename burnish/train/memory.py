"""When memory runs out: how that is recognised, and how the work goes on with less at once.

In: a piece of work that may fail.  Out: its result after as many tries as it takes, an Event for each.  Here because an
estimate can be wrong, and a neighbour can take memory in the middle of a night's run.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TypeVar

import psutil
import torch

from burnish.records import Event

T = TypeVar("T")
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # of glibc's mallopt
SIGNS = (  # of allocators that raise a plain RuntimeError
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "std::bad_alloc",
    "ALLOC_FAILED",
)


def ran_out(problem: BaseException) -> bool:
    """Whether an exception says that memory ran out, on any device."""
    told = isinstance(problem, RuntimeError) and any(sign in str(problem) for sign in SIGNS)
    return told or isinstance(problem, (MemoryError, torch.OutOfMemoryError))


def within(work: Callable[[], T], smaller: Callable[[], Event]) -> Generator[Event, None, T]:
    """What `work` returns, done again from its start whenever memory runs out.

    smaller: asks for less before the next try and says what it did, or raises when there is nothing left to give up.
    """
    while True:
        try:
            return work()
        except Exception as problem:
            if not ran_out(problem):
                raise
        gc.collect()  # outside the handler: the traceback held every tensor of the failed try
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        yield smaller()


def free() -> int:
    """Bytes that this process may still take: the machine's free memory, or what is left of its container's share."""
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    available = int(psutil.virtual_memory().available)
    try:
        return min(available, int(limit.read_text()) - int(used.read_text()))
    except (OSError, ValueError):  # no container, or "max": no limit
        return available


@contextlib.contextmanager
def guarded(room: int = 0) -> Iterator[None]:
    """Within it, an allocation that the machine cannot back fails, where Linux would let it pass and kill us later.

    room: bytes that may still be taken; 0: what is free now.  The limit is on private writable memory (RLIMIT_DATA) and
    ends with the block.  Without effect on other systems.
    """
    if sys.platform != "linux":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = psutil.Process().memory_info().data + (room or free())
    limits = [limit, *(old for old in (soft, hard) if old != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def give_back() -> None:
    """Have freed blocks of 2 MB and more go back to the system at once (with glibc; elsewhere nothing happens).

    Layers that are fetched and forgotten in turn leave gaps between what stays, and glibc, which raises its limit to 32
    MB by itself, keeps them: 0.8 GB of a rank's 2.5 at a base of 1.6 GB (docs/log.md).
    """
    _apart(2 << 20)


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """Within it, what takes 16 kB and more gets pages of its own (glibc): for tensors that stay as long as the run.

    Among what a pass needs for a moment they would hold gaps open.  Afterwards glibc's own largest limits hold.
    """
    _apart(16 << 10)
    try:
        yield
    finally:
        _apart(32 << 20)


def _apart(size: int) -> None:
    """Blocks of this size and more get pages of their own, given back when they are freed; not where a user chose."""
    if sys.platform == "linux" and "MALLOC_MMAP_THRESHOLD_" not in os.environ and hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, size)
        ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, 2 * size)


def trim() -> None:
    """Give the gaps between allocated blocks back to the system (glibc), which it would keep for later ones."""
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)
