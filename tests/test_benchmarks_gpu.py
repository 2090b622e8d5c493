"""Every check that waits for a GPU runs to its end on the CPU with small sizes, and is in the table of its page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu  # noqa: E402
import gpu_checks  # noqa: E402


def told(*words: str) -> dict[str, Any]:
    """What the command says as JSON."""
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--tiny", "--json", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600, check=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def test_the_page_names_every_check() -> None:
    page = (ROOT / "docs" / "gpu-checks.md").read_text()
    assert re.findall(r"^\| ([a-z0-9]+) \|", page, re.M)[1:] == list(gpu_checks.CHECKS)
    named = [name for found in re.findall(r"--only ([a-z0-9,]+)", page) for name in found.split(",")]
    assert set(named) <= set(gpu_checks.CHECKS)


def test_a_check_that_fails_or_takes_too_long_does_so_alone(tmp_path: Path) -> None:
    """The next one runs in a process of its own, and each is written down when it is made."""
    worker = gpu.Worker(True, {})
    late = worker.run("machine", 0.01)
    assert late["failed"] == "no result within 0 s"
    assert not worker.alive
    unknown = gpu.Worker(True, {})
    assert "KeyError" in unknown.run("no such check", 60)["failed"]
    assert unknown.alive
    assert unknown.run("peers", 60).keys() == {"skipped"}
    unknown.end()


def test_what_the_budget_has_no_room_for_is_not_begun(tmp_path: Path) -> None:
    found = told("--only", "several,peers", "--budget", "1", "--out", str(tmp_path / "told.jsonl"))["checks"]
    assert [row["skipped"] for row in found] == ["the budget is spent"] * 2
    kept = [json.loads(line)["name"] for line in (tmp_path / "told.jsonl").read_text().splitlines()]
    assert kept == ["several", "peers"]


@pytest.mark.slow
def test_every_check_runs_to_its_end() -> None:
    found = told()["checks"]
    assert [row["name"] for row in found] == list(gpu_checks.CHECKS)
    assert {row["name"]: row["failed"] for row in found if "failed" in row} == {}
    skipped = {row["name"] for row in found if "skipped" in row}
    assert skipped <= {"steps", "flex", "peers", "several"}
