"""A safetensors file piece by piece: its header, then one tensor after the other.

In: named tensors, or such a file.  Out: pieces to write, or tensors as they are read; never more than one is in memory
beside what the caller keeps.  Ours rather than the library's because its writer reports a full disk as text without an
errno, its reader maps a file or holds it twice, and a hash taken while writing is of what was meant, not of what a disk
gave back.  The library reads it: it is the test.
Source: https://github.com/huggingface/safetensors#format (largest dtypes first keeps every tensor aligned).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from burnish import store
from burnish.errors import CheckpointError

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
NAMED = {name: dtype for dtype, name in DTYPES.items()}


def written(group: Mapping[str, Tensor]) -> Iterator[Any]:
    """The pieces of a file of these tensors; each is asked for when its turn has come."""
    if isinstance(group, Kept):
        yield from group.pieces()
        return
    told = sorted((-value.element_size(), name, value.dtype, value.shape) for name, value in group.items())
    header, end = {}, 0
    for size, name, dtype, shape in told:
        start, end = end, end - size * shape.numel()
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in header:
        yield group[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def read(path: Path) -> Iterator[Any]:
    """The pieces of a file, in the order that they have there."""
    with path.open("rb") as stream:
        size = stream.read(8)
        head = size + stream.read(int.from_bytes(size, "little"))
        yield head
        for _, item in _entries(head):
            start, end = item["data_offsets"]
            piece = bytearray(end - start)
            yield piece[: stream.readinto(piece)]
        if rest := stream.read():
            yield rest


def tensors(pieces: Iterable[Any]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of pieces as they come; raises ValueError when one is cut short."""
    coming = iter(pieces)
    for (name, item), piece in zip(_entries(next(coming)), coming, strict=False):
        yield name, _tensor(item, piece)
    for _ in coming:  # to its end: who hands them on may have something to say then
        pass


def _entries(head: bytes) -> list[tuple[str, dict[str, Any]]]:
    told = {name: item for name, item in json.loads(head[8:]).items() if name != "__metadata__"}
    return sorted(told.items(), key=lambda part: part[1]["data_offsets"])


def _tensor(item: Mapping[str, Any], piece: Any) -> Tensor:
    dtype, shape = NAMED[item["dtype"]], item["shape"]
    if len(piece) != item["data_offsets"][1] - item["data_offsets"][0]:
        raise ValueError("the file is cut short")
    if not len(piece):
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(piece, dtype=dtype).view(shape)


class Kept(Mapping[str, Tensor]):
    """Tensors in a nameless file, which goes when this does or the process ends; each is read when it is asked for.

    Raises CheckpointError where the disk gives back other bytes than were written, TrainError when it is full.
    """

    def __init__(self, folder: Path, group: Mapping[str, Tensor]) -> None:
        self._folder, self._digests = folder, list[bytes]()
        with store.disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (it is held as long as this is)
            for piece in written(group):
                if not self._digests:
                    self._head = piece
                self._digests.append(hashlib.sha256(piece).digest())
                self._file.write(piece)
            self._file.flush()
        self.nbytes = self._file.tell() - len(self._head)
        self._items = {name: (number, item) for number, (name, item) in enumerate(_entries(self._head), 1)}

    def pieces(self) -> Iterator[Any]:
        """The whole file's."""
        yield self._head
        for name in self._items:
            yield self._piece(name)

    def _piece(self, name: str) -> bytearray:
        number, item = self._items[name]
        start, end = item["data_offsets"]
        piece = bytearray(end - start)
        with store.disk_errors(self._folder):
            self._file.seek(len(self._head) + start)
            self._file.readinto(piece)
        if hashlib.sha256(piece).digest() != self._digests[number]:
            what = f"The disk gives back other bytes of {name} than were written"
            raise CheckpointError(what, str(self._folder), "check the disk, and give the same command again")
        return piece

    def __getitem__(self, name: str) -> Tensor:
        return _tensor(self._items[name][1], self._piece(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)
