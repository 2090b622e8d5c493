"""A file and its lines: unpacked, in UTF-8, each with its number; what is too long or does not decode is a Bad."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from burnish.data.rows import SHOWN, Bad
from burnish.records import Where

LINE = 64 * 2**20  # bytes; longer lines are refused by number, without being held in memory


@dataclass(frozen=True)
class Source:
    """One file (or Hub data set) and how to read it.  name: as messages show it."""

    name: str
    path: Path
    format: str
    gz: bool = False

    def sha256(self) -> str:
        """Of the bytes as they lie on disk; of the name for Hub data."""
        if self.format == "hub":
            return hashlib.sha256(self.name.encode()).hexdigest()
        with self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


BOMS: tuple[tuple[bytes, str], ...] = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, ""),
)
BOMS = (*BOMS, (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


class _AsUtf8(io.RawIOBase):
    """A UTF-16 or UTF-32 stream as UTF-8 bytes; what does not decode stays invalid, so that its line is named."""

    def __init__(self, stream: BinaryIO, encoding: str) -> None:
        self.stream, self.left = stream, b""
        self.decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.left:
            data = self.stream.read(1 << 16)
            try:
                self.left = self.decoder.decode(data, final=not data).encode("utf-8", "surrogatepass")
            except UnicodeDecodeError:
                self.left = b"\xff\n"
                self.decoder.reset()
            if not data:
                break
        piece, self.left = self.left[: len(buffer)], self.left[len(buffer) :]
        buffer[: len(piece)] = piece
        return len(piece)


def opened(source: Source) -> BinaryIO:
    """The bytes of a text file: unpacked, without a byte order mark, UTF-16 and UTF-32 turned into UTF-8."""
    raw: BinaryIO = gzip.open(source.path, "rb") if source.gz else source.path.open("rb")  # type: ignore[assignment]  # noqa: SIM115
    try:
        head = raw.read(4)
        mark, encoding = next(((mark, name) for mark, name in BOMS if head.startswith(mark)), (b"", ""))
        raw.seek(len(mark))
    except BaseException:
        raw.close()
        raise
    return io.BufferedReader(_AsUtf8(raw, encoding), 1 << 16) if encoding else raw


@dataclass(frozen=True)
class Line:
    number: int
    text: str


def lines(source: Source) -> Iterator[Line | Bad]:
    """Each line, without its end; a Bad for one that is too long or is not UTF-8 (with the column of the byte)."""
    with closing(opened(source)) as stream:
        number = 0
        while raw := stream.readline(LINE + 1):
            number += 1
            where = Where(source.name, number)
            if len(raw) > LINE:
                begin, rest = raw[:SHOWN].decode("utf-8", "replace"), raw[-1:]
                del raw
                while rest and not rest.endswith(b"\n"):
                    rest = stream.readline(1 << 20)
                what = f"is longer than {LINE >> 20} MB"
                yield Bad("line", what, "cut it into rows, or check for a missing line end", where, begin)
                continue
            try:
                yield Line(number, raw.decode("utf-8").removesuffix("\n").removesuffix("\r"))
            except UnicodeDecodeError as problem:
                yield not_utf8(raw, problem, where)


def not_utf8(raw: bytes, problem: UnicodeDecodeError, where: Where) -> Bad:
    column = len(raw[: problem.start].decode("utf-8", "replace")) + 1
    what = f"is not UTF-8: byte 0x{raw[problem.start]:02X} at column {column}"
    return Bad("line", what, "save the file as UTF-8", where, raw[:SHOWN].decode("utf-8", "replace"))
