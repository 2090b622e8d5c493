"""Files in, rows out: every row knows its file and line, and what cannot be read is a Bad row, never a traceback.

In: the names a user writes (files, folders, globs, Hub names).  Out: Row and Bad, one after the other, in flat
memory (`.json` arrays and documents are held whole, up to a limit).  A line number is that of the row's first line;
in Parquet and on the Hub, where there are no lines, it is the row's number.
"""

from __future__ import annotations

import glob
import gzip
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from burnish.data import files, json_rows, tables
from burnish.data.files import Source, lines
from burnish.data.rows import SHOWN, Bad, Row
from burnish.errors import BurnishError, DataError, MissingExtra
from burnish.records import Where

FORMATS = {
    **{".csv": "csv", ".tsv": "tsv", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl"},
    **{".parquet": "parquet", ".txt": "txt", ".text": "txt", ".md": "txt"},
}
FAMILY = {"csv": "table", "tsv": "table", "json": "json", "jsonl": "json"}
HUB = re.compile(r"(?:hub:)?([\w.-]+/[\w.-]+)(?::([\w.-]+))?(?:@([\w.\[\]:%-]+))?")
TextMode = Literal["document", "line", "labelled"]
LABELLED_LINE = re.compile(r"(\S+)[ \t]+(\S.*)", re.DOTALL)


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
        **{
            "csv": tables.read,
            "tsv": tables.read,
            "json": json_rows.read_array,
            "jsonl": json_rows.read_lines,
            "parquet": _parquet,
            "hub": _hub,
        },
        "txt": {"document": _document, "line": _line, "labelled": _labelled}[text_mode],
    }
    line, rows = 1, 0
    try:
        for item in formats[source.format](source):
            line, rows = item.where.line, rows + 1
            yield item
    except (OSError, EOFError, zlib.error) as problem:
        reason = f"cannot be read on: {_reason(problem)}"
        do = "the file is damaged or cut short; fetch it again"
        yield Bad("file", reason, do, Where(source.name, line), last=True)
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


# --- text ----------------------------------------------------------------------------------------------------


def _document(source: Source) -> Iterator[Row | Bad]:
    parts, size, bad = list[str](), 0, False
    for line in lines(source):
        if isinstance(line, Bad):
            bad = True
            yield line
            continue
        size += len(line.text) + 1
        if size > files.LINE:
            what = f"is a document of more than {files.LINE >> 20} MB"
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
        yield Bad("file", what, "write it again, or fetch it again", Where(source.name, number + 1), last=True)


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
