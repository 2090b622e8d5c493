"""What a prompting rung is given to make its choices with: the rows it may look at, and a loaded base.

Never the test rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from burnish.generate.answer import Answerer
from burnish.records import Example


@dataclass(frozen=True)
class World:
    """train, validation: the rows.  metric: the goal's.  answerer: the frozen base.  tell: progress in words.

    root: where relative file names of settings start.  home: the rung's folder, for traces (None: none are kept).
    """

    answerer: Answerer
    train: Sequence[Example]
    validation: Sequence[Example]
    metric: str
    settings: Mapping[str, Any]
    seed: int = 0
    tell: Callable[[str], None] = lambda text: None
    root: str = "."
    home: Path | None = None


@dataclass(frozen=True)
class Chosen:
    """A rung's choices.  recipe: readable and editable, goes into the artifact.  shown: for the report."""

    recipe: Mapping[str, Any]
    shown: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
