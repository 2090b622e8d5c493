"""A run whose files are not as they were: each is named with what to do, or made again; nothing ends in a traceback."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from burnish import store
from burnish.errors import ArtifactError, BurnishError


def problem(desk: Any, task: Any) -> BurnishError | None:
    try:
        desk.climb(task)
    except BurnishError as raised:
        return raised
    return None


@pytest.mark.parametrize("wrong", [b"7\n", b"{\0\n", b"\xff\n"], ids=["another kind", "no JSON", "no text"])
def test_whatever_file_is_damaged_the_next_climb_says_which_or_makes_it_again(
    wrong: bytes, desk: Any, tmp_path: Path
) -> None:
    task = desk.task(rungs=["baseline", "zero-shot"])
    desk.climb(task)
    kept = shutil.copytree(store.home(), tmp_path / "kept")
    files = [path for path in store.home().rglob("*.json*") if path.is_file()]
    assert {"sittings.json", "readings.jsonl", "result.json", "card.json"} < {path.name for path in files}
    for path in files:
        path.write_bytes(wrong)
        said = problem(desk, task)
        if said:
            assert path.name in said.where
            path.unlink()  # as it says
            assert not problem(desk, task)
        shutil.rmtree(store.home())
        shutil.copytree(kept, store.home())


def test_the_seconds_of_damaged_sittings_are_asked_for_and_not_guessed(desk: Any) -> None:
    first = desk.climb(desk.task(rungs=["baseline"]))
    Path(first.folder, "sittings.json").write_text("[1.0, ")
    with pytest.raises(ArtifactError, match=r"sittings.json is damaged"):
        desk.climb(desk.task(rungs=["baseline"]))
