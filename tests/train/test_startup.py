"""The first step comes soon: training loads torch and transformers' modelling code, and nothing else that is large."""

import subprocess
import sys

LARGE = {
    "sklearn",
    "pandas",
    "datasets",
    "peft",
    "trl",
    "optuna",
    "bitsandbytes",
    "pyarrow",
    "lxml",
    "fastapi",
    "IPython",
}


def test_training_loads_no_large_library_that_it_does_not_use():
    code = "import sys, burnish.climb.rungs\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not LARGE & set(done.stdout.split())
