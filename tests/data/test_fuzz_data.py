"""Spoilt files load or are refused by file and line (the 2,000 of `benchmarks/fuzz_data.py`, in small)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")
PATH = Path(__file__).parents[2] / "benchmarks/fuzz_data.py"


def test_300_mutants_give_no_traceback_and_every_refusal_names_a_line():
    spec = importlib.util.spec_from_file_location("fuzz_data", PATH)
    fuzz = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzz)
    assert fuzz.mutant(5, 17) == fuzz.mutant(5, 17)
    counts, failures = fuzz.run(300, seed=1)
    assert failures == []
    assert counts["drop: loads"] > 50
    assert counts["stop: refused"] > 50
