"""A disk under watch: what is about to change on it, what a power cut leaves of it, and acts in a child to be killed.

In: something that writes.  Out: every change just before it happens, so that a test can kill, fail or record there.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@contextlib.contextmanager
def watched(before: Callable[..., None]) -> Iterator[None]:
    """Call `before(kind, path, more)` ahead of every create, write, fsync, mkdir, rename, unlink and rmdir."""

    def full(path: Any, handle: int | None) -> Path:
        return Path(os.readlink(f"/proc/self/fd/{handle}")) / path if handle is not None else Path(path)

    def named(kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *more: Any, dir_fd: int | None = None, **rest: Any) -> Any:
            before(kind, full(path, dir_fd), *more)
            return real(path, *more, **rest) if dir_fd is None else real(path, *more, dir_fd=dir_fd, **rest)

        return call

    def fsync(handle: int) -> None:
        before("fsync", Path(os.readlink(f"/proc/self/fd/{handle}")))
        real_fsync(handle)

    def opened(self: Path, mode: str = "r", *more: Any, **rest: Any) -> Any:
        if "x" not in mode and "w" not in mode:
            return real_open(self, mode, *more, **rest)
        before("create", self)
        stream = real_open(self, mode, 0, **rest)

        class Stream:
            def write(_, data: Any) -> int:
                view = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")
                for half in (view[: len(view) // 2], view[len(view) // 2 :]):  # a kill may tear a write
                    before("write", self, bytes(half))
                    stream.write(half)
                return len(view)

            def __enter__(self) -> Stream:
                return self

            def __exit__(self, *problem: Any) -> None:
                stream.close()

            def __getattr__(self, name: str) -> Any:
                return getattr(stream, name)

        return Stream()

    real_fsync, real_open = os.fsync, Path.open
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("mkdir", "rename", "unlink", "rmdir"):
            patch.setattr(os, kind, named(kind, getattr(os, kind)))
        patch.setattr(os, "fsync", fsync)
        patch.setattr(Path, "open", opened)
        yield


def at(count: int, act: Callable[[], None]) -> Callable[..., None]:
    """Do `act` at the count-th change, once."""
    seen = itertools.count(1)
    return lambda *change: act() if next(seen) == count else None


def forked(act: Callable[[], Any]) -> int:
    """Run `act` in a forked child; returns its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Node:
    """A file or folder as the disk may remember it: a file's pieces, and how many of them were synced."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.synced = 0
        self.live: dict[str, Node] = {}


class Log:
    """Every change under a root, from which any state after a power cut can be built.

    The model is harsher than ext4: unsynced directory changes survive in any combination, unsynced content survives
    in part or as zeros.  A change is safe once the folder it is in was synced.
    """

    def __init__(self, root: Path, deaf: str = "") -> None:
        self.root = root
        self.deaf = deaf  # a kind of fsync to ignore, to see that the test bites
        self.changes: list[tuple[Any, ...]] = []

    def before(self, kind: str, path: Path, *more: Any) -> None:
        path = path if path.is_absolute() else Path.cwd() / path
        if kind == "fsync":
            what = "staged" if path.name.startswith(".tmp-") else "parent" if path.is_dir() else "file"
            if what == self.deaf:
                return
        if kind != "write" and kind != "rename":
            more = ()
        self.changes.append((kind, path.relative_to(self.root), *more))

    def returned(self, step: int) -> None:
        self.changes.append(("returned", step))

    def after_cut(self, cut: int, target: Path, draw: random.Random) -> int:
        """Build in `target` what a disk may hold after a cut at change `cut`; returns the last step saved by then."""
        top, saved = Node(), 0
        moves: list[list[Any]] = []  # [safe, [(folder, name, node or None), ...]]

        def find(path: Path) -> Node:
            node = top
            for part in path.parts:
                node = node.live[part]
            return node

        def move(*entries: tuple[Node, str, Node | None]) -> None:
            for folder, name, node in entries:
                if node is None:
                    del folder.live[name]
                else:
                    folder.live[name] = node
            moves.append([False, entries])

        for kind, path, *more in self.changes[:cut]:
            if kind == "returned":
                saved = path
            elif kind in ("mkdir", "create"):
                move((find(path.parent), path.name, Node()))
            elif kind == "write":
                find(path).pieces.append(more[0])
            elif kind in ("unlink", "rmdir"):
                move((find(path.parent), path.name, None))
            elif kind == "rename":
                new = Path(more[0]).relative_to(self.root)
                node = find(path)
                move((find(path.parent), path.name, None), (find(new.parent), new.name, node))
            else:
                node = find(path)
                node.synced = len(node.pieces)
                for entry in moves:
                    entry[0] = entry[0] or any(folder is node for folder, *_ in entry[1])

        luck = draw.choice([0.0, 0.2, 0.5, 0.8, 1.0])
        disk: dict[int, dict[str, Node]] = {}
        for safe, entries in moves:
            if safe or draw.random() < luck:
                for folder, name, child in entries:
                    there = disk.setdefault(id(folder), {})
                    there.pop(name, None)
                    if child is not None:
                        there[name] = child
        files = {id(folder) for _, entries in moves for folder, *_ in entries}

        def build(node: Node, at: Path) -> None:
            if node.pieces or (id(node) not in files and at.suffix in (".json", ".safetensors")):
                rest = b"".join(node.pieces[node.synced :])
                rest = draw.choice([rest, b"", bytes(len(rest)), rest[: draw.randrange(len(rest) + 1)]])
                at.write_bytes(b"".join(node.pieces[: node.synced]) + rest)
                return
            at.mkdir()
            for name, child in disk.get(id(node), {}).items():
                build(child, at / name)

        build(top, target)
        return saved


@contextlib.contextmanager
def traced(act: Callable[[], Any], options: list[str], log: Path) -> Iterator[None]:
    """Run `act` in a forked child under strace; the child starts once it is watched."""
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.read(ready, 1)
            act()
        finally:
            os._exit(0)
    tracer = subprocess.Popen(
        ["strace", "-y", "-o", log, *options, "-p", str(child)], stderr=subprocess.PIPE, text=True
    )
    assert tracer.stderr is not None
    first = tracer.stderr.readline()
    os.write(go, b"x")
    os.waitpid(child, 0)
    tracer.wait()
    tracer.stderr.close()
    os.close(ready)
    os.close(go)
    if "attached" not in first:
        pytest.skip(f"strace may not attach here: {first.strip()}")
    yield
