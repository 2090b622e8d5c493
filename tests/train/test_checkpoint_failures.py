"""A save that is killed, interrupted, out of space or cut from power leaves the old state or the new one, whole."""

from __future__ import annotations

import errno
import itertools
import os
import random
import re
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from failing_disk import Log, at, forked, traced, watched
from made_checkpoints import IDENTITY, content, keep, names, right

from burnish.errors import CheckpointError, TrainError
from burnish.train import checkpoint


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


# Kills and interrupts


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
