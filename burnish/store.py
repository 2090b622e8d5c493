"""Where everything lives on disk, and the only way anything is written there: whole or not at all.

In: bytes and names.  Out: files that survive a kill at any instant.  A name is an id, never a path.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from burnish.errors import ArtifactError, BurnishError, TrainError

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,80}")


def home() -> Path:
    """`BURNISH_HOME`, by default ./burnish_home."""
    return Path(os.environ.get("BURNISH_HOME", "burnish_home"))


def runs() -> Path:
    return home() / "runs"


def run_folder(name: str) -> Path:
    """The folder of a run; refuses anything that is not a plain id."""
    if not NAME.fullmatch(name) or ".." in name:
        raise BurnishError(f'"{name}" is not a run name', do="`burnish runs` lists them")
    return runs() / name


def slug(text: str) -> str:
    """A run-name-safe form of any text: lower case letters, digits and hyphens, at most 40."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "task"


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def disk_errors(path: Path, needed: int = 0) -> Iterator[None]:
    """Turn a full or failing disk into an error that names the path and the bytes."""
    try:
        yield
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG):
            try:
                free = shutil.disk_usage(path if path.is_dir() else path.parent).free
            except OSError:
                free = 0
            need = f"{needed:,} bytes needed, " if needed else ""
            do = "free some space" if problem.errno != errno.EROFS else "name a folder that can be written to"
            raise TrainError(
                f"Cannot write: {os.strerror(problem.errno)}",
                f"{path} ({need}{free:,} bytes free)",
                f"{do} and give the same command again; what was saved before is intact",
            ) from problem
        raise


@contextlib.contextmanager
def replacing(path: Path, needed: int = 0) -> Iterator[BinaryIO]:
    """A stream to a file that takes the place of `path`, atomically and durably, once the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path, needed):
        try:
            with staged.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            staged.replace(path)
            sync_folder(path.parent)
        except BaseException:
            staged.unlink(missing_ok=True)
            raise


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` atomically and durably."""
    with replacing(path, len(data)) as stream:
        stream.write(data)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=True) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows one by one (flat memory) to a staged file, then put it in place; returns how many."""
    count = 0
    with replacing(path) as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            count += 1
    return count


def read_json(path: Path, kind: type[Any] = dict) -> Any:
    """What Burnish wrote to a file, an empty `kind` (dict or list) where none is; raises ArtifactError on damage."""
    return _parsed(path.read_bytes(), kind, path) if path.exists() else kind()


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a file that Burnish wrote; a torn last line (a kill while appending) is left out.

    Raises ArtifactError at a line that is damaged.
    """
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                return
            yield _parsed(line, dict, path, number)


def _parsed(data: bytes, kind: type[Any], path: Path, line: int = 0) -> Any:
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, kind):
        what, where = f"{path.name} is damaged", f"{path} line {line}" if line else str(path)
        raise ArtifactError(what, where, "restore it, or remove it and give the same command again")
    return told


def append_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows durably; a torn last line of an earlier kill is cut off first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors(path), path.open("a+b") as stream:
        size = stream.seek(0, os.SEEK_END)
        if size:
            stream.seek(size - 1)
            if stream.read(1) != b"\n":
                stream.seek(0)
                stream.truncate(stream.read().rfind(b"\n") + 1)
        stream.seek(0, os.SEEK_END)
        stream.write(b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
        stream.flush()
        os.fsync(stream.fileno())


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold a folder for this process alone, waiting for its turn or refusing; a lock ends with its process."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise BurnishError(
                "Another process is working on this run", str(folder), "wait for it, or stop it first"
            ) from None
        yield
    finally:
        os.close(handle)


# --- stopping ------------------------------------------------------------------------------------------------

_stop = False


def request_stop() -> None:
    """Ask the work in this process to save and end after its current step; safe inside a signal handler."""
    global _stop
    _stop = True


def stop_requested() -> bool:
    """Whether somebody asked: a loop polls this between steps, saves, and raises `errors.Interrupted`."""
    return _stop
