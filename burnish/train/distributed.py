"""Several processes train one model: what they must agree on, and how the model lies over their devices.

In: the environment that torchrun (or `launch.py`) gives each process, and a model.  Out: a `Ranks`, by which the loop
reads the same with one process and with many.  The rows of a step do not depend on how many ranks there are: each takes
a share of them, weights and losses are summed over all, and gradients are summed, never averaged.

`Replicated`: every rank holds the whole model, and gradients are all-reduced.  `Sharded`: a model that is too large for
that is cut over the ranks (sharded.py).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from burnish.errors import TrainError
from burnish.models import placement, places
from burnish.models.model import Model
from burnish.tokens.batch import Batch, Batches
from burnish.train import checkpoint, memory, sharded
from burnish.train.checkpoint import Checkpoint
from burnish.train.pieces import Kept

BUCKET = 64 << 20  # bytes of gradients that travel at once
ROOM = 0.6  # share of a device's memory for weights, gradients and optimizer; the rest is for activations
PATIENCE = timedelta(hours=1)  # so long may a rank wait for one that saves; a death is noticed by the launcher
T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """One process: all is its own, and nothing needs to be agreed on.  local: processes on this machine."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: placement.best())
    local: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes events, manifests and artifacts."""
        return self.rank == 0

    def over(self, model: Model) -> int:
        """How many processes a model's weights are to be cut over; 1 where each holds all."""
        return 1

    def prepare(self, model: Model, precision: torch.dtype) -> tuple[Ranks, torch.dtype]:
        """Put the model where it trains, frozen weights in the arithmetic's type as they are read.

        Returns the ranks for the loop, and the arithmetic that is left to it.
        """
        places.fill(model, self.device, precision)
        model.to(self.device)
        return self, precision

    def sum(self, *values: float) -> list[float]:
        """Each number summed over ranks, in their order, so that all have the same bits."""
        return [float(value) for value in values]

    def tell(self, value: Any, source: int = 0) -> Any:
        """What one rank says, on every rank; plain JSON."""
        return value

    def passes(self, own: Iterable[Batch], batches: Batches) -> Iterable[tuple[Batch, bool]]:
        """This rank's micro-batches, and whether each counts or is only run to keep other ranks company."""
        return ((batch, True) for batch in own)

    def together(self, work: Callable[[], T]) -> T:
        """What `work` returns; runs out of memory on every rank when it does on one."""
        return work()

    def reduce(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Sum every gradient over ranks, where backward has not done so."""

    def whole(self, value: Tensor) -> Tensor:
        """A tensor that may be cut over ranks, in full."""
        return value

    def newest(self, folder: Path, identity: Mapping[str, Any]) -> Checkpoint | None:
        """As `checkpoint.newest`."""
        return checkpoint.newest(folder, identity)

    def tensors(self, found: Checkpoint, group: str, like: Mapping[str, Tensor]) -> Iterable[tuple[str, Tensor]]:
        """A group of a checkpoint, one tensor after the other (see `Checkpoint.stream`).

        Those named as in `like` (up to a `|`) and of that shape are laid out as there.
        """
        return found.stream(group)

    def keep(self, folder: Path, numbers: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The tensors as they are now, apart from what follows, in no memory."""
        return Kept(folder, numbers)

    def save(
        self,
        folder: Path,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        identity: Mapping[str, Any],
    ) -> Path:
        """As `checkpoint.save`."""
        return checkpoint.save(folder, step, tensors, state, identity)

    def settle(self, model: Model) -> None:
        """Let parameters be what this process keeps of them; a pass may leave fetched ones in their place."""


@dataclass(frozen=True)
class Replicated(Ranks):
    """Every rank holds the whole model.  shard: cut the model even where it would fit."""

    shard: bool = False

    def over(self, model: Model) -> int:
        # every rank must come to the same answer, and free memory differs
        return self.size if self.shard or self.sum(not fits(model, self.device, self.local))[0] else 1

    def prepare(self, model: Model, precision: torch.dtype) -> tuple[Ranks, torch.dtype]:
        if self.over(model) == 1:
            super().prepare(model, precision)
            with torch.no_grad():
                for value in model.trainable().values():  # drawn from one seed; now surely equal
                    dist.broadcast(value, 0)
            return self, precision
        sharded.cut(model, self.device, precision)
        return Sharded(self.rank, self.size, self.device, self.local, True), torch.float32

    def sum(self, *values: float) -> list[float]:
        told = self._each(*values)
        return [sum(row[i] for row in told) for i in range(len(values))]

    def _each(self, *values: float) -> list[list[float]]:
        own = torch.tensor([values], dtype=torch.float64, device=self.device)
        told = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(told, own)
        return torch.cat(told).tolist()

    def tell(self, value: Any, source: int = 0) -> Any:
        # not torch's object collectives: they unpickle whatever comes over the network
        text = json.dumps(value).encode() if self.rank == source else b""
        size = torch.tensor(len(text), device=self.device)
        dist.broadcast(size, source)
        data = torch.frombuffer(bytearray(text or int(size)), dtype=torch.uint8).to(self.device)
        dist.broadcast(data, source)
        return json.loads(bytes(data.tolist()))

    def together(self, work: Callable[[], T]) -> T:
        told: T | Exception
        try:
            told = work()
        except Exception as problem:
            if not memory.ran_out(problem):
                raise
            told = MemoryError(*problem.args)
        if self.sum(isinstance(told, MemoryError))[0]:
            raise MemoryError("a rank ran out of memory")
        return told  # type: ignore[return-value]

    def reduce(self, parameters: Mapping[str, nn.Parameter]) -> None:
        values = list(parameters.values())
        used = torch.tensor([value.grad is not None for value in values], dtype=torch.int32, device=self.device)
        dist.all_reduce(used, dist.ReduceOp.MAX)  # a rank without rows has no gradients; what nobody used stays without
        kept = [value for value, on in zip(values, used.tolist(), strict=True) if on]
        for bucket in _buckets(kept):
            for value in bucket:
                if value.grad is None:
                    value.grad = torch.zeros_like(value)
            flat = torch.cat([value.grad.reshape(-1) for value in bucket])
            dist.all_reduce(flat)
            for value, piece in zip(bucket, flat.split([value.numel() for value in bucket]), strict=True):
                value.grad.copy_(piece.view_as(value))

    def newest(self, folder: Path, identity: Mapping[str, Any]) -> Checkpoint | None:
        found = checkpoint.newest(folder, identity) if self.main else None
        path = self.tell(str(found.path) if found else "")
        return found if self.main or not path else checkpoint.read(Path(path))

    def save(
        self,
        folder: Path,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        identity: Mapping[str, Any],
    ) -> Path:
        path = folder / f"{step:06d}"
        if self.main:
            checkpoint.save(folder, step, tensors, state, identity)
        self.tell(None)  # nobody goes on before it is there: who ended now would have the main rank killed
        return path


class Sharded(Replicated):
    """Every rank holds its share of each weight and fetches the rest of a layer when it comes to it.

    Fetching is collective, so all ranks run equally many micro-batches: who has fewer runs one again, for nothing.
    """

    def passes(self, own: Iterable[Batch], batches: Batches) -> Iterable[tuple[Batch, bool]]:
        own = list(own)
        most = int(max(row[0] for row in self._each(len(own))))
        return [(batch, True) for batch in own] + [(batches.spare(), False)] * (most - len(own))

    def together(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except Exception as problem:
            if not memory.ran_out(problem):
                raise
            raise TrainError(  # the others wait inside a layer: there is no going on together
                "Out of memory",
                f"rank {self.rank} of {self.size}",
                "lower train.micro_tokens or data.max_length, or use more devices; the last checkpoint is intact",
            ) from None

    def reduce(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Nothing is left to do: backward has scattered the sums."""

    def whole(self, value: Tensor) -> Tensor:
        return places.whole(value)

    def tensors(self, found: Checkpoint, group: str, like: Mapping[str, Tensor]) -> Iterable[tuple[str, Tensor]]:
        return sharded.tensors(found, group, like).items()

    def keep(self, folder: Path, numbers: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {name: value.clone() for name, value in numbers.items()}

    def save(
        self,
        folder: Path,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        identity: Mapping[str, Any],
    ) -> Path:
        begun = []

        def write(staged: Path) -> dict[str, dict[str, Any]]:
            begun.append(self.tell(str(staged)))
            return self._write(staged, tensors)

        if self.main:
            checkpoint.save(folder, step, tensors, state, identity, shards=write)
            if not begun:  # that step was saved before
                self.tell("")
        elif staged := self.tell(None):
            self._write(Path(staged), tensors)
        self.tell(None)  # as above
        return folder / f"{step:06d}"

    def _write(self, staged: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Any]]:
        """Every rank writes its own shards; returns the entries of all files."""
        own = sharded.write(staged, tensors, self.rank)
        return {name: item for rank in range(self.size) for name, item in self.tell(own, rank).items()}

    def settle(self, model: Model) -> None:
        sharded.settle(model)


def visible() -> int:
    """How many processes suit this machine: one for every GPU, else one."""
    return torch.cuda.device_count() or 1


@contextlib.contextmanager
def begin(shard: bool = False) -> Iterator[Ranks]:
    """The ranks that torchrun's variables name (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR ...), connected."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks()
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available()
    if cuda and local >= torch.cuda.device_count():
        raise TrainError(
            f"There are {torch.cuda.device_count()} devices here, and rank {local} of this machine needs one more",
            "--devices",
            f"give --devices {torch.cuda.device_count()}",
        )
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("cuda:nccl,cpu:gloo" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield Replicated(int(os.environ["RANK"]), size, device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")), shard)
    finally:
        dist.destroy_process_group()


def fits(model: Model, device: torch.device, local: int) -> bool:
    """Whether weights, gradients and moments leave room on a device, or a machine of `local`."""
    trained = sum(value.numel() for value in model.trainable().values())
    values = (*model.parameters(), *model.buffers())
    sizes = [(value.numel() * 4 if value.is_floating_point() else value.nbytes, value.is_meta) for value in values]
    stored, held = sum(size for size, _ in sizes), sum(size for size, is_meta in sizes if not is_meta)
    room = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else memory.free() // local + held
    return stored + 12 * trained <= ROOM * room


def _buckets(values: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters in groups of one gradient type and at most BUCKET bytes (one parameter always fits)."""
    bucket: list[nn.Parameter] = []
    size = 0
    for value in values:
        own = value.numel() * value.element_size()
        if bucket and (size + own > BUCKET or value.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(value)
        size += own
    if bucket:
        yield bucket
