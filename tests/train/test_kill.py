"""A run that is killed and started again ends in the very weights of a run that was not: the short version.

The long one is `python benchmarks/faults.py kills 200`.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).parents[2] / "benchmarks" / "faults.py"


@pytest.mark.parametrize("fault", ["kills", pytest.param("corrupt", marks=pytest.mark.slow)])
def test_a_run_ends_as_if_nothing_had_happened(fault: str) -> None:
    done = subprocess.run([sys.executable, HARNESS, fault, "5", "--rungs", "lora"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["wrong"] == 0
    assert told["kills" if fault == "kills" else "cases"] == 5
