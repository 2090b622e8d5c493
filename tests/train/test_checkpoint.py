"""A checkpoint gives back every bit that was saved; damage is seen, named and stepped over."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_checkpoints import IDENTITY, Tensors, content, equal, keep, names, right

from burnish.errors import CheckpointError
from burnish.train import checkpoint, pieces

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


DTYPES = list(pieces.DTYPES)


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
