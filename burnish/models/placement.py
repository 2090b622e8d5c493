"""Where a model sits."""

from __future__ import annotations

import torch


def best() -> torch.device:
    """The first CUDA device that this process may use, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
