"""The checks of gpu.py: each says what it expects, and returns what it found and whether that is it.

A check is a function of `tiny`; its docstring's first line is what is expected.  It returns (ok, found, numbers).
They stand in the order in which their files are read, the most valuable first.
"""

from gpu_checks import kernels, training, product, choices  # isort: skip
from gpu_checks.tools import CHECKS, run, traced

__all__ = ["CHECKS", "choices", "kernels", "product", "run", "traced", "training"]
