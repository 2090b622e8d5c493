"""Files in, rows out: every row knows its file and line, and what cannot be read is a Bad row, never a traceback.

In: the names a user writes (files, folders, globs, Hub names).  Out: Row and Bad, one after the other, in flat
memory (`.json` arrays and documents are held whole, up to a limit).  A line number is that of the row's first line;
in Parquet and on the Hub, where there are no lines, it is the row's number.
"""

from __future__ import annotations

import codecs
import csv
import glob
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

from burnish.data.rows import SHOWN, Bad, Row
from burnish.errors import BurnishError, DataError, MissingExtra
from burnish.records import Where

LINE = 64 * 2**20  # bytes; longer lines are refused by number, without being held in memory
WHOLE = 512 * 2**20  # bytes of a .json array that is read as one
RECORD = 20_000  # lines that one quoted CSV record may span
DEPTH = 64  # lists and objects inside each other
FORMATS = {
    **{".csv": "csv", ".tsv": "tsv", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl"},
    **{".parquet": "parquet", ".txt": "txt", ".text": "txt", ".md": "txt"},
}
FAMILY = {"csv": "table", "tsv": "table", "json": "json", "jsonl": "json"}
HUB = re.compile(r"(?:hub:)?([\w.-]+/[\w.-]+)(?::([\w.-]+))?(?:@([\w.\[\]:%-]+))?")
TextMode = Literal["document", "line", "labelled"]
LABELLED_LINE = re.compile(r"(\S+)[ \t]+(\S.*)", re.DOTALL)


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


# --- names -> files ------------------------------------------------------------------------------------------


def find(names: Sequence[str], folder: str | Path = ".") -> list[Source]:
    """The files behind names, in the order given, those of a folder or glob sorted; each once."""
    if not names:
        raise DataError("No data files are named", "data.files", "name a file or a folder")
    found: dict[Path, Source] = {}
    for name in names:
        for source in _behind(name, Path(folder)):
            found.setdefault(source.path, source)
    return list(found.values())


def _behind(name: str, folder: Path) -> list[Source]:
    path = folder / Path(name).expanduser()
    try:
        if path.is_file():
            return [_source(path)]
        if path.is_dir():
            return _inside(path)
        matches = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(name) else []
    except (OSError, ValueError) as problem:
        raise DataError(f"The data cannot be opened: {problem}", name[:200], "check the name") from None
    if matches:
        return [_source(Path(match)) for match in matches if Path(match).is_file()]
    here = path.parent.is_dir() or Path(name).suffix in (*FORMATS, ".gz")  # a slip in a file's name is no Hub name
    if HUB.fullmatch(name) and (name.startswith("hub:") or not here):
        return [Source(name if name.startswith("hub:") else f"hub:{name}", Path(name), "hub")]
    raise DataError("There is no such file or folder", str(path), "check data.files; names start at the task's folder")


def _format(path: Path) -> tuple[str | None, bool]:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    gz = bool(suffixes) and suffixes[-1] == ".gz"
    last = suffixes[-2:-1] if gz else suffixes[-1:]
    return FORMATS.get(last[0]) if last else None, gz


def _source(path: Path) -> Source:
    kind, gz = _format(path)
    if kind is None:
        raise DataError(
            f'Burnish does not read "{path.suffix or path.name}" files',
            str(path),
            "convert it to csv, tsv, json, jsonl, parquet or txt (each may be .gz)",
        )
    return Source(str(path), path, kind, gz)


def _inside(folder: Path) -> list[Source]:
    """The data files in a folder and below, sorted; hidden files, notes (.md) and unknown kinds are passed over."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    sources = [_source(path) for path in paths if _format(path)[0] and path.suffix.lower() != ".md"]
    families = {FAMILY.get(source.format, source.format): source for source in sources}
    if not sources:
        raise DataError(
            "The folder holds no data files", str(folder), "put csv, tsv, json, jsonl, parquet or txt files there"
        )
    if len(families) > 1:
        raise DataError(
            f"The folder holds several kinds of data: {', '.join(sorted(families))}",
            str(folder),
            f'name the files you mean, e.g. "{sources[0].name}"',
        )
    return sources


# --- files -> rows -------------------------------------------------------------------------------------------


def read(source: Source, text_mode: TextMode = "document") -> Iterator[Row | Bad]:
    """The rows of one file; what breaks off the reading is the last Bad row."""
    formats: dict[str, Callable[[Source], Iterator[Row | Bad]]] = {
        **{"csv": _table, "tsv": _table, "json": _json, "jsonl": _jsonl, "parquet": _parquet, "hub": _hub},
        "txt": {"document": _document, "line": _line, "labelled": _labelled}[text_mode],
    }
    line, rows = 1, 0
    try:
        for item in formats[source.format](source):
            line, rows = item.where.line, rows + 1
            yield item
    except (OSError, EOFError, zlib.error) as problem:
        reason = f"cannot be read on: {_reason(problem)}"
        yield Bad("file", reason, "the file is damaged or cut short; fetch it again", Where(source.name, line), "")
        return
    if not rows:
        yield Bad("file", "holds no rows", "add rows, or remove it from data.files", Where(source.name, 1), "")


def _reason(problem: BaseException) -> str:
    """The first line of what a library says, without machine noise."""
    return (getattr(problem, "strerror", None) or str(problem) or type(problem).__name__).strip().splitlines()[0][:200]


def text_mode(sources: Sequence[Source], shape: str, goal: str, columns: dict[str, Any]) -> TextMode:
    """How to read text files: a document a file, a document a line, or `LABEL text` lines.

    `columns: {document: line}` asks for lines.  Lines that all begin with a mark that looks like a class (1, -1,
    __label__x, DESC:manner), few of them and repeated, are labelled; with a labelled shape or a goal to classify or
    regress any first word counts as the class.
    """
    if "line" in columns.values():
        return "line"
    texts = [source for source in sources if source.format == "txt"]
    if not texts or "document" in columns.values() or shape not in ("auto", "labelled"):
        return "document"
    if goal not in ("", "classify", "regress"):
        return "document"
    head = [item for item in islice(read(texts[0], "line"), 200) if isinstance(item, Row)]
    lines = [LABELLED_LINE.fullmatch(row.values["line"]) for row in head]
    marks = [match[1] for match in lines if match]
    if len(marks) < len(head) or len(marks) < 4 or not 2 <= len(set(marks)) <= len(marks) / 2:
        return "document"
    clear = all(re.fullmatch(r"[-+]?\d+(\.\d+)?|__label__\S+|[A-Z]{2,}(:\w+)?", mark) for mark in marks)
    return "labelled" if clear or shape == "labelled" or goal in ("classify", "regress") else "document"


# --- lines ---------------------------------------------------------------------------------------------------

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


def _open(source: Source) -> BinaryIO:
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
    with closing(_open(source)) as stream:
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
                yield _not_utf8(raw, problem, where)


def _not_utf8(raw: bytes, problem: UnicodeDecodeError, where: Where) -> Bad:
    column = len(raw[: problem.start].decode("utf-8", "replace")) + 1
    what = f"is not UTF-8: byte 0x{raw[problem.start]:02X} at column {column}"
    return Bad("line", what, "save the file as UTF-8", where, raw[:SHOWN].decode("utf-8", "replace"))


# --- JSON ----------------------------------------------------------------------------------------------------


class _BadJson(ValueError):
    def __init__(self, what: str, do: str = "mend it") -> None:
        super().__init__(what)
        self.what, self.do = what, do


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _BadJson(f'has the key "{twice[:60]}" twice', "keep one")
    return found


def _constant(name: str) -> Any:
    raise _BadJson(f"holds {name}, which is not JSON", "write a number, or null")


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def _parse(text: str, start: int = 0) -> tuple[Any, int]:
    """One JSON value from `start`, and where it ends; raises _BadJson in a person's words."""
    try:
        value, end = DECODER.raw_decode(text, start)
    except RecursionError:
        raise _BadJson(f"is nested more than {DEPTH} deep", "flatten it") from None
    except json.JSONDecodeError as problem:
        line_start = text.rfind("\n", 0, problem.pos) + 1
        told = problem.msg[:1].lower() + problem.msg[1:]
        wrong = _BadJson(f"is not valid JSON: {told} at column {problem.pos - max(line_start, 0) + 1}")
        wrong.args = (problem.pos,)
        raise wrong from None
    except ValueError as problem:
        if isinstance(problem, _BadJson):
            raise
        raise _BadJson("holds a number of too many digits", "shorten it, or write it as text") from None
    if text.count("[", start, end) + text.count("{", start, end) > DEPTH and _depth(value) > DEPTH:
        raise _BadJson(f"is nested more than {DEPTH} deep", "flatten it")
    return value, end


def _depth(value: object) -> int:
    """How many lists and objects are inside each other; stops counting past the limit."""
    level, depth = [value], 0
    while level and depth <= DEPTH + 1:
        level = [inner for item in level for inner in _inner(item)]
        depth += 1
    return depth - 1


def _inner(item: object) -> Sequence[object]:
    return list(item.values()) if isinstance(item, dict) else item if isinstance(item, list) else ()


def _row(value: object, where: Where, text: str) -> Row | Bad:
    if isinstance(value, dict):
        return Row(value, where)
    return Bad("row", "is not a JSON object", 'write {"column": value, ...}', where, text[:SHOWN])


def _jsonl(source: Source) -> Iterator[Row | Bad]:
    for line in lines(source):
        if isinstance(line, Bad):
            yield line
        elif line.text.strip():
            where = Where(source.name, line.number)
            try:
                text = line.text.strip()
                value, end = _parse(text)
                if text[end:].strip():
                    raise _BadJson(f"goes on after the JSON value, at column {end + 1}", "write one object a line")
                yield _row(value, where, text)
            except _BadJson as problem:
                yield Bad("row", problem.what, problem.do, where, line.text[:SHOWN])


SPACE = re.compile(r"[ \t\r\n]*")


def _json(source: Source) -> Iterator[Row | Bad]:
    """An array of objects, an object that holds one such array, one object, or objects one after the other."""
    whole = io.BytesIO()
    with closing(_open(source)) as stream:
        while piece := stream.read(1 << 20):
            whole.write(piece)
            if whole.tell() > WHOLE:
                what = f"is a JSON file of more than {WHOLE >> 20} MB"
                yield Bad("file", what, "write it as JSONL, one object a line", Where(source.name, 1), "")
                return
    raw = whole.getvalue()
    del whole
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as problem:
        number = raw.count(b"\n", 0, problem.start) + 1
        begin = raw.rfind(b"\n", 0, problem.start) + 1
        line = raw[begin : problem.end + SHOWN]
        wrong = UnicodeDecodeError("utf-8", line, problem.start - begin, problem.end - begin, problem.reason)
        yield _not_utf8(line, wrong, Where(source.name, number))
        return
    start = _skip(text, 0)
    if text[start : start + 1] == "{":
        arrays = _arrays_inside(text, start)
        if len(arrays) > 1:
            what = f"holds {len(arrays)} lists ({', '.join(list(arrays)[:5])[:100]}), not one"
            yield Bad("file", what, "save the list you mean as a file of its own", Where(source.name, 1), text[:SHOWN])
            return
        start = next(iter(arrays.values()), start)
    if text[start : start + 1] == "[":
        yield from _elements(text, start + 1, source)
    elif text[start : start + 1] == "{" and not text.strip().endswith("}"):
        yield from _jsonl(source)
    elif start < len(text):
        yield from _objects(text, start, source)


def _skip(text: str, at: int) -> int:
    found = SPACE.match(text, at)
    return found.end() if found else at


def _arrays_inside(text: str, start: int) -> dict[str, int]:
    """Where each list of rows in the object at `start` begins, by its key; {} when the file goes on after the object.

    A list of turns is no list of rows.
    """
    at, arrays = _skip(text, start + 1), {}
    try:
        while text[at : at + 1] == '"':
            name, at = _parse(text, at)
            at = _skip(text, _skip(text, at) + 1)
            value, end = _parse(text, at)
            first = value[0] if isinstance(value, list) and value else None
            if isinstance(first, list) or (isinstance(first, dict) and not {"role", "from"} & first.keys()):
                arrays[str(name)] = at
            at = _skip(text, end)
            at = _skip(text, at + 1) if text[at : at + 1] == "," else at
    except _BadJson:
        return {}
    return arrays if text[at : at + 1] == "}" and _skip(text, at + 1) == len(text) else {}


def _objects(text: str, at: int, source: Source) -> Iterator[Row | Bad]:
    line, seen = 1, 0
    while at < len(text):
        line, seen = line + text.count("\n", seen, at), at
        try:
            value, end = _parse(text, at)
            yield _row(value, Where(source.name, line), text[at : at + SHOWN])
        except _BadJson as problem:
            yield _broken(text, at, line, problem, source)
            end = text.find("\n{", at) + 1 or len(text)
        at = _skip(text, end)


def _elements(text: str, at: int, source: Source) -> Iterator[Row | Bad]:
    """The elements of an array; after a broken one, reading goes on where the next seems to begin."""
    line, seen, indent = 1, 0, ""
    at = _skip(text, at)
    while at < len(text) and text[at] != "]":
        line, seen = line + text.count("\n", seen, at), at
        try:
            value, end = _parse(text, at)
            follow = _skip(text, end)
            if text[follow : follow + 1] not in (",", "]"):
                raise _BadJson('is not followed by "," or "]"', "put a comma between two rows")
            yield _row(value, Where(source.name, line), text[at : at + SHOWN])
            indent = text[text.rfind("\n", 0, at) + 1 : at]
            at = _skip(text, follow + 1) if text[follow] == "," else follow
        except _BadJson as problem:
            bad = _broken(text, at, line, problem, source)
            again = re.compile(rf"\n{indent}\{{" if not indent.strip() else r"\n\s*\{").search(text, at + 1)
            if again is None and "\n" in text[at:]:
                bad = Bad(bad.field, f"{bad.what}; nothing after it is read", bad.do, bad.where, bad.text)
            yield bad
            at = again.end() - 1 if again else len(text) + 1
    if at == len(text):
        where = Where(source.name, 1 + text.count("\n"))
        yield Bad("file", 'the array has no end: "]" is missing', "the file is cut short; fetch it again", where, "")


def _broken(text: str, at: int, line: int, problem: _BadJson, source: Source) -> Bad:
    """At the line of the fault when the parser knows it, else at the row's first line."""
    place = problem.args[0] if problem.args and isinstance(problem.args[0], int) else at
    where = Where(source.name, line + text.count("\n", at, place))
    return Bad("row", problem.what, problem.do, where, text[at : at + SHOWN])


# --- tables --------------------------------------------------------------------------------------------------


class _Feed:
    """Lines for csv.reader that can be handed back: after a quote that never closes, reading goes on one line later."""

    def __init__(self, source: Source) -> None:
        self.source, self.items, self.back = source, lines(source), list[Line]()
        self.taken, self.bad, self.size = list[Line](), list[Bad](), 0

    def __iter__(self) -> Iterator[str]:
        while True:
            line = self.back.pop() if self.back else next(self.items, None)
            if line is None:
                return
            if isinstance(line, Bad):
                self.bad.append(line)
                if self.taken:  # a bad line inside a quoted record breaks the record
                    return
                yield "\n"
                continue
            self.taken.append(line)
            self.size += len(line.text)
            if len(self.taken) > RECORD or self.size > LINE:
                return
            yield line.text + "\n"


def _records(source: Source, delimiter: str) -> Iterator[tuple[int, list[str], str] | Bad]:
    """(first line, cells, text) of each record."""
    csv.field_size_limit(LINE)
    feed = _Feed(source)
    plain_tabs = delimiter == "\t"
    while True:
        feed.taken, feed.size = [], 0
        fault = ""
        cells: list[str] | None = None
        try:
            reader = csv.reader(iter(feed), delimiter=delimiter, strict=True, skipinitialspace=not plain_tabs)
            cells = next(reader, None)
        except csv.Error as problem:
            fault = str(problem)
        broken, feed.bad = feed.bad, []
        if not feed.taken and not broken:
            return
        if fault and feed.taken:
            first = feed.taken[0]
            feed.back += reversed(feed.taken[1:])
            if plain_tabs:
                cells = first.text.split("\t")
            else:
                what, do = _quote_fault(fault)
                yield Bad("row", what, do, Where(source.name, first.number), first.text[:SHOWN])
        if cells and feed.taken:
            text = "\n".join(line.text for line in feed.taken[:50])[:SHOWN] if not fault else feed.taken[0].text[:SHOWN]
            yield feed.taken[0].number, cells, text
        yield from broken


def _quote_fault(fault: str) -> tuple[str, str]:
    if "unexpected end" in fault:
        return 'a quote opened here is never closed (")', 'close it, or write a quote inside a text as ""'
    if "expected after" in fault:
        return 'text follows a closing quote (")', 'write a quote inside a quoted text as ""'
    if "new-line" in fault:
        return "a lone carriage return stands in the row", "save the file with plain line ends (LF)"
    return f"is not valid CSV: {fault}", "mend it"


def _delimiter(source: Source) -> str:
    """Tab for .tsv; else whichever of , ; tab | comes most often in the first line."""
    if source.format == "tsv":
        return "\t"
    first = next((line.text for line in lines(source) if isinstance(line, Line) and line.text.strip()), "")
    return max((",", ";", "\t", "|"), key=lambda mark: first.count(mark))


def _table(source: Source) -> Iterator[Row | Bad]:
    """Rows by column; a first line that holds numbers is data, and columns are then called 1, 2, 3 ..."""
    header: list[str] | None = None
    for record in _records(source, _delimiter(source)):
        if isinstance(record, Bad):
            yield record
            if header is None:
                what = "the line with the column names cannot be read, so no row can"
                yield Bad("file", what, "mend the first line", record.where, record.text)
                return
            continue
        number, cells, text = record
        where = Where(source.name, number)
        if header is None:
            header = [cell.strip() for cell in cells]
            if any(re.fullmatch(r"[-+]?\d+(\.\d+)?", cell) for cell in header):
                header = [str(at) for at in range(1, len(cells) + 1)]
            elif len(set(header)) < len(header):
                twice = next(name for name in header if header.count(name) > 1)
                what = f'the first line names the column "{twice[:60]}" twice'
                yield Bad("header", what, "give every column its own name", where, text)
                return
            else:
                continue
        if len(cells) > len(header) and not any(cell.strip() for cell in cells[len(header) :]):
            cells = cells[: len(header)]
        if len(cells) != len(header):
            what = f"has {len(cells)} cells where the first line has {len(header)}"
            do = "put quotes around a text that holds the separator, or fill in what is missing"
            yield Bad("row", what, do, where, text)
            continue
        yield Row(dict(zip(header, cells, strict=True)), where)


# --- text ----------------------------------------------------------------------------------------------------


def _document(source: Source) -> Iterator[Row | Bad]:
    parts, size, bad = list[str](), 0, False
    for line in lines(source):
        if isinstance(line, Bad):
            bad = True
            yield line
            continue
        size += len(line.text) + 1
        if size > LINE:
            what = f"is a document of more than {LINE >> 20} MB"
            do = "cut it into files, or set data.columns: {document: line}"
            yield Bad("file", what, do, Where(source.name, line.number), parts[0][:SHOWN])
            return
        parts.append(line.text)
    if not bad and parts:
        text = "\n".join(parts)
        yield Row(
            {"document": text, "folder": source.path.parent.name, "file": source.path.name}, Where(source.name, 1)
        )


def _line(source: Source) -> Iterator[Row | Bad]:
    for line in lines(source):
        if isinstance(line, Bad):
            yield line
        elif line.text.strip():
            yield Row({"line": line.text}, Where(source.name, line.number))


def _labelled(source: Source) -> Iterator[Row | Bad]:
    """`LABEL text` lines; a label like DESC:manner is also given as its two levels, `coarse` and `fine`."""
    for row in _line(source):
        if isinstance(row, Bad):
            yield row
            continue
        text = row.values["line"]
        match = LABELLED_LINE.fullmatch(text.strip())
        if match is None:
            yield Bad("line", "is not a label and a text", "write LABEL text on every line", row.where, text[:SHOWN])
            continue
        label = match[1].removeprefix("__label__")
        coarse, colon, fine = label.partition(":")
        levels = {"coarse": coarse, "fine": fine} if colon else {}
        yield Row({"label": label, "text": match[2], **levels}, row.where)


# --- Parquet and the Hub -------------------------------------------------------------------------------------


def _parquet(source: Source) -> Iterator[Row | Bad]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("Parquet", "parquet") from None
    number = 0
    try:
        with gzip.open(source.path) if source.gz else source.path.open("rb") as stream:
            for batch in pyarrow.parquet.ParquetFile(stream).iter_batches(batch_size=256):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(values, Where(source.name, number))
    except (
        pyarrow.ArrowException,
        OSError,
        EOFError,
        zlib.error,
        ValueError,
        TypeError,
        OverflowError,
        KeyError,
    ) as problem:
        what = f"is not readable Parquet: {_reason(problem)}"
        yield Bad("file", what, "write it again, or fetch it again", Where(source.name, number + 1), "")


def _hub(source: Source) -> Iterator[Row | Bad]:
    """A data set of the Hub, `owner/name:configuration@split` (split: train), streamed; no code of it is run."""
    try:
        import datasets
    except ImportError:
        raise MissingExtra(f"{source.name} is no file here, and reading it from the Hub", "hub") from None
    match = HUB.fullmatch(source.name)
    assert match is not None, source.name
    try:
        rows = datasets.load_dataset(match[1], match[2], split=match[3] or "train", streaming=True)
        for number, values in enumerate(rows, 1):
            yield Row(dict(values), Where(source.name, number))
    except BurnishError:
        raise
    except Exception as problem:  # the library raises its own, the network's and the parsers' errors
        raise DataError(
            f"The Hub data set cannot be read: {_reason(problem)}", source.name, "check the name and the network"
        ) from None
