"""What is written is there whole or not at all, and a name is never a path."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from burnish import store
from burnish.errors import ArtifactError, BurnishError, TrainError

ROWS: list[dict[str, Any]] = [{"a": 1, "text": "naïve ⟨x⟩"}, {"a": None}]
WRITES: dict[str, Callable[[Path], object]] = {
    "bytes": lambda path: store.write_bytes(path, b"new"),
    "json": lambda path: store.write_json(path, ROWS),
    "jsonl": lambda path: store.write_jsonl(path, ROWS),
}


@pytest.mark.parametrize("kind", WRITES)
def test_a_file_is_replaced_whole(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "folder" / "file"
    WRITES[kind](path)
    first = path.read_bytes()
    path.write_bytes(b"old")
    WRITES[kind](path)
    assert path.read_bytes() == first
    assert [found.name for found in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("kind", WRITES)
def test_a_disk_that_fails_leaves_what_was_there_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainError, match="No space left") as caught:
        WRITES[kind](path)
    assert str(path) in caught.value.where
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_rows_that_cannot_be_made_leave_what_was_there(tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield ROWS[0]
        raise KeyboardInterrupt

    path = tmp_path / "rows.jsonl"
    store.write_jsonl(path, ROWS)
    with pytest.raises(KeyboardInterrupt):
        store.write_jsonl(path, rows())
    assert list(store.read_jsonl(path)) == ROWS
    assert [found.name for found in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert store.write_jsonl(path, ROWS) == 2
    with path.open("ab") as stream:
        stream.write(b'{"a": 3, "te')
    assert list(store.read_jsonl(path)) == ROWS


@pytest.mark.parametrize("bad", [b"{\n", b"7\n", b"\xff\n", b"[" * 10**6 + b"\n"], ids=["cut", "kind", "text", "deep"])
def test_what_is_damaged_is_named(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "rows.json"
    assert (store.read_json(path), store.read_json(path, list)) == ({}, [])
    path.write_bytes(bad)
    with pytest.raises(ArtifactError, match=r"rows.json is damaged") as raised:
        store.read_json(path)
    assert raised.value.where == str(path)
    path.write_bytes(b'{"a": 1}\n' + bad)
    with pytest.raises(ArtifactError, match=r"rows.json is damaged") as raised:
        list(store.read_jsonl(path))
    assert raised.value.where == f"{path} line 2"


@pytest.mark.parametrize("name", ["../x", "a/b", "", "A", "a..b", ".hidden"])
def test_a_name_is_never_a_path(name: str) -> None:
    with pytest.raises(BurnishError, match="not a run name"):
        store.run_folder(name)


@pytest.mark.parametrize(("text", "name"), [("My Réviews (v2)!", "my-r-views-v2"), ("…", "task"), ("x" * 99, "x" * 40)])
def test_any_text_becomes_a_name(text: str, name: str) -> None:
    assert store.slug(text) == name
    assert store.run_folder(name).name == name
