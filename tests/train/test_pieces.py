"""Tensors in a file, a piece at a time: what comes back is what was given, and a disk that lies is caught."""

import os

import pytest
import torch

from burnish.errors import CheckpointError, TrainError
from burnish.train import pieces
from burnish.train.pieces import Kept

GROUP = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.tensor([1, 2], dtype=torch.int64),
    "c": torch.tensor(2.5, dtype=torch.bfloat16),
    "d": torch.empty(0, 4),
}


def same(told):
    return told.keys() == GROUP.keys() and all(torch.equal(told[name], GROUP[name]) for name in GROUP)


def test_what_is_kept_comes_back_and_outlives_its_source(tmp_path):
    own = {name: value.clone() for name, value in GROUP.items()}
    kept = Kept(tmp_path / "new", own)
    for value in own.values():
        value.zero_()
    assert same(dict(kept))
    assert same(dict(pieces.tensors(kept.pieces())))
    assert kept.nbytes == sum(value.nbytes for value in GROUP.values())


def test_it_leaves_nothing_behind(tmp_path):
    kept = Kept(tmp_path, GROUP)
    assert not list(tmp_path.iterdir())  # a kill leaves nothing either
    del kept


def test_another_byte_is_named_and_not_used(tmp_path):
    kept = Kept(tmp_path, GROUP)
    os.pwrite(kept._file.fileno(), b"x", len(kept._head) + 9)
    with pytest.raises(CheckpointError, match="gives back other bytes of b"):
        dict(kept)


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    def full(*told, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pieces.tempfile, "TemporaryFile", full)
    with pytest.raises(TrainError, match="Cannot write"):
        Kept(tmp_path, GROUP)


def test_a_file_that_ends_early_is_told(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"".join(map(bytes, pieces.written(GROUP))))
    assert same(dict(pieces.tensors(pieces.read(path))))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match="cut short"):
        dict(pieces.tensors(pieces.read(path)))
