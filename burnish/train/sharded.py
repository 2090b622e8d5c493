"""A model that is cut over the ranks: PyTorch's FSDP2 (`fully_shard`) for the layers, its DCP for checkpoints.

In: a Model.  Out: the same Model, of whose weights, gradients and optimizer state every rank holds a share.  The loop
works with it through `distributed.Sharded`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from burnish.errors import CheckpointError
from burnish.models import heap, places, quantize, shards
from burnish.models.model import Model
from burnish.models.widened import blocks
from burnish.train import checkpoint
from burnish.train.checkpoint import Checkpoint


def tensors(found: Checkpoint, group: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A group of a checkpoint, written by one process or many; see `Ranks.tensors`."""
    if f"{group}.safetensors" in found.files:
        return {name: _share(name, value, like) for name, value in found.tensors(group).items()}
    reader = HuggingFaceStorageReader(str(found.path / group))
    told = {}
    for name, item in reader.read_metadata().state_dict_metadata.items():
        shape = torch.empty(item.size, dtype=item.properties.dtype, device="meta")
        told[name] = _share(name, shape, like)
    dcp.load(told, storage_reader=reader)
    return told


def write(staged: Path, tensors: Mapping[str, Mapping[str, Tensor]], rank: int) -> dict[str, dict[str, Any]]:
    """Write and sync this rank's shards, a folder for each group; returns their `checkpoint.entry` by name."""
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
        for path in (staged / name).glob(f"shard-{rank + 1:05d}-*"):
            own[f"{name}/{path.name}"] = checkpoint.entry(path)
    return own


def settle(model: nn.Module) -> None:
    """Let every parameter be this rank's share again; a pass may leave whole ones in their place."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def cut(model: Model, device: torch.device, precision: torch.dtype) -> None:
    """Cut a model over all ranks, block by block: blocks are the entries of its outermost lists of modules.

    Of weights that are still in their files each rank reads its rows only (of what transformers has to make from other
    tensors, all, one tensor after the other).  Of layers in 4 bits codes and scales are cut, which is all but 0.05 %.
    """
    if device.type == "cpu":
        heap.give_back()
    for value in model.parameters():
        if value.is_floating_point():
            value.data = value.data.to(torch.float32 if value.requires_grad else precision)

    def largest(own: Tensor) -> Tensor:
        told = own.to(device)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return told.cpu()

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    low = None if precision == torch.float32 else precision
    policy = MixedPrecisionPolicy(low, reduce_dtype=torch.float32, cast_forward_inputs=False)
    layers = quantize.layers(model)
    for layer in layers.values():
        for part in quantize.CUT:  # FSDP cuts parameters, and gathers whole numbers as they are
            held = layer._buffers.pop(part)
            layer.register_parameter(part, nn.Parameter(held, requires_grad=False))
    waiting = places.of(model)
    for block in blocks(model.hf):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # a sum
            module.set_force_sum_reduction_for_comms(True)
    for name, value in model.named_parameters():
        if name in waiting:
            _take(value, places.read(name, waiting[name], value.dtype, *_rows(value)).to(device))
    for name, layer in places.quantised(model).items():
        codes, scales, constants = shards.share(name, layer, _rows(layer.codes), _rows(layer.scales), largest)
        _take(layer.codes, codes.to(device))
        _take(layer.scales, scales.to(device))
        layer.constants, layer.place = constants.to(device), None
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


def _share(name: str, value: Tensor, like: Mapping[str, Tensor]) -> Tensor:
    """A full tensor (or a shape without numbers) as this rank's share of it."""
    model: Any = like.get(name.rpartition("|")[0] or name)
    if model is None or model.shape != value.shape or not isinstance(model, DTensor):
        return torch.empty_like(value, device="cpu") if value.is_meta else value
    if value.is_meta:
        return _laid_out(torch.empty_like(model.to_local(), dtype=value.dtype), model)
    start, end = _rows(model)
    return _laid_out(value[start:end].to(model.device), model)


def _take(value: nn.Parameter, own: Tensor) -> None:
    """Let this rank's rows be a cut parameter that had no numbers yet."""
    torch.utils.swap_tensors(value, nn.Parameter(_laid_out(own, value), value.requires_grad))


def _laid_out(own: Tensor, like: Any) -> Tensor:
    """This rank's rows as its share of a tensor cut as `like` is."""
    return DTensor.from_local(own, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())
