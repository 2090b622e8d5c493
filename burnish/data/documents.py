"""A person's documents as plain text that knows its places: txt, md, and (extra `retrieval`) html, pdf and docx.

In: names of files, folders or globs.  Out: Documents: text, and sections with the heading or page they stand under.
Whatever a file holds is text: scripts and styles are dropped, nothing is fetched or run, sizes are bounded, and a file
that cannot be read is refused by name and page or line.
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from burnish import store
from burnish.errors import DataError, MissingExtra

FILE = 64 * 2**20  # bytes of one file
TEXT = 20_000_000  # characters of one document
PAGES = 5_000
UNPACKED = 256 * 2**20  # bytes that a docx may unpack to
VERSION = 1  # of what is read out of a file: a kept text of another version is read anew
HEADING = re.compile(r"#{1,6}[ \t]+")
FENCE = re.compile(r"[ \t]*(```|~~~)")
UNSEEN = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class Section:
    """text[start:end] of a document stands under this heading ("page 3" in a pdf; '' where there is none)."""

    heading: str
    start: int
    end: int


@dataclass(frozen=True)
class Document:
    """name: as it is cited.  sha256: of the file's bytes.  text: of a txt or md file, exactly what it holds."""

    name: str
    sha256: str
    text: str
    sections: tuple[Section, ...]


def find(names: Sequence[str], root: str | Path = ".") -> dict[str, Path]:
    """Files by the name they are cited by: as written, and below a folder by their path in it."""
    found: dict[str, Path] = {}
    for name in names:
        path = Path(root) / Path(name).expanduser()
        if path.is_dir():
            inside = sorted(item for item in path.rglob("*") if item.suffix.lower() in READERS and item.is_file())
            inside = [item for item in inside if not any(p.startswith(".") for p in item.relative_to(path).parts)]
            found |= {item.relative_to(path).as_posix(): item for item in inside}
        elif path.is_file():
            found[path.name] = path
        else:
            matches = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(name) else []
            if not matches:
                do = "names start at the task's folder"
                raise DataError("There is no such document or folder", str(path)[:300], do)
            found |= {Path(item).name: Path(item) for item in matches if Path(item).suffix.lower() in READERS}
    if not found:
        raise DataError("No documents are found", ", ".join(names)[:300], f"name files that end in {KNOWN}")
    return found


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    return hashlib.sha256(_bytes(path)).hexdigest()


def load(name: str, path: Path) -> Document:
    """The document in a file, from the copy kept in BURNISH_HOME while the file's bytes are the same."""
    data = _bytes(path)
    digest = hashlib.sha256(data).hexdigest()
    kept = store.home() / "cache" / "documents" / f"{digest}{path.suffix.lower()}.{VERSION}.json"
    try:
        told = json.loads(kept.read_text(encoding="utf-8"))
        return Document(name, digest, told["text"], tuple(Section(*item) for item in told["sections"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    text, sections = read(data, path)
    told = {"text": text, "sections": [[item.heading, item.start, item.end] for item in sections]}
    store.write_json(kept, told)
    return Document(name, digest, text, tuple(sections))


def read(data: bytes, path: Path) -> tuple[str, list[Section]]:
    """(text, sections) of a file's bytes, read as its name ends; raises DataError with the page or line."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f'Documents that end in "{path.suffix}" are not read', str(path), f"use {KNOWN}")
    text, sections = reader(data, path)
    if len(text) > TEXT:
        raise DataError(f"The document holds more than {TEXT:,} characters", str(path), "cut it into several files")
    if not text.strip():
        raise DataError("The document holds no text", str(path), "a scanned one must be recognised (OCR) first")
    return text, [item for item in sections if text[item.start : item.end].strip()]


def _bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > FILE:
            raise DataError(f"The document is larger than {FILE >> 20} MB", str(path), "cut it into several files")
        return path.read_bytes()
    except OSError as problem:
        raise DataError(f"The document cannot be read: {problem.strerror}", str(path), "check the file") from None


# --- formats -------------------------------------------------------------------------------------------------


def _decoded(data: bytes, path: Path) -> str:
    try:
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            return data.decode("utf-16")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = data[: problem.start].count(b"\n") + 1
        raise DataError("The document is not UTF-8 text", f"{path}:{line}", "save it as UTF-8") from None


def _txt(data: bytes, path: Path) -> tuple[str, list[Section]]:
    text = _decoded(data, path)
    return text, [Section("", 0, len(text))]


def _md(data: bytes, path: Path) -> tuple[str, list[Section]]:
    """Every heading begins a section; a # inside a code fence is none."""
    text = _decoded(data, path)
    sections, heading, start, at, fenced = list[Section](), "", 0, 0, False
    for line in text.splitlines(keepends=True):
        fenced ^= bool(FENCE.match(line))
        title = None if fenced else HEADING.match(line)
        if title:
            sections.append(Section(heading, start, at))
            heading, start = line[title.end() :].rstrip("# \t\r\n")[:200], at + len(line)
        at += len(line)
    return text, [*sections, Section(heading, start, len(text))]


class _Written:
    """Text put together piece by piece, with the sections it falls into."""

    def __init__(self) -> None:
        self.parts, self.size, self.heading, self.start = list[str](), 0, "", 0
        self.sections: list[Section] = []

    def add(self, text: str) -> None:
        text = UNSEEN.sub(" ", text)
        self.parts.append(text)
        self.size += len(text)

    def begin(self, heading: str) -> None:
        self.sections.append(Section(self.heading, self.start, self.size))
        self.heading, self.start = " ".join(heading.split())[:200], self.size

    def done(self) -> tuple[str, list[Section]]:
        self.begin("")
        return "".join(self.parts), self.sections


DROPPED = ("script", "style", "noscript", "template", "iframe", "object", "svg", "head")
INLINE = (
    "a",
    "b",
    "i",
    "u",
    "em",
    "strong",
    "span",
    "code",
    "sub",
    "sup",
    "small",
    "mark",
    "abbr",
    "q",
    "cite",
    "font",
)


def _html(data: bytes, path: Path) -> tuple[str, list[Section]]:
    """What a reader of the page sees, by libxml2: linear where Python's own parser is quadratic in hostile pages."""
    try:
        from lxml import etree
    except ImportError:
        raise MissingExtra("Reading html documents", "retrieval") from None
    parser = etree.HTMLParser(encoding="utf-8", no_network=True, remove_comments=True, remove_pis=True)
    written, dropped = _Written(), 0  # dropped: how deep inside elements that are not shown
    title: list[str] | None = None
    try:
        root = etree.fromstring(_decoded(data, path).encode(), parser)
        for event, item in etree.iterwalk(root, events=("start", "end")) if root is not None else ():
            opens, after = event == "start", (item.tail or "") if event == "end" else ""
            if item.tag in DROPPED:
                dropped += 1 if opens else -1
            heading = bool(re.fullmatch(r"h[1-6]", str(item.tag)))
            if not dropped and heading and not opens:
                written.begin("".join(title or ()))
            title = [] if heading and opens else None if heading else title
            told = re.sub(r"\s+", " ", (item.text or "") if opens else "")
            if not dropped and title is not None:
                title += [told, after]
            elif not dropped:
                gap = "" if item.tag in INLINE else " " if item.tag in ("td", "th") else "\n"
                written.add(gap + told + re.sub(r"\s+", " ", after))
    except etree.LxmlError as problem:
        raise DataError(f"The html cannot be read: {str(problem)[:200]}", str(path), "save it anew") from None
    return written.done()


def _pdf(data: bytes, path: Path) -> tuple[str, list[Section]]:
    try:
        from pypdf import PdfReader
    except ImportError:
        raise MissingExtra("Reading pdf documents", "retrieval") from None
    written, place = _Written(), str(path)
    try:
        reader = PdfReader(BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise DataError("The pdf is locked by a password", place, "save it without one")
        if len(reader.pages) > PAGES:
            raise DataError(f"The pdf has more than {PAGES:,} pages", place, "cut it into several files")
        for number, page in enumerate(reader.pages, 1):
            place = f"{path} page {number}"
            written.begin(f"page {number}")
            written.add(page.extract_text() + "\n")
            if written.size > TEXT:
                break
    except DataError:
        raise
    except Exception as problem:  # a damaged or hostile pdf breaks pypdf in many ways
        do = "save it anew from the program that made it"
        raise DataError(f"The pdf cannot be read: {str(problem)[:200] or type(problem).__name__}", place, do) from None
    return written.done()


def _docx(data: bytes, path: Path) -> tuple[str, list[Section]]:
    try:
        import docx
    except ImportError:
        raise MissingExtra("Reading docx documents", "retrieval") from None
    written = _Written()
    try:
        with zipfile.ZipFile(BytesIO(data)) as packed:
            if sum(item.file_size for item in packed.infolist()) > UNPACKED:
                what = f"The docx would unpack to more than {UNPACKED >> 20} MB"
                raise DataError(what, str(path), "take its pictures out, or cut it into several files")
            for item in packed.infolist():  # a header may lie: no more is unpacked than it says
                with packed.open(item) as stream:
                    while stream.read(1 << 20):
                        pass
        for block in docx.Document(BytesIO(data)).iter_inner_content():
            if isinstance(block, docx.table.Table):
                written.add("".join(" | ".join(cell.text for cell in row.cells) + "\n" for row in block.rows))
            elif ((block.style and block.style.name) or "").startswith(("Heading", "Title")):
                written.begin(block.text)
            else:
                written.add(block.text + "\n")
    except DataError:
        raise
    except Exception as problem:  # zipfile, lxml and python-docx each raise their own
        do = "save it anew as docx"
        raise DataError(
            f"The docx cannot be read: {str(problem)[:200] or type(problem).__name__}", str(path), do
        ) from None
    return written.done()


READERS: dict[str, Callable[[bytes, Path], tuple[str, list[Section]]]] = {
    ".txt": _txt,
    ".md": _md,
    ".html": _html,
    ".htm": _html,
    ".pdf": _pdf,
    ".docx": _docx,
}
KNOWN = ", ".join(READERS)
