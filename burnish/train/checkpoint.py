"""A run's state on disk: whole or not at all, and trusted only when every byte is the one that was written.

In: named groups of tensors and plain JSON.  Out: `checkpoints/000200/` with one safetensors file per group, state.json
and manifest.json.  Here because a training run must outlive a kill at any instant, a power cut, a full disk and a
flipped bit, without a person's help and without ever going on from something wrong.

Order is everything: stage -> sync each file -> sync the folder -> rename -> sync the parent -> read back -> only then
remove older ones.  Call `save` and `newest` while holding the run's lock (`store.locked`): leftovers of dead processes
are removed without asking whose they were.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from burnish import store
from burnish.errors import CheckpointError
from burnish.records import Problem
from burnish.train import pieces
from burnish.train.pieces import Kept

FORMAT = 1
MANIFEST = "manifest.json"
STATE = "state.json"
SEAL = b', "seal": "'


@dataclass(frozen=True)
class Checkpoint:
    """A saved state that verified.

    path: its folder.  step: optimizer steps done.  state: state.json.  files: name -> size in bytes and SHA-256.
    quarantined: what was wrong with the newer ones that were moved aside; tell the user.
    """

    path: Path
    step: int
    state: dict[str, Any]
    files: Mapping[str, Mapping[str, Any]]
    quarantined: tuple[Problem, ...] = ()

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """One group of tensors on the CPU, all at once; as `stream`."""
        return dict(self.stream(name))

    def stream(self, name: str) -> Iterator[tuple[str, torch.Tensor]]:
        """One group's names and tensors on the CPU, one after the other.

        Raises CheckpointError when the group is not there, and at the latest after its last tensor when its bytes
        changed since `newest` looked: then nothing that was made of them may be used.
        """
        file = f"{name}.safetensors"
        if shards := sorted(other for other in self.files if other.startswith(f"{name}/")):
            yield from _joined(_verified(self.path / shard, self.files[shard]) for shard in shards).items()
        elif file not in self.files:
            raise CheckpointError(f"The checkpoint holds no {name}", str(self.path), _start_over(self.path.parent))
        else:
            try:
                yield from pieces.tensors(self._pieces(file))
            except (ValueError, KeyError):
                raise _changed(self.path / file) from None

    def _pieces(self, file: str) -> Iterator[Any]:
        digest = hashlib.sha256()
        for piece in pieces.read(self.path / file):
            digest.update(piece)
            yield piece
        if digest.hexdigest() != self.files[file]["sha256"]:
            raise _changed(self.path / file)


def bytes_of(tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> int:
    """What a checkpoint of these tensors takes on disk, in bytes, its small files aside."""
    groups = [group for group in tensors.values() if not isinstance(group, Kept)]
    kept = sum(group.nbytes for group in tensors.values() if isinstance(group, Kept))
    return kept + sum(value.numel() * value.element_size() for group in groups for value in group.values())


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    state: Mapping[str, Any],
    identity: Mapping[str, Any],
    keep: int = 2,
    shards: Callable[[Path], Mapping[str, Mapping[str, Any]]] | None = None,
) -> Path:
    """Write `folder/000200/` durably, read it back, then remove all but the newest `keep`; returns its path.

    tensors: one file per group (weights, optimizer, best ...); views, shared storage and any device are fine.
    state: plain JSON (counters, schedule, best so far).  identity: what must be equal for a run to go on from here.
    shards: writes and syncs all tensors instead, below the folder it is given, as several processes do it (a folder per
    group, see distributed.py); returns each file's `entry`.
    Saving a step that is there and verifies changes nothing.
    Raises TrainError (the disk is full or failing) or CheckpointError (the disk gives back other bytes than it was
    given); in both cases the older checkpoints are intact and a second try can succeed.
    """
    target = folder / f"{step:06d}"
    needed = bytes_of(tensors)
    with store.disk_errors(target, needed):
        _make(folder)
        if target.exists() and _damage(target):
            _quarantine(target)
        if not target.exists():
            if shutil.disk_usage(folder).free < needed:
                raise OSError(errno.ENOSPC, "said before a byte is written")
            _write_checkpoint(target, step, tensors, state, identity, shards)
        store.sync_folder(folder)
        if problems := _damage(target):
            _quarantine(target)
            where = "; ".join(problem.where for problem in problems)
            raise CheckpointError("The disk gives back other bytes than were written", where, "check the disk")
        for old in _steps(folder)[:-keep]:
            if old != target:
                _remove(old)
    return target


def newest(folder: Path, identity: Mapping[str, Any] | None = None) -> Checkpoint | None:
    """The newest checkpoint that verifies, or None when nothing was ever saved.

    Newer ones that do not verify move to `folder/quarantine/`; leftovers of killed processes are removed.
    identity: refuse a checkpoint of another run (None: any will do).
    Raises CheckpointError when there are checkpoints but none verifies (they stay where they are: a run never starts
    over by itself), when the newest belongs to another run, or was written by another version of this format.
    """
    for leftover in [*folder.glob(".tmp-*"), *folder.glob(".trash-*")]:
        shutil.rmtree(leftover, ignore_errors=True)
    broken: dict[Path, list[Problem]] = {}
    for path in reversed(_steps(folder)):
        if problems := _damage(path):
            broken[path] = problems
            continue
        found = read(path)
        if identity is not None:
            _refuse_another_run(path, _manifest(path)["identity"], json.loads(json.dumps(identity)))
        with store.disk_errors(folder):
            for damaged in broken:
                _quarantine(damaged)
        told = tuple(problem for problems in broken.values() for problem in problems)
        return replace(found, quarantined=told)
    if broken:
        told = tuple(problem for problems in broken.values() for problem in problems)
        raise CheckpointError(
            "No checkpoint of this run can be trusted",
            "\n         ".join(f"{problem.where}: {problem.what}" for problem in told),
            f"put an intact copy back, or {_start_over(folder)}",
        )
    return None


def identity_of(folder: Path) -> Mapping[str, Any]:
    """What the newest checkpoint says of the run that saved it, before its tensors are looked at; {} when none does."""
    for path in reversed(_steps(folder)):
        try:
            identity: Mapping[str, Any] = _manifest(path)["identity"]
        except (OSError, ValueError):
            continue
        return identity
    return {}


def read(path: Path) -> Checkpoint:
    """A checkpoint that `newest` found good, here or in another process; its tensors are verified when asked for."""
    manifest = _manifest(path)
    state = json.loads(_verified(path / STATE, manifest["files"][STATE]))
    return Checkpoint(path, manifest["step"], state, manifest["files"])


def entry(file: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file that was just written, as a manifest holds them."""
    with file.open("rb") as stream:
        return {"size": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _start_over(folder: Path) -> str:
    return f"remove {folder} to train from the start"


def _steps(folder: Path) -> list[Path]:
    """The checkpoint folders, oldest first."""
    return sorted((path for path in folder.glob("*") if re.fullmatch(r"\d{6,}", path.name)), key=lambda p: int(p.name))


# Writing


def _make(folder: Path) -> None:
    """Create a folder and its parents so that a power cut cannot take them away again."""
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(exist_ok=True)
        store.sync_folder(folder.parent)


def _write_checkpoint(
    target: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    state: Mapping[str, Any],
    identity: Mapping[str, Any],
    shards: Callable[[Path], Mapping[str, Mapping[str, Any]]] | None,
) -> None:
    """Stage every file beside `target`, the manifest last, and rename; nothing is left behind on failure."""
    staged = target.with_name(f".tmp-{target.name}-{os.getpid()}")
    shutil.rmtree(staged, ignore_errors=True)
    try:
        staged.mkdir()
        told = shards(staged) if shards else {}
        files = {
            f"{name}.safetensors": pieces.written(group) for name, group in tensors.items() if not (shards and group)
        }
        files[STATE] = iter([json.dumps(state, indent=1).encode()])
        manifest = {
            "format": FORMAT,
            "step": step,
            "identity": identity,
            "files": {**told, **{name: _write(staged / name, pieces) for name, pieces in files.items()}},
        }
        _write(staged / MANIFEST, [_sealed(manifest)])
        for folder in (*(path for path in staged.iterdir() if path.is_dir()), staged):
            store.sync_folder(folder)
        staged.rename(target)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise


def _joined(files: Iterable[bytes]) -> dict[str, torch.Tensor]:
    """The tensors of safetensors files that each hold a part of them, as PyTorch's DCP writes them."""
    parts: dict[str, list[tuple[list[int], torch.Tensor]]] = {}
    for data in files:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        places = json.loads(header["__metadata__"]["DCP_SHARDING_INFO"])
        for name, value in safetensors.torch.load(data).items():
            parts.setdefault(name, []).append((places[name]["saved_offsets"], value))
    whole = {}
    for name, own in parts.items():
        sizes = [max(at[i] + value.shape[i] for at, value in own) for i in range(own[0][1].ndim)]
        whole[name] = torch.empty(sizes, dtype=own[0][1].dtype)
        for at, value in own:
            whole[name][tuple(slice(a, a + n) for a, n in zip(at, value.shape, strict=True))] = value
    return whole


def _write(path: Path, pieces: Iterable[Any]) -> dict[str, Any]:
    """Write and sync one new file; returns its size and SHA-256, both taken from memory."""
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as stream:
        for piece in pieces:
            digest.update(piece)
            size += stream.write(piece)
        stream.flush()
        os.fsync(stream.fileno())
    return {"size": size, "sha256": digest.hexdigest()}


def _sealed(manifest: Mapping[str, Any]) -> bytes:
    """The manifest as JSON that ends in its own SHA-256: it vouches for every other file, and nothing else for it."""
    body = json.dumps(manifest).encode()[:-1]
    return body + SEAL + hashlib.sha256(body).hexdigest().encode() + b'"}\n'


def _quarantine(path: Path) -> None:
    """Move a damaged checkpoint to `quarantine/` beside it; never over one that is there."""
    room = path.parent / "quarantine"
    _make(room)
    places = (room / (f"{path.name}-{number}" if number else path.name) for number in itertools.count())
    path.rename(next(place for place in places if not place.exists()))
    store.sync_folder(room)
    store.sync_folder(path.parent)


def _remove(path: Path) -> None:
    """Delete a checkpoint so that it is never seen half deleted."""
    trash = path.with_name(f".trash-{path.name}")
    path.rename(trash)
    store.sync_folder(path.parent)
    shutil.rmtree(trash, ignore_errors=True)


# Verifying


def _manifest(path: Path) -> dict[str, Any]:
    """What a checkpoint's manifest says; parsed only when its seal holds.  Raises ValueError when it does not."""
    body, _, seal = (path / MANIFEST).read_bytes().rpartition(SEAL)
    if seal != hashlib.sha256(body).hexdigest().encode() + b'"}\n':
        raise ValueError("its content changed (the seal at its end does not fit)")
    manifest: dict[str, Any] = json.loads(body + b"}")
    if manifest["format"] != FORMAT:
        raise CheckpointError(
            f"The checkpoint has format {manifest['format']}, this version of Burnish reads {FORMAT}",
            str(path),
            f"go on with the version that began the run, or {_start_over(path.parent)}",
        )
    return manifest


def _damage(path: Path) -> list[Problem]:
    """Everything wrong with a checkpoint folder; empty when every byte is the one that was written."""
    found = {}
    try:
        manifest = _manifest(path)
        if f"{manifest['step']:06d}" != path.name:
            found[MANIFEST] = f"it is of step {manifest['step']}"
        found |= {name: _fault(path / name, entry) for name, entry in manifest["files"].items()}
        names = [str(other.relative_to(path)) for other in path.rglob("*.safetensors")]
        found |= {name: "it does not belong here" for name in names if name not in found}
    except FileNotFoundError:
        found[MANIFEST] = "it is missing"
    except (OSError, ValueError) as problem:
        found[MANIFEST] = str(problem)
    do = f"kept in {path.parent / 'quarantine'} for a look; an older checkpoint is used"
    return [Problem(what, str(path / name), do, "warning") for name, what in found.items() if what]


def _fault(file: Path, entry: Mapping[str, Any]) -> str:
    """What is wrong with one file of a checkpoint; '' when nothing is."""
    try:
        size = file.stat().st_size
        if size != entry["size"]:
            return f"it has {size:,} bytes instead of {entry['size']:,}"
        with file.open("rb") as stream:
            if hasattr(os, "posix_fadvise"):  # else the cache vouches for the disk
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            same = hashlib.file_digest(stream, "sha256").hexdigest() == entry["sha256"]
    except FileNotFoundError:
        return "it is missing"
    except OSError as problem:
        return f"it cannot be read ({problem.strerror})"
    return "" if same else "its content changed (SHA-256 differs)"


def _verified(file: Path, entry: Mapping[str, Any]) -> bytes:
    """The bytes of a file, if they are the ones the manifest names: what is used is what was hashed."""
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise _changed(file)
    return data


def _changed(file: Path) -> CheckpointError:
    return CheckpointError("A checkpoint changed while it was read", str(file), "give the same command again")


def _refuse_another_run(path: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise CheckpointError that names every key in which the run that saved differs from the one that asks."""
    keys = [key for key in {**saved, **now} if saved.get(key) != now.get(key)]
    if keys:
        told = "; ".join(f"{key} was {saved.get(key, 'not set')}, is {now.get(key, 'not set')}" for key in keys)
        raise CheckpointError(
            f"The checkpoint was made with another {', '.join(keys)}",
            f"{path} ({told})",
            f"undo that change to go on from here, train under another name, or {_start_over(path.parent)}",
        )
