"""One thread, a home of its own for every test, and the pytest marker for real data."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and models; tests that ask for it are skipped where BURNISH_SHARED is unset."""
    folder = os.environ.get("BURNISH_SHARED", "")
    if not folder:
        pytest.skip("BURNISH_SHARED names no folder with real data and models")
    return Path(folder)
