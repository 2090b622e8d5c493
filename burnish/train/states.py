"""What frozen lower layers say of every row, worked out once and read from disk in every later pass.

In: a Work as a whole and from the first trained layer on; Batches and the layers below (models/bottom.py).  Out: what
keeping their output would save; the same Batches, whose rows bring it.

It is written before the first step and then always read, so that every step of a run, killed or not, sees the same
bits whether the files were already there or not.  They lie in BURNISH_HOME/cache/<key>/ beside the encoded rows (and
are forgotten like them); the key is a hash of all that decides them.  BURNISH_STATES=off keeps nothing, =on whatever it
would save (for tests and benchmarks).
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache as once
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from burnish import store
from burnish.models import bottom as bottoms
from burnish.models import kernels
from burnish.models.bottom import Bottom
from burnish.records import Event
from burnish.tokens import batch as batching
from burnish.tokens import cache
from burnish.tokens.batch import Batches
from burnish.tokens.rows import Rows, Tokens
from burnish.train import costs
from burnish.train.terms import Machine, Work

FILE = "states.npy"
SHARE = 0.25  # of the free disk that may be taken
FIXED = 0.5  # seconds that a short run spends on hashes, a proof and durable files


@dataclass(frozen=True)
class Saving:
    """What is gained by keeping what the first `layers` layers say.

    splits: whose rows it is kept of (train, validation).  bytes: on disk.  once, seconds: that making and writing it
    takes, and that all passes together save after that.  reason: why nothing is kept, '' where something is.
    """

    layers: int = 0
    splits: tuple[str, ...] = ()
    bytes: float = 0.0
    once: float = 0.0
    seconds: float = 0.0
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"splits": list(self.splits)}


def saving(work: Work, above: Work, layers: int, width: int, machine: Machine, cut: tuple[int, bool]) -> Saving:
    """What the plan's own arithmetic says: layers run in every pass, or once with a file written and read.

    above: the same run from the first trained layer on.  width: of a hidden state.  cut: micro_tokens and recompute.
    """
    switch = os.environ.get("BURNISH_STATES", "")
    told = Saving(layers)
    if switch == "off":
        return replace(told, reason="BURNISH_STATES is off")
    whole, rest = (costs.seconds(item, *cut, machine) for item in (work, above))
    passes = work.tokens / max(float(work.train.ids.sum()), 1.0)
    for split, phase, rows, times in (
        ("train", "training", work.train, passes),
        ("validation", "validation", work.validation, float(work.validations)),
    ):
        if not len(rows) or not times:
            continue
        size = float(rows.ids.sum()) * width * work.element
        each = (whole[phase] - rest[phase]) / times
        made = each + size / machine.write + FIXED
        gain = each * times - made - times * size / machine.read
        if gain > 0 or switch == "on":
            told = replace(
                told,
                splits=(*told.splits, split),
                bytes=told.bytes + size,
                once=told.once + made,
                seconds=told.seconds + gain,
            )
    if not told.splits:
        return replace(told, reason="writing and reading what they say would take longer")
    if told.bytes > SHARE * (machine.disk - costs.disk(work)):
        return Saving(layers, reason=f"what they say takes {told.bytes / 1e9:.1f} GB, over a quarter of the free disk")
    return told


def keep(bottom: Bottom, batches: Batches) -> Generator[Event, None, Batches]:
    """The same batches (returned), whose rows bring what the layers below say; made now unless it is on disk.

    Gives `phase` events while it works.  Raises OSError or TrainError where it cannot be written, Stopped when a stop
    is asked for.
    """
    clock, rows = time.monotonic(), batches.rows
    folder = store.home() / "cache" / key(bottom, rows, batches.micro_tokens)
    ends = np.cumsum([0, *(len(row.ids) for row in rows)])
    with store.locked(folder, wait=True):
        problem = cache.fault(folder)
        if problem not in ("", "nothing"):
            yield Event("warned", 0, 0.0, {"text": f"{folder}: {problem}; the frozen layers ran again"})
        if problem:
            text = f"running the {bottom.depth} frozen layers once"
            staged = folder / f".{FILE}.tmp"
            _make_room(folder.parent, int(ends[-1]) * bottom.model.base.width * 4)
            (folder / cache.MANIFEST).unlink(missing_ok=True)
            try:
                with staged.open("wb") as stream:
                    for done in _write(stream, bottom, rows, int(ends[-1]), batches.micro_tokens):
                        yield Event(
                            "phase", 0, time.monotonic() - clock, {"text": text, "done": done, "total": len(rows)}
                        )
                        if store.stop_requested():
                            raise Stopped
                    stream.flush()
                    os.fsync(stream.fileno())
                staged.replace(folder / FILE)
                cache.seal(folder, [FILE])
            finally:
                staged.unlink(missing_ok=True)
        for name in (FILE, cache.MANIFEST):
            os.utime(folder / name)
        return replace(batches, rows=Known(rows, folder / FILE, ends))


def _make_room(root: Path, size: int) -> None:
    """Remove the files used longest ago while, with `size` more bytes, all would take over the share of the disk."""
    held = sorted(root.glob(f"*/{FILE}"), key=lambda path: path.stat().st_mtime)
    taken = sum(path.stat().st_size for path in held)
    room = SHARE * (shutil.disk_usage(root).free + taken)
    for path in held:
        if taken + size > room:
            taken -= path.stat().st_size
            shutil.rmtree(path.parent)


class Stopped(Exception):
    """A stop was asked for before the first step."""


def _write(stream: Any, bottom: Bottom, rows: Sequence[Tokens], tokens: int, budget: int) -> Iterator[int]:
    """Write (tokens, H) states of all rows in their order, as one .npy array; yields how many rows are done.

    Rows are packed in their order, so that what stands in the file depends on nothing but the key.
    """
    start = 0
    with torch.no_grad():
        while start < len(rows):
            stop, size = start + 1, len(rows[start].ids)
            while stop < len(rows) and size + len(rows[stop].ids) <= budget:
                size += len(rows[stop].ids)
                stop += 1
            pack = batching.join([replace(row, states=None) for row in rows[start:stop]])
            states = bottom.states(pack.to(bottom.model.device))[0, :size].contiguous().cpu()
            values = (states.view(torch.int16) if states.dtype == torch.bfloat16 else states).numpy()
            if not start:
                form = {"descr": values.dtype.str, "fortran_order": False, "shape": (tokens, values.shape[1])}
                np.lib.format.write_array_header_1_0(stream, form)
            stream.write(values.data)
            start = stop
            yield start


class Known(Rows):
    """Rows that bring their states, read from a file when they are asked for (a mapped file would count as memory)."""

    def __init__(self, rows: Sequence[Tokens], path: Path, ends: np.ndarray) -> None:
        self._rows, self._ends, self._stream = rows, ends, path.open("rb")
        np.lib.format.read_magic(self._stream)
        (_, self._width), _, self._dtype = np.lib.format.read_array_header_1_0(self._stream)
        self._start = self._stream.tell()

    def __len__(self) -> int:
        return len(self._rows)

    def make(self, place: int) -> Tokens:
        return replace(self._rows[place], states=partial(self._states, place))

    def _states(self, row: int) -> np.ndarray:
        first, last = (int(end) * self._width * self._dtype.itemsize for end in self._ends[row : row + 2])
        data = os.pread(self._stream.fileno(), last - first, self._start + first)
        return np.frombuffer(data, self._dtype).reshape(-1, self._width)


def key(bottom: Bottom, rows: Sequence[Tokens], budget: int) -> str:
    """A name for the states of some rows: it changes with their tokens, the frozen weights, the arithmetic or the code.

    Threads and the cut count too: with others the last bits may differ.
    """
    digest = hashlib.sha256(bottom.fingerprint())
    digest.update(f"{budget} {torch.get_num_threads()} {bottom.model.device} {_code()}".encode())
    digest.update(str(kernels.compiled() is not None).encode())
    for row in rows:
        digest.update(f"{len(row.ids)} {row.segments is not None} ".encode() + np.asarray(row.ids, np.int64).tobytes())
        if row.segments is not None:
            digest.update(np.asarray(row.segments, np.int64).tobytes())
    return digest.hexdigest()[:32]


@once
def _code() -> str:
    """What changes when the code behind a forward pass does: ours, and the libraries'."""
    here = Path(bottoms.__file__).parent
    files = sorted([Path(batching.__file__), *here.glob("*.py"), *here.glob("*.?pp")])
    libraries = [f"{name} {version(name)}" for name in ("torch", "transformers")]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    return " ".join([platform.processor(), *libraries, *digests])
