"""A checkpoint survives kills, power cuts, full disks and flipped bits, and gives back every bit."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.errors import CheckpointError, TrainError
from burnish.train import checkpoint

IDENTITY = {"config": "c0ffee", "data": "da7a", "torch": torch.__version__, "threads": 1}
Tensors = dict[str, dict[str, torch.Tensor]]


def content(step: int) -> Tensors:
    """Small, different at every step, with the kinds of tensors a run holds."""
    draw = torch.Generator().manual_seed(step)
    weight = torch.randn(6, 4, generator=draw)
    return {
        "weights": {"a.weight": weight, "a.tied": weight[:2], "a.turned": weight.T, "b": weight.bfloat16()},
        "optimizer": {"step": torch.tensor(float(step)), "count": torch.tensor(step), "m": weight * 0.1},
        "rng": {"torch": torch.get_rng_state()[:64].clone()},
    }


def keep(folder: Path, step: int, **more: Any) -> Path:
    return checkpoint.save(folder, step, content(step), {"step": step, "best": 0.1 + step}, IDENTITY, **more)


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    return tensor.dtype, tensor.shape, flat.numpy().tobytes()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(bits(a[name]) == bits(b[name]) for name in a)


def right(found: checkpoint.Checkpoint) -> bool:
    """Whether a checkpoint holds exactly what was saved at its step."""
    expected = content(found.step)
    same = all(equal(found.tensors(name), expected[name]) for name in expected)
    return same and found.state == {"step": found.step, "best": 0.1 + found.step}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# What is saved comes back


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = keep(tmp_path / "checkpoints", 200)
    found = checkpoint.newest(tmp_path / "checkpoints", IDENTITY)
    assert found is not None
    assert right(found)
    assert (found.path, found.step, found.quarantined) == (path, 200, ())
    assert names(path) == [
        "manifest.json",
        "optimizer.safetensors",
        "rng.safetensors",
        "state.json",
        "weights.safetensors",
    ]
    json.loads((path / "manifest.json").read_text())  # plain JSON, for people and other tools


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    path = keep(tmp_path, 7)
    assert equal(safetensors.torch.load_file(path / "weights.safetensors"), content(7)["weights"])


DTYPES = list(checkpoint.DTYPES)


@st.composite
def groups(draw: st.DrawFn) -> Tensors:
    def tensor() -> torch.Tensor:
        dtype = draw(st.sampled_from(DTYPES))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        raw = torch.empty(shape, dtype=dtype)
        size = raw.numel() * raw.element_size()
        if dtype == torch.bool:
            return torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size)), dtype=dtype).reshape(shape)
        data = bytearray(draw(st.binary(min_size=size, max_size=size)))  # any bits: NaN payloads, -0.0, subnormals
        made = torch.frombuffer(data, dtype=dtype).reshape(shape) if size else raw
        return made.transpose(0, -1) if made.ndim > 1 and draw(st.booleans()) else made

    keys = st.text(max_size=5).filter(lambda name: name != "__metadata__")
    group = st.lists(keys, unique=True, max_size=4).map(lambda found: {key: tensor() for key in found})
    return {name: draw(group) for name in draw(st.sets(st.sampled_from(["weights", "optimizer", "best"])))}


@settings(max_examples=40, deadline=None)
@given(groups(), st.dictionaries(st.text(max_size=4), st.integers() | st.floats(allow_nan=False) | st.none()))
def test_any_tensors_and_any_state_come_back(tensors: Tensors, state: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(Path(folder), 1, tensors, state, IDENTITY)
        found = checkpoint.newest(Path(folder), IDENTITY)
        assert found is not None
        assert found.state == state
        assert all(equal(found.tensors(name), group) for name, group in tensors.items())


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (100, 200, 300, 1_000_000):
        keep(tmp_path, step)
    assert names(tmp_path) == ["000300", "1000000"]
    keep(tmp_path, 1_000_001, keep=1)
    assert names(tmp_path) == ["1000001"]


def test_saving_the_same_step_again_changes_nothing(tmp_path: Path) -> None:
    path = keep(tmp_path, 100)
    before = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in path.iterdir()}
    keep(tmp_path, 100)
    assert before == {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in path.iterdir()}
    (path / "state.json").write_text("{}")
    keep(tmp_path, 100)
    assert (found := checkpoint.newest(tmp_path, IDENTITY)) is not None
    assert right(found)
    assert names(tmp_path / "quarantine") == ["000100"]


def test_nothing_saved_is_none_and_leftovers_go(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "never", IDENTITY) is None
    for left in (".tmp-000100-7", ".trash-000050"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "weights.safetensors").write_bytes(b"torn")
    assert checkpoint.newest(tmp_path, IDENTITY) is None
    assert names(tmp_path) == []


def test_a_missing_group_is_an_error(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, {"weights": {}}, {}, IDENTITY)
    found = checkpoint.newest(tmp_path, IDENTITY)
    assert found is not None
    assert found.tensors("weights") == {}
    with pytest.raises(CheckpointError, match="holds no optimizer"):
        found.tensors("optimizer")


def test_another_run_is_refused_by_key(tmp_path: Path) -> None:
    keep(tmp_path, 100)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.newest(tmp_path, {**IDENTITY, "data": "0ther", "new": [1, 2]})
    assert caught.value.what == "The checkpoint was made with another data, new"
    assert "data was da7a, is 0ther; new was not set, is [1, 2]" in caught.value.where
    assert checkpoint.newest(tmp_path, {**IDENTITY, "threads": 1.0}) is not None
    assert checkpoint.newest(tmp_path) is not None


def test_a_later_format_is_not_taken_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tmp_path, 100)
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    keep(tmp_path, 200)
    monkeypatch.setattr(checkpoint, "FORMAT", 1)
    with pytest.raises(CheckpointError, match="format 2"):
        checkpoint.newest(tmp_path, IDENTITY)
    assert names(tmp_path) == ["000100", "000200"]


# Damage is seen, named and stepped over


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    for step in (100, 200):
        keep(folder, step)
    return folder


def damage(path: Path, how: str, draw: random.Random) -> set[str]:
    """Damage one file (or swap two) of a checkpoint; returns the names touched."""
    file, other = draw.sample(sorted(path.iterdir()), 2)
    data = bytearray(file.read_bytes())
    if how == "flip":
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif how == "cut":
        del data[len(data) // 2 :]
    elif how == "append":
        data += bytes([draw.randrange(256)])
    elif how == "empty":
        data.clear()
    elif how == "swap":
        file.write_bytes(other.read_bytes())
        other.write_bytes(data)
        return {file.name, other.name}
    if how == "delete":
        file.unlink()
    else:
        file.write_bytes(data)
    return {file.name}


@pytest.mark.parametrize("how", ["flip", "cut", "append", "empty", "delete", "swap"])
def test_damage_is_never_used(saved: Path, tmp_path: Path, how: str) -> None:
    touched = set()
    for seed in range(40):  # 240 cases over the six kinds
        folder = tmp_path / str(seed)
        shutil.copytree(saved, folder)
        harmed = damage(folder / "000200", how, random.Random(seed))
        touched |= harmed
        found = checkpoint.newest(folder, IDENTITY)
        assert found is not None
        assert found.step == 100
        assert right(found)
        assert {Path(problem.where).name for problem in found.quarantined} & harmed
        assert all(problem.what and problem.severity == "warning" for problem in found.quarantined)
        assert names(folder) == ["000100", "quarantine"]
        assert names(folder / "quarantine") == ["000200"]
    assert len(touched) == 5  # every file of a checkpoint had its turn


def test_what_is_wrong_is_said_in_words(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "000200"
    (path / "weights.safetensors").write_bytes(b"short")
    (path / "optimizer.safetensors").unlink()
    (path / "state.json").write_bytes((path / "state.json").read_bytes().replace(b"200", b"201"))
    (path / "best.safetensors").write_bytes(b"whose?")
    found = checkpoint.newest(tmp_path, IDENTITY)
    assert found is not None
    told = {Path(problem.where).name: problem.what for problem in found.quarantined}
    assert told["weights.safetensors"].startswith("it has 5 bytes instead of ")
    assert told["optimizer.safetensors"] == "it is missing"
    assert told["state.json"] == "its content changed (SHA-256 differs)"
    assert told["best.safetensors"] == "it does not belong here"


def test_a_copied_folder_is_not_another_step(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    shutil.copytree(tmp_path / "000100", tmp_path / "000300")
    found = checkpoint.newest(tmp_path, IDENTITY)
    assert found is not None
    assert found.step == 200
    assert found.quarantined[0].what == "it is of step 100"


def test_a_run_never_starts_over_by_itself(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    (tmp_path / "000100" / "weights.safetensors").unlink()
    (tmp_path / "000200" / "manifest.json").write_bytes(b"")
    for _ in range(2):  # and not at the second try either
        with pytest.raises(CheckpointError) as caught:
            checkpoint.newest(tmp_path, IDENTITY)
        assert "000100/weights.safetensors: it is missing" in caught.value.where
        assert "000200/manifest.json: its content changed" in caught.value.where


def test_quarantine_takes_the_same_step_twice(tmp_path: Path) -> None:
    keep(tmp_path, 100)
    for _ in range(3):
        (keep(tmp_path, 200) / "state.json").unlink()
        assert checkpoint.newest(tmp_path, IDENTITY).step == 100  # type: ignore[union-attr]
    assert names(tmp_path / "quarantine") == ["000200", "000200-1", "000200-2"]


def test_bytes_that_change_after_they_verified_are_refused(tmp_path: Path) -> None:
    keep(tmp_path, 100)
    found = checkpoint.newest(tmp_path, IDENTITY)
    assert found is not None
    file = found.path / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    with pytest.raises(CheckpointError, match="changed while it was read"):
        found.tensors("weights")


def test_a_disk_that_lies_keeps_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tmp_path, 100)
    keep(tmp_path, 200)
    real = os.rename

    def lying(source: Any, target: Any) -> None:
        if Path(target).name == "000300":
            (Path(source) / "optimizer.safetensors").write_bytes(b"something else")
        real(source, target)

    monkeypatch.setattr(os, "rename", lying)
    with pytest.raises(CheckpointError, match="other bytes than were written"):
        keep(tmp_path, 300, keep=1)
    assert names(tmp_path) == ["000100", "000200", "quarantine"]


# A shim between the code and the disk: it sees every change just before it happens


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


def before_third(folder: Path) -> None:
    for step in (100, 200):
        keep(folder, step)


def old_or_new(folder: Path) -> int:
    """Whatever happened to the third save: the run goes on from 200 or 300, nothing is quarantined or left over."""
    found = checkpoint.newest(folder, IDENTITY)
    assert found is not None
    assert found.step in (200, 300)
    assert right(found)
    assert found.quarantined == ()
    assert set(names(folder)) <= {"000100", "000200", "000300"}
    return found.step


def test_a_kill_at_every_change_leaves_old_or_new(tmp_path: Path) -> None:
    seen = set()
    for count in itertools.count(1):
        folder = tmp_path / str(count)
        before_third(folder)

        def third(folder: Path = folder, count: int = count) -> None:
            with watched(at(count, lambda: os.kill(os.getpid(), signal.SIGKILL))):
                keep(folder, 300)

        code = forked(third)
        seen.add(old_or_new(folder))
        assert keep(folder, 300).name == "000300"  # the run goes on and saves again
        assert old_or_new(folder) == 300
        assert names(folder) == ["000200", "000300"]
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert count > 40  # a save is that many changes here: the loop did kill inside it
    assert seen == {200, 300}


def test_a_kill_at_every_change_of_the_first_save(tmp_path: Path) -> None:
    for count in itertools.count(1):
        folder = tmp_path / str(count) / "runs" / "name" / "checkpoints"

        def first(folder: Path = folder, count: int = count) -> None:
            with watched(at(count, lambda: os.kill(os.getpid(), signal.SIGKILL))):
                keep(folder, 100)

        code = forked(first)
        found = checkpoint.newest(folder, IDENTITY)
        assert found is None or right(found)
        if code == 0:
            break
    assert found is not None


def test_ctrl_c_at_every_change_leaves_old_or_new_and_no_litter(tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    for count in itertools.count(1):
        folder = tmp_path / str(count)
        before_third(folder)
        try:
            with watched(at(count, interrupt)):
                keep(folder, 300)
            break
        except KeyboardInterrupt:
            assert not list(folder.glob(".tmp-*"))
            old_or_new(folder)
            keep(folder, 300)
            assert old_or_new(folder) == 300
    assert count > 40


# Disks that are full or fail


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_a_failing_disk_at_every_change_is_named_and_harmless(tmp_path: Path, code: int) -> None:
    def fail() -> None:
        raise OSError(code, os.strerror(code))

    kinds, texts = set(), set()
    for count in itertools.count(1):
        folder = tmp_path / str(count)
        before_third(folder)
        changes: list[str] = []
        trip = at(count, fail)

        def before(kind: str, *more: Any, changes: list[str] = changes, trip: Callable[..., None] = trip) -> None:
            changes.append(kind)
            trip()

        try:
            with watched(before):
                keep(folder, 300)
            if len(changes) < count:
                break
        except TrainError as problem:
            kinds.add(changes[count - 1])
            texts.add((problem.what, re.sub(r"[\d,]+ bytes", "N bytes", problem.where[len(str(folder)) :]), problem.do))
        assert not list(folder.glob(".tmp-*"))
        old_or_new(folder)
        keep(folder, 300)
        assert old_or_new(folder) == 300
    assert kinds == {"mkdir", "create", "write", "fsync", "rename"}
    first = "name a folder that can be written to" if code == errno.EROFS else "free some space"
    do = f"{first} and give the same command again; what was saved before is intact"
    assert texts == {(f"Cannot write: {os.strerror(code)}", "/000300 (N bytes needed, N bytes free)", do)}


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before_third(tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=99)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    writes: list[Any] = []
    with pytest.raises(TrainError) as caught, watched(lambda *change: writes.append(change)):
        keep(tmp_path, 300)
    assert not writes
    needed = checkpoint.bytes_of(content(300))
    assert caught.value.where == f"{tmp_path / '000300'} ({needed:,} bytes needed, 99 bytes free)"


def test_a_write_that_the_system_refuses(tmp_path: Path) -> None:
    """The real thing, without root: a file size limit makes write(2) itself fail half way."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
        with pytest.raises(TrainError, match="Cannot write: File too large"):
            keep(tmp_path, 300)

    before_third(tmp_path)
    assert forked(limited) == 0
    assert not list(tmp_path.glob(".tmp-*"))
    assert old_or_new(tmp_path) == 200
    keep(tmp_path, 300)


@pytest.mark.slow
def test_forty_sizes_of_a_full_disk(tmp_path: Path) -> None:
    """A real file system that is too small: the error, or success; never a wrong or lost checkpoint."""
    disk = tmp_path / "disk"
    disk.mkdir()
    outcomes = set()
    for kilobytes in range(44, 204, 4):
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", disk], capture_output=True
        )
        if mounted.returncode:
            pytest.skip(f"mounting is not permitted here: {mounted.stderr.decode().strip()}")
        try:
            folder, filler = disk / "checkpoints", disk / "filler"
            saved = 0
            for step in (100, 200, 300):
                if step == 300:
                    filler.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - kilobytes * 128)))
                try:
                    saved = int(keep(folder, step).name)
                except TrainError as problem:
                    outcomes.add(problem.what)
                    assert not list(folder.glob(".tmp-*"))
                found = checkpoint.newest(folder, IDENTITY)
                assert (found.step if found else 0) == saved
                assert found is None or right(found)
            filler.unlink(missing_ok=True)
            if kilobytes > 64:  # room for three: the same command works now
                keep(folder, 300)
                assert old_or_new(folder) == 300
        finally:
            subprocess.run(["umount", disk], check=True)
    assert outcomes == {"Cannot write: No space left on device"}


# A power cut keeps what was synced, and any part of the rest


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


def recorded(root: Path, deaf: str = "") -> Log:
    """Three saves of a run, keeping two, as a log."""
    log = Log(root, deaf)
    with watched(log.before):
        for step in (100, 200, 300):
            keep(root / "run" / "checkpoints", step)
            log.returned(step)
    return log


def cuts(log: Log, target: Path, count: int) -> list[str]:
    """Cut the power `count` times; returns what went wrong."""
    wrong = []
    for seed in range(count):
        draw = random.Random(seed)
        cut = draw.randrange(len(log.changes) + 1)
        saved = log.after_cut(cut, target / str(seed), draw)
        try:
            found = checkpoint.newest(target / str(seed) / "run" / "checkpoints", IDENTITY)
        except CheckpointError as problem:
            wrong.append(f"{seed}: {problem.what}")
            continue
        if (found.step if found else 0) < saved:
            wrong.append(f"{seed}: {saved} was saved, {found and found.step} came back")
        elif found and (found.quarantined or not right(found)):
            wrong.append(f"{seed}: damaged {found.path.name}")
        shutil.rmtree(target / str(seed))
    return wrong


def test_no_power_cut_loses_what_was_saved(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    log = recorded(tmp_path / "disk")
    assert cuts(log, tmp_path, 400) == []


@pytest.mark.slow
def test_no_power_cut_in_ten_thousand(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    assert cuts(recorded(tmp_path / "disk"), tmp_path, 10_000) == []


@pytest.mark.parametrize("deaf", ["file", "staged", "parent"])
def test_each_sync_is_needed(tmp_path: Path, deaf: str) -> None:
    (tmp_path / "disk").mkdir()
    assert cuts(recorded(tmp_path / "disk", deaf), tmp_path, 150)


# The same with the system's own eyes


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


def test_the_system_sees_the_syncs_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    before_third(folder)
    log = tmp_path / "strace.txt"
    with traced(lambda: keep(folder, 300), ["-e", "trace=fsync,rename,unlinkat"], log):
        lines = log.read_text().splitlines()

    def first(pattern: str) -> int:
        return next(number for number, line in enumerate(lines) if re.search(pattern, line))

    rename = first(r"^rename\(.*/\.tmp-000300-\d+\", \".*/000300\"\) += 0")
    staged = first(r"^fsync\(\d+<.*/\.tmp-000300-\d+>\) += 0")
    files = [first(rf"^fsync\(\d+<.*/\.tmp-000300-\d+/{name}>\) += 0") for name in names(folder / "000300")]
    parents = [number for number, line in enumerate(lines) if re.search(r"^fsync\(\d+<.*/checkpoints>\) += 0", line)]
    trash = first(r"^rename\(.*/000100\", \".*/\.trash-000100\"\) += 0")
    deleted = first(r"^unlinkat")
    assert (
        max(files) == first(r"fsync\(.*manifest\.json>") < staged < rename < parents[0] < trash < parents[1] < deleted
    )


@pytest.mark.slow
@pytest.mark.parametrize("call", ["write", "fsync", "openat", "rename", "mkdir", "unlinkat", "rmdir", "close"])
def test_a_kill_at_every_system_call_leaves_old_or_new(tmp_path: Path, call: str) -> None:
    for count in itertools.count(1):
        folder = tmp_path / str(count)
        before_third(folder)
        log = tmp_path / "strace.txt"
        inject = f"inject={call}:signal=SIGKILL:when={count}"
        with traced(lambda folder=folder: keep(folder, 300), ["-e", f"trace={call}", "-e", inject], log):
            killed = "killed by SIGKILL" in log.read_text()
        old_or_new(folder)
        keep(folder, 300)
        assert old_or_new(folder) == 300
        if not killed:
            break
    assert count > 1  # it did kill


def test_a_save_syncs_no_more_than_it_must(tmp_path: Path) -> None:
    changes: list[str] = []
    with watched(lambda kind, *more: changes.append(kind)):
        keep(tmp_path, 100)
    assert changes.count("fsync") == 5 + 2  # five files, the staged folder, the parent
