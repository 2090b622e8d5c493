"""What glibc's malloc keeps of memory that is free again, and what it gives back to the system.

In: a process that allocates on the CPU.  Out: the same with fewer gaps.  Of other systems nothing is asked.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # of mallopt
_usual = 32 << 20  # glibc's own largest limit, or what `give_back` has set; it cannot be asked


def give_back() -> None:
    """Have freed blocks of 2 MB and more go back to the system at once (with glibc; elsewhere nothing happens).

    Layers that are fetched and forgotten in turn leave gaps between what stays, and glibc, which raises its limit to 32
    MB by itself, keeps them: 0.8 GB of a rank's 2.5 at a base of 1.6 GB (docs/log.md).
    """
    global _usual
    _usual = 2 << 20
    _apart(_usual)


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """Within it, what takes 16 kB and more gets pages of its own (glibc): for tensors that stay as long as the run.

    Among what a pass needs for a moment they would hold gaps open.  Afterwards glibc's own largest limits hold, or
    those of `give_back`.
    """
    _apart(16 << 10)
    try:
        yield
    finally:
        _apart(_usual)


def _apart(size: int) -> None:
    """Blocks of this size and more get pages of their own, given back when they are freed; not where a user chose."""
    if sys.platform == "linux" and "MALLOC_MMAP_THRESHOLD_" not in os.environ and hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, size)
        ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, 2 * size)


def apart(like: Tensor) -> Tensor:
    """A tensor like another, without its numbers, in pages of its own whatever gaps there are (CPU).

    malloc would fill a gap with it first (`lasting` is for when there are none yet).  Raises MemoryError.
    """
    if not hasattr(mmap, "MAP_ANONYMOUS"):  # not a Unix
        return torch.empty_like(like)
    try:
        pages = mmap.mmap(-1, max(like.nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as problem:
        raise MemoryError(*problem.args) from None
    return torch.frombuffer(pages, dtype=like.dtype, count=like.numel()).view(like.shape)


def trim() -> None:
    """Give the gaps between allocated blocks back to the system (glibc), which it would keep for later ones."""
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)
