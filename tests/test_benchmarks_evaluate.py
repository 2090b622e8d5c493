"""`benchmarks/evaluate.py` has the name of a package that lm-eval imports: its folder is no place to find modules."""

import runpy
import sys
from importlib.machinery import PathFinder
from pathlib import Path

FILE = Path(__file__).parents[1] / "benchmarks/evaluate.py"


def test_evaluate_is_not_this_file_to_those_who_import_it(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(FILE.parent), *sys.path])  # as the interpreter starts a script
    found = PathFinder.find_spec("evaluate", sys.path)
    assert found is not None
    assert found.origin == str(FILE)
    runpy.run_path(str(FILE), run_name="imported")
    found = PathFinder.find_spec("evaluate", sys.path)
    assert found is None or found.origin != str(FILE)
