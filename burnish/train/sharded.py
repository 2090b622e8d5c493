"""A model that is cut over the ranks: PyTorch's FSDP2 (`fully_shard`) for the layers, its DCP for checkpoints.

In: a Model.  Out: the same Model, of whose weights, gradients and optimizer state every rank holds a share, and the
`Sharded` by which the loop works with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from burnish.errors import CheckpointError, TrainError
from burnish.models import places
from burnish.models.model import Model
from burnish.tokens.batch import Batch, Batches
from burnish.train import checkpoint, memory
from burnish.train.checkpoint import Checkpoint
from burnish.train.distributed import Replicated

T = TypeVar("T")


@dataclass(frozen=True)
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

    def tensors(self, found: Checkpoint, group: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if f"{group}.safetensors" in found.files:  # written by one process
            return {name: self._laid_out(name, value, like) for name, value in found.tensors(group).items()}
        reader = HuggingFaceStorageReader(str(found.path / group))
        told = {}
        for name, item in reader.read_metadata().state_dict_metadata.items():
            shape = torch.empty(item.size, dtype=item.properties.dtype, device="meta")
            told[name] = self._laid_out(name, shape, like)
        dcp.load(told, storage_reader=reader)
        return told

    def _laid_out(self, name: str, value: Tensor, like: Mapping[str, Tensor]) -> Tensor:
        """A full tensor (or a shape without numbers) as this rank's share of it."""
        model: Any = like.get(name.rpartition("|")[0] or name)
        if model is None or model.shape != value.shape or not isinstance(model, DTensor):
            return torch.empty_like(value, device="cpu") if value.is_meta else value
        if value.is_meta:
            return _laid_out(torch.empty_like(model.to_local(), dtype=value.dtype), model)
        start, end = _rows(model)
        return _laid_out(value[start:end].to(self.device), model)

    def save(
        self,
        folder: Path,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        identity: Mapping[str, Any],
    ) -> Path:
        if not self.main:
            if staged := self.tell(None):
                self._write(Path(staged), tensors)
            return folder / f"{step:06d}"
        begun = []

        def write(staged: Path) -> dict[str, dict[str, Any]]:
            begun.append(self.tell(str(staged)))
            return self._write(staged, tensors)

        path = checkpoint.save(folder, step, tensors, state, identity, shards=write)
        if not begun:  # that step was saved before
            self.tell("")
        return path

    def _write(self, staged: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Any]]:
        """Every rank writes and syncs its own shards; returns size and SHA-256 of all files."""
        own = {}
        for name, group in tensors.items():
            if not group:
                continue
            writer = HuggingFaceStorageWriter(str(staged / name), save_distributed=True)
            try:
                dcp.save(dict(group), storage_writer=writer)
            except dcp.CheckpointException as problem:
                first = next(iter(problem.failures.values()))[0]
                raise first if isinstance(first, OSError) else CheckpointError(str(first), str(staged)) from None
            for path in (staged / name).glob(f"shard-{self.rank + 1:05d}-*"):
                own[f"{name}/{path.name}"] = checkpoint.entry(path)
        return {name: item for rank in range(self.size) for name, item in self.tell(own, rank).items()}

    def settle(self, model: Model) -> None:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def cut(model: Model, device: torch.device, precision: torch.dtype) -> None:
    """Cut a model over all ranks, block by block: blocks are the entries of its outermost lists of modules.

    Of weights that are still in their files each rank reads its rows only (of what transformers has to make from other
    tensors, all, one tensor after the other).
    """
    if device.type == "cpu":
        memory.give_back()
    for value in model.parameters():
        if value.is_floating_point():
            value.data = value.data.to(torch.float32 if value.requires_grad else precision)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    low = None if precision == torch.float32 else precision
    policy = MixedPrecisionPolicy(low, reduce_dtype=torch.float32, cast_forward_inputs=False)
    waiting = places.of(model)
    for block in _blocks(model.hf):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # a sum
            module.set_force_sum_reduction_for_comms(True)
    for name, value in model.named_parameters():
        if name in waiting:
            own = places.read(name, waiting[name], value.dtype, *_rows(value)).to(device)
            torch.utils.swap_tensors(value, nn.Parameter(_laid_out(own, value), value.requires_grad))
    model.forward = lambda: (model.packs, model.lays_bare)  # type: ignore[assignment, misc, method-assign]
    model()  # they try the model out, whose layers are fetched only within a forward pass of the whole
    del model.forward
    # FSDP looks for tensors to hook in what a module returns, and does not look into Outputs
    model.register_forward_hook(lambda module, told, out: (out, out._logits, out.hidden), prepend=True)
    model.register_forward_hook(lambda module, told, out: out[0])


def _rows(value: Any) -> tuple[int, int]:
    """The rows of a cut tensor that are this rank's: the first, and the one after the last."""
    assert value.placements == (Shard(0),)
    long, mesh = value.shape[0], value.device_mesh
    each = -(-long // mesh.size())
    start = min(mesh.get_local_rank() * each, long)
    return start, min(start + each, long)


def _laid_out(own: Tensor, like: Any) -> Tensor:
    """This rank's rows as its share of a tensor cut as `like` is."""
    return DTensor.from_local(own, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The entries of outermost module lists; a list of one may be a block that runs many times (ALBERT)."""
    for child in module.children():
        if isinstance(child, nn.ModuleList) and len(child) > 1:
            yield from child
        else:
            yield from _blocks(child)
