"""Every benchmark says what it does, and every command by which a figure was had can still be given."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = [path.name for path in sorted((ROOT / "benchmarks").glob("*.py")) if "__main__" in path.read_text()]
COMMAND = re.compile(r"python benchmarks/(\w+\.py)([^`\n]*)")
TOLD = [
    (path.relative_to(ROOT), *found)
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "burnish").rglob("README.md")]
    for found in COMMAND.findall(path.read_text())
]
pytestmark = pytest.mark.slow


@cache
def helped(script: str) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_what_the_script_says_of_itself(script: str) -> None:
    first = (ast.get_docstring(ast.parse((ROOT / "benchmarks" / script).read_text())) or "").splitlines()[0]
    assert first
    assert first in helped(script)


@pytest.mark.parametrize(("place", "script", "words"), TOLD, ids=lambda part: str(part))
def test_what_was_measured_can_be_measured_again(place: Path, script: str, words: str) -> None:
    """The options of a command in the documents are the script's."""
    known = set(re.findall(r"--[\w-]+", helped(script)))
    assert set(re.findall(r"--[\w-]+", words)) <= known
