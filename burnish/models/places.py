"""A model whose weights stay in their files until a process takes the part that it needs.

In: a transformers model on the meta device, and the folder of its safetensors files.  Out: the same model, each of
whose parameters knows its place there.  `present` lends a module its weights for a moment, `fill` reads all for good,
`read` the rows of a tensor that fall to one process.  Beside what is kept never more than one tensor is in memory.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from burnish.errors import ModelError

DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
    **{"BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
}
PIECE = 1 << 22  # numbers that are in memory in two types at once


@dataclass(frozen=True)
class Stored:
    """A tensor of a safetensors file.  offset: of its first byte in the file."""

    file: Path
    offset: int
    dtype: torch.dtype
    shape: torch.Size

    def rows(self, start: int = 0, end: int | None = None) -> Tensor:
        """Rows start .. end, the only ones that are read.

        Not by the library, which maps a file, so that all that was ever read counts as memory, or reads whole tensors.
        """
        size = self.shape
        if size:
            start, end, _ = slice(start, end).indices(size[0])
            size = torch.Size((max(end - start, 0), *size[1:]))
        made = torch.empty(size, dtype=self.dtype)
        if not made.numel():
            return made
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        with self.file.open("rb") as stream:
            stream.seek(self.offset + start * row)
            got = stream.readinto(made.view(-1).view(torch.uint8).numpy())
        if got != made.nbytes:
            raise ModelError(f"{self.file.name} is cut short", str(self.file), "fetch it anew")
        return made


@dataclass(frozen=True)
class Converted:
    """A tensor that transformers makes from others (experts that a file holds apart, say).

    first: the first name of those that are made together.  parts: (pattern, name in the file, tensor).
    """

    hf: Any
    converter: WeightConverter
    first: str
    name: str
    parts: tuple[tuple[str, str, Stored], ...]

    def rows(self, start: int = 0, end: int | None = None) -> Tensor:
        """Rows start .. end; the whole tensor is made on the way, in float32 as transformers does."""
        converter = deepcopy(self.converter)
        for pattern, key, stored in self.parts:
            converter.add_tensor(self.first, key, pattern, lambda stored=stored: _wide(stored.rows()))
        value = converter.convert(self.first, model=self.hf, config=self.hf.config)[self.name]
        value = value[0] if isinstance(value, list) else value
        wanted = self.hf.get_parameter_or_buffer(self.name).shape
        if value.shape != wanted:
            raise ModelError(f"{self.name} is made as {tuple(value.shape)}, not {tuple(wanted)}", do="fetch it anew")
        return value if (start, end) == (0, None) else value[start:end].clone()


Place = Stored | Converted


def find(hf: Any, folder: Path) -> dict[str, Place]:
    """Where each tensor of a model lies in a folder's files, under the names transformers gives theirs.

    What is of no use to the model or has another shape is not told of; what is then lacking is the caller's to judge.
    """
    state = hf.state_dict(keep_vars=True)
    told = get_model_conversion_mapping(hf)
    renamed = [item for item in told if isinstance(item, WeightRenaming)]
    computed = [item for item in told if isinstance(item, WeightConverter)]
    places: dict[str, Place] = {}
    gathered: dict[str, list[tuple[str, str, Stored]]] = {}
    for key, stored in sorted(_stored(folder), key=lambda item: dot_natural_key(item[0])):
        name, pattern = rename_source_key(key, renamed, computed, hf.base_model_prefix, state)
        if name not in state and key in state:
            name, pattern = rename_source_key(key, [], [], hf.base_model_prefix, state)
        if pattern is not None:
            gathered.setdefault(name, []).append((pattern, key, stored))
        elif name in state and state[name].shape == stored.shape:
            places[name] = stored
    for first, parts in gathered.items():
        converter = next(item for item in computed if parts[0][0] in item.source_patterns)
        for target in converter.target_patterns:
            name = first.replace(converter.target_patterns[0], target)
            if name in state:
                places[name] = Converted(hf, converter, first, name, tuple(parts))
    return places


def outline(hf: Any, folder: Path) -> frozenset[str]:
    """Tell a meta model's parameters their places, and give it what has none: a new head, and buffers.

    Returns the names its files lack.
    """
    found = find(hf, folder)
    for target, source in dict(hf.all_tied_weights_keys).items():
        if {target, source} <= found.keys() and not torch.equal(found[target].rows(), found[source].rows()):
            own = torch.empty_like(hf.get_parameter(target))  # the files untie what the configuration ties
            put(hf, target, nn.Parameter(own))
            hf.all_tied_weights_keys.pop(target)
    missing = hf.state_dict().keys() - found.keys()
    hf.tie_weights(missing_keys=missing, recompute_mapping=False)
    for name, place in found.items():
        value = hf.get_parameter_or_buffer(name)
        if isinstance(value, nn.Parameter):
            value.place = place
        else:
            put(hf, name, place.rows().to(value.dtype))
        hf.get_parameter_or_buffer(name)._is_hf_initialized = True
    complete(hf, lambda name, value: not hasattr(value, "place"))
    made = hf._keys_to_ignore_on_load_missing or ()  # by the model's own rules, and in no file: Marian's positions
    return frozenset(name for name in missing if not any(re.search(pattern, name) for pattern in made))


@torch.no_grad()
def complete(hf: Any, wanted: Callable[[str, Tensor], bool]) -> None:
    """Make what no file holds and is wanted, by the model's own rules: a new head, frequencies of rotary positions."""
    every = *hf.named_parameters(), *hf.named_buffers()
    lacking = [(name, value) for name, value in every if value.is_meta and wanted(name, value)]
    check_room(sum(value.nbytes for _, value in lacking), "config.json")
    for name, value in lacking:
        new = torch.empty_like(value, device="cpu")
        put(hf, name, nn.Parameter(new, new.is_floating_point()) if isinstance(value, nn.Parameter) else new)
    for module in hf.modules():
        module._is_hf_initialized = False  # it was said while nothing was there to initialize
    hf.initialize_weights()


@contextmanager
def present(module: nn.Module) -> Iterator[None]:
    """Within it a module has the weights that otherwise stay in their files."""
    lent, layers = [], quantised(module)
    try:
        for layer in layers.values():
            layer.read()
        for value in module.parameters():
            if place := getattr(value, "place", None):
                held = nn.Parameter(place.rows().to(value.dtype), value.requires_grad)
                lent.append((value, held))
                torch.utils.swap_tensors(value, held)
        yield
    finally:
        for layer in layers.values():
            layer.leave()
        for value, held in lent:
            torch.utils.swap_tensors(value, held)


def of(module: nn.Module) -> dict[str, Place]:
    """The places of the parameters that still stay in their files, by name; shared ones once."""
    return {name: value.place for name, value in module.named_parameters() if hasattr(value, "place")}


def read(name: str, place: Place, dtype: torch.dtype, start: int = 0, end: int | None = None) -> Tensor:
    """Rows start .. end of a tensor in this type, some at a time; raises ModelError where a number is not finite."""
    if isinstance(place, Converted) or not place.shape:
        return finite(name, place.rows(start, end).to(dtype))
    start, end, _ = slice(start, end).indices(place.shape[0])
    value = torch.empty((max(end - start, 0), *place.shape[1:]), dtype=dtype)
    for part in value.split(max(PIECE // max(math.prod(place.shape[1:]), 1), 1)):
        part.copy_(finite(name, place.rows(start, start + len(part))))
        start += len(part)
    return value


def finite(name: str, value: Tensor) -> Tensor:
    """The value; raises ModelError where a number is not finite."""
    if not torch.isfinite(value).all():
        raise ModelError(f"{name} holds NaN or infinity", do="fetch the model's files anew")
    return value


def quantised(module: nn.Module) -> dict[str, Any]:
    """The layers in 4 bits whose weights still stand in their files (quantize.Linear4), by name."""
    return {name: item for name, item in module.named_modules() if getattr(item, "place", None) is not None}


def fill(module: nn.Module, device: torch.device, frozen: torch.dtype | None = None) -> None:
    """Read every weight that still stands in its file, one after the other, in the type it has.

    frozen: the type of those that no training moves.  Raises ModelError before the first where memory is too small.
    """
    if device.type == "cpu":
        check_room(_bytes(module, frozen), "the model's files")
    for name, layer in quantised(module).items():
        layer.read()
        finite(name, layer.packed.mean)
        layer.place = None
    for name, value in module.named_parameters():
        if place := getattr(value, "place", None):
            whole = nn.Parameter(read(name, place, _type(value, frozen)).to(device), value.requires_grad)
            torch.utils.swap_tensors(value, whole)


def _bytes(module: nn.Module, frozen: torch.dtype | None) -> int:
    """What `fill` will put into memory."""
    waiting = [value for value in module.parameters() if hasattr(value, "place")]
    told = sum(value.numel() * _type(value, frozen).itemsize for value in waiting)
    return told + sum(layer.in_features * layer.out_features // 2 for layer in quantised(module).values())


def _type(value: nn.Parameter, frozen: torch.dtype | None) -> torch.dtype:
    return value.dtype if value.requires_grad else frozen or value.dtype


def check_room(needed: float, where: str) -> None:
    """Refuse a model of so many bytes where this machine's memory cannot hold it, before any of it is allocated."""
    free = psutil.virtual_memory().available
    if needed > free:
        what = f"The model needs {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free"
        raise ModelError(what, where, "use a smaller base, or free memory")


def whole(value: Tensor) -> Tensor:
    """A tensor in full; of one that is cut over processes all must ask, each for the same ones in the same order."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def put(hf: Any, name: str, value: Any) -> None:
    """Set the parameter, buffer or module at a dotted name."""
    parent, _, leaf = name.rpartition(".")
    setattr(hf.get_submodule(parent), leaf, value)


def _wide(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def _stored(folder: Path) -> Iterator[tuple[str, Stored]]:
    """Every tensor of a folder's files: model.safetensors, else those its index names, else all; as transformers."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists() and not single.exists():
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        files = sorted({folder / Path(name).name for name in named})
    else:
        files = [single] if single.exists() else sorted(folder.glob("*.safetensors"))
    for file in files:
        head = header(file)
        start = 8 + len(head)
        for key, item in json.loads(head).items():
            if key != "__metadata__":
                first, last = item["data_offsets"]
                stored = Stored(file, start + first, DTYPES[item["dtype"]], torch.Size(item["shape"]))
                if first < 0 or last - first != math.prod(stored.shape) * stored.dtype.itemsize:
                    raise ModelError(f"{file.name} has a broken header", str(file), "fetch it anew")
                yield key, stored


def header(file: Path) -> bytes:
    """The names, types, shapes and places of a safetensors file's tensors, as JSON."""
    with file.open("rb") as stream:
        return stream.read(int.from_bytes(stream.read(8), "little"))
