"""Burnish fine-tunes a language model on your own machine and proves that it was worth it.

    import burnish
    report = burnish.climb("task.yaml")

The verbs are those of the command line; each loads what it needs on first use.
"""

from __future__ import annotations

from typing import Any

from burnish import evaluate, train

del evaluate, train  # folders with a verb's name: loading one later would put the folder in the verb's place

__version__ = "0.1.0"

VERBS = ("init", "check", "climb", "train", "evaluate", "predict", "chat", "runs", "demo")

__all__ = ["VERBS", "__version__", *VERBS]


def __getattr__(name: str) -> Any:
    if name in VERBS:
        from burnish import workflow

        return getattr(workflow, name)
    raise AttributeError(f"module 'burnish' has no attribute {name!r}")
