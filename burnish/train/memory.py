"""When memory runs out: how that is recognised, and how the work goes on with less at once.

In: a piece of work that may fail.  Out: its result after as many tries as it takes, an Event for each.  Here because an
estimate can be wrong, and a neighbour can take memory in the middle of a night's run.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TypeVar

import psutil
import torch

from burnish.records import Event

T = TypeVar("T")
SIGNS = (  # of allocators that raise a plain RuntimeError
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "std::bad_alloc",
    "ALLOC_FAILED",
    "could not create a primitive",  # oneDNN
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
