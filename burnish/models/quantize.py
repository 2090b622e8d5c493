"""NF4: a weight in 4.127 bits, as one of sixteen levels that hold equally many normally distributed values each.

In: the float weight of a linear layer.  Out: Packed, and Linear4, a linear layer that keeps nothing else and makes its
weight anew whenever it is used.  Layout and values are bitsandbytes', so that what was trained here means the same
there; ours, because theirs is a compiled library that may look for kernels on the network.

Source: Dettmers et al. 2023, QLoRA, section 3 and appendix E.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from burnish.models import kernels, places

BLOCK = 64  # weights that share a scale
GROUP = 256  # scales that share a step
BITS = 4 + 8 / BLOCK + 32 / (BLOCK * GROUP)  # a weight, all told: 4.127
ALONE = (
    1 << 14
)  # numbers that torch adds up in one thread: a sum in several depends on how many, and so would all scales
CHUNK = 1 << 20  # weights in work at a time, so that what they pass through stays small beside a large layer
DEVICE = 1 << 26  # the same on a GPU, which has no cache to stay in, and launches cost it more than memory does
CUT = "codes", "scales"  # what of a layer is cut over processes: all but 0.05 %

NF4 = (  # quantiles of N(0, 1) between .9677083 and .5 on either side, divided by the largest (appendix E)
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


@dataclass(frozen=True)
class Packed:
    """A quantised tensor: value = NF4[code] x scale, scale = dynamic[its code] x step + mean, all in float32.

    codes: uint8 (N / 2,), two to a byte, the first in the upper half.  scales: uint8, one per block.
    steps: float32, one per GROUP scales.  mean: float32 (), of the scales.  shape: the tensor's, row by row.
    """

    codes: Tensor
    scales: Tensor
    steps: Tensor
    mean: Tensor
    shape: tuple[int, ...]
    block: int = BLOCK

    @property
    def bits(self) -> float:
        """Bits a weight: BITS, and a little more where the tensor is small."""
        parts = (self.codes, self.scales, self.steps, self.mean)
        return 8 * sum(part.nbytes for part in parts) / math.prod(self.shape)


@torch.no_grad()
def quantize(weight: Tensor, block: int = BLOCK) -> Packed:
    """The nearest levels of a finite tensor, each block scaled by its largest absolute value.

    block: weights that share a scale, a multiple of 4; the last block may be short.
    """
    codes, largest = pack(weight.reshape(-1), block)
    scales, steps, mean = scaled(largest)
    return Packed(codes, scales, steps, mean, tuple(weight.shape), block)


@torch.no_grad()
def pack(flat: Tensor, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """The codes of whole blocks of a tensor, two to a byte, and (blocks,) the largest absolute value of each."""
    codes, largest = _nearest(flat, block, _levels(flat.device))
    if len(codes) % 2:
        codes = nn.functional.pad(codes, (0, 1), value=NF4.index(0.0))
    return torch.add(codes[1::2], codes[::2], alpha=16), largest


@torch.no_grad()
def scaled(largest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The scales, steps and mean of a Packed, from the largest absolute value of every block."""
    mean = torch.stack([part.sum() for part in largest.split(ALONE)]).cumsum(0)[-1] / len(largest)
    scales, steps = _nearest(largest - mean, GROUP, _dynamic(largest.device))
    return scales, steps, mean


def hollow(shape: tuple[int, ...], block: int = BLOCK) -> Packed:
    """A quantised tensor of this shape without its numbers (on the meta device)."""
    numbers = math.prod(shape)
    blocks = -(-numbers // block)
    with torch.device("meta"):
        codes, scales = (torch.empty(size, dtype=torch.uint8) for size in (-(-numbers // 2), blocks))
        return Packed(codes, scales, torch.empty(-(-blocks // GROUP)), torch.empty(()), shape, block)


@torch.no_grad()
def dequantize(packed: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
    """The tensor again: computed in float32, rounded to `dtype` once.

    Where the kernels cannot work, two bytes are looked up at once in a table of all their four values, and indexing
    one-dimensionally by 16-byte entries is the fastest look-up torch has on a CPU (docs/log.md).
    """
    block, blocks, device = packed.block, len(packed.scales), packed.codes.device
    scales = _dynamic(device).index_select(0, packed.scales.int())
    scales = (scales * packed.steps.repeat_interleave(GROUP)[:blocks] + packed.mean)[:, None]
    codes = packed.codes
    if missing := blocks * block // 2 - len(codes):
        codes = nn.functional.pad(codes, (0, missing))
    out = torch.empty(blocks, block, dtype=dtype, device=device)
    if block % 16 == 0 and kernels.fits(out):
        kernels.call("dequantize", out, codes, scales, _levels(device), blocks, block)
        return out.view(-1)[: math.prod(packed.shape)].view(packed.shape)
    codes = codes.view(torch.int16)
    rows = max((DEVICE if codes.is_cuda else CHUNK) // block, 1)
    for start in range(0, blocks, rows):
        fours = codes[start * block // 4 : (start + rows) * block // 4].int() & 0xFFFF
        values = _fours(device).index_select(0, fours).view(torch.float32).view(-1, block)
        out[start : start + rows] = values.mul_(scales[start : start + rows])
    return out.view(-1)[: math.prod(packed.shape)].view(packed.shape)


def _nearest(flat: Tensor, block: int, levels: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) uint8 which level each value is nearest to, in its block's scale, and (blocks,) those scales."""
    middles = ((levels[1:] + levels[:-1]) / 2).tolist()
    codes = torch.empty(len(flat), dtype=torch.uint8, device=flat.device)
    largest = torch.empty(-(-len(flat) // block), device=flat.device)
    step = DEVICE if flat.is_cuda else CHUNK // 32  # what is compared so often stays in a core's own cache
    step = max(step // block, 1) * block
    for start in range(0, len(flat), step):
        part = flat[start : start + step].float()
        rows = nn.functional.pad(part, (0, -len(part) % block)).view(-1, block)
        top = rows.abs().amax(1)
        largest[start // block : start // block + len(rows)] = top
        scaled = (rows * (1 / top.clamp(min=1e-38))[:, None]).view(-1)[: len(part)]
        above, level = torch.empty_like(scaled), torch.zeros_like(scaled)
        for middle in middles:  # ten times as fast as torch.bucketize; comparing into floats is what is vectorised
            level += torch.gt(scaled, middle, out=above)
        codes[start : start + step] = level
    return codes, largest


@cache
def _levels(device: torch.device) -> Tensor:
    return torch.tensor(NF4, device=device)


@cache
def _fours(device: torch.device) -> Tensor:
    """(65536,) what two bytes hold, first byte lowest: four float32 values in the guise of one complex128."""
    both = torch.arange(1 << 16, device=device)
    places = torch.stack([both >> 4 & 15, both & 15, both >> 12, both >> 8 & 15], 1)
    return _levels(device)[places].view(torch.complex128).view(-1)


@cache
def _dynamic(device: torch.device) -> Tensor:
    """(256,) levels of the scales: seven decades of ever more evenly spaced values, their negatives, 0 and 1.

    Source: Dettmers 2015, 8-Bit Approximations for Parallelism in Deep Learning; bitsandbytes' create_dynamic_map.
    """
    decades = []
    for power in range(7):
        edges = torch.linspace(0.1, 1, 2**power + 1)
        decades.append(10.0 ** (power - 6) * ((edges[1:] + edges[:-1]) / 2))
    positive = torch.cat(decades)
    return torch.cat([positive, -positive, torch.tensor([0.0, 1.0])]).sort().values.to(device)


class _Product(torch.autograd.Function):
    """x Wᵀ + bias, without keeping W for the backward pass."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, bias: Tensor | None, layer: Linear4, dtype: torch.dtype) -> Tensor:
        ctx.layer, ctx.dtype, ctx.given = layer, dtype, inputs.dtype
        bias = None if bias is None else bias.to(dtype)
        return nn.functional.linear(inputs.to(dtype), layer.dequantized(dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        to_bias = gradient.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return (gradient @ ctx.layer.dequantized(ctx.dtype)).to(ctx.given), to_bias, None, None


class Linear4(nn.Module):
    """A frozen linear layer that holds its (out, in) weight as NF4; only a bias is kept as it was.

    transposed: it stands for GPT-2's Conv1D, which holds its weight as (in, out).
    place: where its weight lies unquantised, while it has only been told so (places.py); None once it is read.
    """

    place: places.Place | None = None

    def __init__(self, packed: Packed, bias: nn.Parameter | None, dtype: torch.dtype, transposed: bool = False) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.shape
        self.block, self.transposed, self.bias = packed.block, transposed, bias
        for name in ("codes", "scales", "constants"):
            self.register_buffer(name, None)
        self.hold(packed)
        self.register_buffer("unknown", torch.full((1, 1), torch.nan, dtype=dtype), persistent=False)

    @classmethod
    def of(cls, layer: nn.Module, weight: Tensor | None = None) -> Linear4:
        """A Linear or Conv1D quantised, from its own weight or from one in its layout."""
        own: Tensor = layer.weight
        transposed = isinstance(layer, Conv1D)
        weight = own.detach() if weight is None else weight
        packed = quantize(weight.T if transposed else weight)
        return cls(packed, layer.bias, own.dtype, transposed)

    def hold(self, packed: Packed) -> None:
        """Take these numbers as its weight."""
        self.codes, self.scales = packed.codes, packed.scales
        constants = torch.cat([packed.steps, packed.mean[None]])
        self.constants = constants.view(torch.int32)  # as integers: Module.to(dtype) rounds floats

    def read(self) -> None:
        """Quantise the weight that lies in its place."""
        assert self.place is not None
        value = self.place.rows()
        self.hold(quantize(value.T if self.transposed else value))

    def leave(self) -> None:
        """Forget what was read, but for its place."""
        self.hold(hollow((self.out_features, self.in_features), self.block))

    @property
    def packed(self) -> Packed:
        constants = self.constants.view(torch.float32)
        shape = (self.out_features, self.in_features)
        return Packed(self.codes, self.scales, constants[:-1], constants[-1], shape, self.block)

    @property
    def weight(self) -> Tensor:
        """For those who ask for the weight's dtype, device or shape; its values are NaN, so that no use goes unseen."""
        return self.unknown.expand(self.out_features, self.in_features)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The (out, in) weight."""
        return dequantize(self.packed, dtype)

    def plain(self, weight: Tensor | None = None) -> nn.Module:
        """The unquantised layer again, in the type it had, with its dequantised weight or with this (out, in) one."""
        dtype = self.unknown.dtype
        weight = self.dequantized(dtype) if weight is None else weight.to(dtype)
        with torch.device("meta"):
            layer = (
                Conv1D(self.out_features, self.in_features)
                if self.transposed
                else nn.Linear(self.in_features, self.out_features, self.bias is not None)
            )
        layer.weight = nn.Parameter(weight.T.contiguous() if self.transposed else weight, requires_grad=False)
        layer.bias = self.bias
        return layer

    def forward(self, inputs: Tensor) -> Tensor:
        device = inputs.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else inputs.dtype
        return _Product.apply(inputs, self.bias, self, dtype)


def layers(hf: nn.Module) -> dict[str, Linear4]:
    """The quantised layers by name, also those inside adapters (whose names then say so)."""
    return {name: item for name, item in hf.named_modules() if isinstance(item, Linear4)}


def digest(quantised: Iterable[Linear4]) -> str:
    """SHA-256 over what these layers hold, in order: the same base on the same machine gives the same."""
    told = hashlib.sha256()
    for item in quantised:
        for part in (item.codes, item.scales, item.constants):
            told.update(places.whole(part).cpu().view(torch.uint8).numpy().data)
    return told.hexdigest()
