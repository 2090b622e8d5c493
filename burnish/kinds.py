"""A folder is a registry: the names a user may write are its files, and each file declares its own settings.

In: a folder of the package ("methods") and a name ("sft").  Out: the names there are, the module behind one,
and its settings *without importing it* (they are read from the source), so that `--help`, `init` and
task checking know every key although the files behind them import torch.
Other packages add names by an entry point in the group `burnish.<folder>`.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.metadata
import importlib.util
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from burnish.errors import BurnishError, unknown

PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Setting:
    """One key a user may write: its type as written, default, reason, and range."""

    name: str
    type: str
    default: Any
    doc: str
    low: float | None = None
    high: float | None = None


def setting(default: Any, doc: str, low: float | None = None, high: float | None = None) -> Any:
    """A dataclass field that is also a task key: `rank: int = setting(8, "rank of the update", low=1)`."""
    metadata = {"doc": doc, "low": low, "high": high}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata={**metadata, "default": default})
    return field(default=default, metadata=metadata)


def declared(record: type) -> list[Setting]:
    """The settings of a dataclass whose fields were made with `setting`."""
    found = []
    for item in fields(record):
        default = item.metadata.get("default", None if item.default is MISSING else item.default)
        found.append(
            Setting(
                item.name, str(item.type), default, item.metadata["doc"], item.metadata["low"], item.metadata["high"]
            )
        )
    return found


def spelt(name: str) -> str:
    """A file's name as a user writes it: `few_shot.py` is `few-shot`."""
    return name.replace("_", "-")


@cache
def names(folder: str) -> tuple[str, ...]:
    """The names a user may write for this kind, sorted; reads the folder and entry points, imports nothing."""
    files = {spelt(path.stem) for path in (PACKAGE / folder).glob("*.py") if not path.stem.startswith("_")}
    others = {spelt(point.name) for point in importlib.metadata.entry_points(group=f"burnish.{folder}")}
    return tuple(sorted(files | others))


def check(folder: str, name: str, where: str = "") -> str:
    """`name` if this kind has it; else a BurnishError with the choices and the nearest one."""
    if name not in names(folder):
        what, do = unknown(folder.rstrip("s"), name, names(folder))
        raise BurnishError(what, where, do)
    return name


def load(folder: str, name: str) -> ModuleType:
    """Import the file behind a name."""
    check(folder, name)
    path = PACKAGE / folder / f"{name.replace('-', '_')}.py"
    if path.exists():
        return importlib.import_module(f"burnish.{folder.replace('/', '.')}.{path.stem}")
    for point in importlib.metadata.entry_points(group=f"burnish.{folder}"):
        if spelt(point.name) == name:
            return point.load()
    raise BurnishError(f"{folder} {name} has vanished", do="reinstall the package that brought it")


def source(folder: str, name: str) -> Path:
    """Where the file behind a name lies, without importing it."""
    check(folder, name)
    path = PACKAGE / folder / f"{name.replace('-', '_')}.py"
    if path.exists():
        return path
    for point in importlib.metadata.entry_points(group=f"burnish.{folder}"):
        if spelt(point.name) == name:
            spec = importlib.util.find_spec(point.module)
            if spec is not None and spec.origin:
                return Path(spec.origin)
    raise BurnishError(f"{folder} {name} has no readable source", do="reinstall the package that brought it")


@cache
def settings(folder: str, name: str) -> tuple[Setting, ...]:
    """The fields of the file's `class Settings`, read from its source: name, type, default, reason, range.

    Kinds with the same settings import the class from a file of their folder whose name begins with `_`.
    """
    path = source(folder, name)
    shared = f"burnish.{folder.replace('/', '.')}._"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ImportFrom) or "Settings" not in {item.name for item in node.names}:
            continue
        if node.module and node.module.startswith(shared):
            return _fields(path.with_name(f"{node.module.rpartition('.')[2]}.py"))
    return _fields(path)


def _fields(path: Path) -> tuple[Setting, ...]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == "Settings":
            return tuple(_setting(item) for item in node.body if isinstance(item, ast.AnnAssign))
    return ()


@cache
def constants(folder: str, name: str) -> dict[str, Any]:
    """The file's plain constants (COST = 20, MODELS = ("decoder",)), read from its source without importing it."""
    tree, found = ast.parse(source(folder, name).read_text(encoding="utf-8")), {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            with contextlib.suppress(ValueError):  # made by code: ask the module itself
                found[node.targets[0].id] = ast.literal_eval(node.value)
    return found


def _setting(node: ast.AnnAssign) -> Setting:
    assert isinstance(node.target, ast.Name), ast.dump(node)
    assert isinstance(node.value, ast.Call), ast.dump(node)
    arguments = [ast.literal_eval(item) for item in node.value.args]
    keywords = {item.arg or "": ast.literal_eval(item.value) for item in node.value.keywords}
    return Setting(node.target.id, ast.unparse(node.annotation), *arguments, **keywords)
