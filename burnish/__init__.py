"""Burnish fine-tunes a language model on your own machine and proves that it was worth it.

    import burnish
    report = burnish.climb("task.yaml")

The verbs are those of the command line; each loads what it needs on first use.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

VERBS = (
    "init",
    "check",
    "plan",
    "advise",
    "climb",
    "train",
    "launch",
    "evaluate",
    "compare",
    "predict",
    "chat",
    "runs",
    "demo",
)

__all__ = ["VERBS", "__version__", *VERBS]


def __getattr__(name: str) -> Any:
    if name in VERBS:
        from burnish import workflow

        return getattr(workflow, name)
    raise AttributeError(f"module 'burnish' has no attribute {name!r}")


class _Package(ModuleType):
    """Keeps a verb's name the verb's: loading the folder burnish/train/ would put the folder in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in VERBS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
