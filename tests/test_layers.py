"""The house rules a compiler does not hold: who may import whom, what starts light, and what never appears.

Every import counts, also those inside functions and under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import burnish
from burnish import task

ROOT = Path(burnish.__file__).parent
# A file imports only from its left, or from its own area.
LAYERS = (
    *("errors", "kinds", "records", "task", "taskfile", "store", "database", "data", "metrics", "tokens", "models"),
    *("adapters", "artifact", "methods", "generate", "prompting", "train", "evaluate", "climb", "export", "monitor"),
    *("interop", "workflow", "serve", "cli", "__main__"),
)
KINDS = ("methods", "adapters", "data/shapes", "metrics", "prompting", "export")
LIGHT = ("errors", "kinds", "records", "task", "taskfile", "store", "data", "metrics")
HEAVY = {"torch", "transformers", "scipy", "pandas", "sklearn"}
UNSAFE_MODULES = ("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")
KEYS = 60  # of task.yaml's own sections: a new one comes with one taken away, or with a decision note

FILES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]  # the package loads verbs lazily


def name(path: Path) -> str:
    """The module in a file."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name(path) for path in FILES}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, as deep as it is one."""
    package = name(path) if path.name == "__init__.py" else name(path).rpartition(".")[0]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (item.name for item in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            for item in node.names:
                whole = f"{origin}.{item.name}"
                yield whole if whole in MODULES else origin


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file_imports_only_from_its_left(path: Path) -> None:
    area = name(path).split(".")[1]
    assert area in LAYERS, f"{area} has no place among the layers"
    for found in imports(path):
        top, _, rest = found.partition(".")
        if top == "burnish" and rest:
            other = rest.split(".")[0]
            assert LAYERS.index(other) <= LAYERS.index(area), f"{name(path)} imports {found}, which is to its right"


@pytest.mark.parametrize("path", [path for kind in KINDS for path in sorted((ROOT / kind).glob("*.py"))], ids=name)
def test_files_of_one_kind_do_not_know_each_other(path: Path) -> None:
    kind = name(path.parent / "__init__.py")
    for found in imports(path):
        sibling = found.removeprefix(f"{kind}.")
        assert found == sibling or sibling.startswith("_"), f"{name(path)} imports {found}"


@pytest.mark.parametrize("path", [path for path in FILES if name(path).split(".")[1] in LIGHT], ids=name)
def test_data_work_never_names_the_heavy_libraries(path: Path) -> None:
    assert not {found.split(".")[0] for found in imports(path)} & HEAVY


def test_data_work_and_the_command_line_start_without_the_heavy_libraries() -> None:
    light = [name(path) for path in FILES if name(path).split(".")[1] in LIGHT]
    code = f"import sys, {', '.join(light)}, burnish.cli.main, burnish.cli.show\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())


def unsafe(node: ast.AST) -> str:
    """What a node does that no file of ours may: run text as code, or read objects that do."""
    told = ast.unparse(node) if isinstance(node, (ast.Attribute, ast.Name)) else ""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec", "compile"):
        return f"{node.func.id}()"
    if told in ("torch.load", "torch.hub", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"):
        return told
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        modules = [item.name for item in node.names] + [getattr(node, "module", None) or ""]
        return next((item for item in modules if item.split(".")[0] in UNSAFE_MODULES), "")
    if isinstance(node, ast.keyword) and node.arg in ("shell", "trust_remote_code", "allow_pickle"):
        return "" if isinstance(node.value, ast.Constant) and node.value.value is False else f"{node.arg}="
    return ""


@pytest.mark.parametrize("path", [ROOT / "__init__.py", *FILES], ids=name)
def test_no_file_runs_text_as_code(path: Path) -> None:
    assert not [f"line {node.lineno}: {unsafe(node)}" for node in ast.walk(tree(path)) if unsafe(node)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "code",
    [
        "eval('1')",
        "import pickle",
        "from pickle import loads",
        "torch.load(p)",
        "run('x', shell=True)",
        "f(shell=flag)",
    ],
)
def test_the_search_for_unsafe_code_finds_it(code: str) -> None:
    assert any(unsafe(node) for node in ast.walk(ast.parse(code)))


def test_models_may_still_be_put_in_evaluation_mode() -> None:
    assert not any(unsafe(node) for node in ast.walk(ast.parse("model.eval(); run('x', shell=False)")))


def test_the_task_file_stays_small() -> None:
    """A method's or rung's own keys come and go with its file."""
    assert sum(section in (*task.SECTIONS, "") for section, _ in task.keys()) <= KEYS  # noqa: SIM118
