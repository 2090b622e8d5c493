"""A task file and its Task: read with line numbers, overridden, checked, and written back in full.

In: YAML and overrides like `train.epochs=2`.  Out: a Task in which every key has a value, or a TaskError that names
the line and the nearest key; and a Task as text again.  Which keys there are stands in `task.py`.  No torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from burnish import kinds
from burnish.errors import TaskError, unknown
from burnish.kinds import Setting
from burnish.task import SECTIONS, Task, keys, rung_keys, rung_names, stacks


def read(path: str | Path, overrides: Sequence[str] = ()) -> Task:
    """The Task in a YAML file, with `section.key=value` overrides applied on top."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        reason = getattr(problem, "strerror", None) or "it is not UTF-8 text"
        raise TaskError(
            f"The task file cannot be read: {reason}", str(path), "`burnish init DATA` writes one"
        ) from None
    return parse(text, overrides, str(path))


def parse(text: str, overrides: Sequence[str] = (), path: str = "task.yaml") -> Task:
    """The Task in YAML text; `path` is used in messages, and its folder for relative file names."""
    try:
        tokens = yaml.scan(text, Loader=yaml.SafeLoader) if "*" in text or "&" in text else ()
        if any(isinstance(token, (yaml.AliasToken, yaml.AnchorToken)) for token in tokens):
            raise TaskError("A task file has no use for YAML anchors and aliases", path, "write the values out")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text) or {}
    except (yaml.YAMLError, RecursionError, ValueError) as problem:
        mark = getattr(problem, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise TaskError(
            f"Not valid YAML: {getattr(problem, 'problem', None) or problem}", f"{path}{line}", "mend the line"
        ) from None
    if not isinstance(values, dict):
        raise TaskError("A task file is a mapping of keys", path, "`burnish init DATA` writes one to start from")
    lines: dict[str, int] = {}
    _lines(node, "", lines, path)
    if isinstance(values.get("base"), str):
        values["base"] = {"name": values["base"]}
    for override in overrides:
        _override(values, override)
    return resolve(values, path, lines)


def _lines(node: yaml.Node | None, prefix: str, lines: dict[str, int], path: str) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if name in lines:
            raise TaskError(
                f'Key "{name}" is given twice', f"{path} lines {lines[name]} and {key.start_mark.line + 1}", "keep one"
            )
        lines[name] = key.start_mark.line + 1
        _lines(value, f"{name}.", lines, path)


def _override(values: dict[str, Any], override: str) -> None:
    name, equals, told = override.partition("=")
    if not equals:
        raise TaskError(f'"{override}" is not key=value', "--set", "write for example --set train.epochs=2")
    try:
        value = yaml.safe_load(told)
    except yaml.YAMLError:
        value = told
    section, _, key = name.strip().rpartition(".")
    if not section and name.strip() == "base":
        section, key = "base", "name"
    if not section:
        values[key] = value
        return
    inner = values.setdefault(section, {})
    if not isinstance(inner, dict):
        raise TaskError(f'"{section}" is not a section', "--set", f"use a key of {', '.join(SECTIONS)}")
    inner[key] = value


def resolve(values: Mapping[str, Any], path: str = "task.yaml", lines: Mapping[str, int] | None = None) -> Task:
    """A Task from plain values: every key checked, every default filled in."""
    lines = lines or {}
    probe = Task(path=path, lines=lines)
    top = [*SECTIONS, "rungs", "method", *rung_names(), "name"]
    for key, value in values.items():
        if key not in top:
            what, do = unknown("key", key, [*top])
            raise TaskError(what, probe.where(str(key)), do)
        if key not in ("rungs", "name") and not isinstance(value, (dict, type(None))):
            raise TaskError(f'"{key}" is a section', probe.where(key), f"write {key}: and its keys, indented, below it")
    built: dict[str, Any] = {
        section: record(**_section(section, kinds.declared(record), values.get(section) or {}, probe))
        for section, record in SECTIONS.items()
    }
    rungs = values.get("rungs") or []
    if not isinstance(rungs, list):
        raise TaskError("rungs is a list", probe.where("rungs"), "write rungs: [zero-shot, few-shot, lora, full]")
    for rung in rungs:
        known = stacks() if "+" in str(rung) else rung_names()
        if rung not in known:
            what, do = unknown("rung", rung, known)
            raise TaskError(what, probe.where("rungs"), do)
    task = Task(
        **built,
        rungs=tuple(dict.fromkeys(rungs)),
        method=_method(values.get("method") or {}, probe),
        rung_settings={rung: _section(rung, rung_keys(rung), values.get(rung) or {}, probe) for rung in rung_names()},
        name=str(values.get("name") or Path(path).resolve().parent.name or "task"),
        folder=str(Path(path).parent),
        path=path,
        lines=lines,
    )
    _consistent(task)
    return task


def _consistent(task: Task) -> None:
    if task.goal.metric != "auto" and task.goal.metric not in kinds.names("metrics"):
        what, do = unknown("goal.metric", task.goal.metric, kinds.names("metrics"))
        raise TaskError(what, task.where("goal.metric"), do)
    if task.data.shape != "auto" and task.data.shape not in kinds.names("data/shapes"):
        what, do = unknown("data.shape", task.data.shape, kinds.names("data/shapes"))
        raise TaskError(what, task.where("data.shape"), do)
    share = (0 if task.data.validation_files else task.data.validation) + (
        0 if task.data.test_files else task.data.test
    )
    if share >= 1:
        raise TaskError(
            "data.validation and data.test leave no rows to train on",
            task.where("data.test"),
            "make their sum less than 1",
        )
    betas = task.train.betas
    if len(betas) != 2 or not all(isinstance(beta, (int, float)) and 0 <= beta < 1 for beta in betas):
        raise TaskError(
            "train.betas must be two numbers from 0 to below 1", task.where("train.betas"), "e.g. [0.9, 0.999]"
        )


def _method(given: Mapping[str, Any], probe: Task) -> dict[str, Any]:
    kind = given.get("kind", "auto")
    if kind != "auto" and kind not in kinds.names("methods"):
        what, do = unknown("method.kind", kind, kinds.names("methods"))
        raise TaskError(what, probe.where("method.kind"), do)
    own = {key: value for key, value in given.items() if key != "kind"}
    if kind == "auto":
        if own:
            raise TaskError(
                f'method.{next(iter(own))} needs method.kind, which is "auto"',
                probe.where(f"method.{next(iter(own))}"),
                f"set method.kind to one of {', '.join(kinds.names('methods'))}",
            )
        return {"kind": "auto"}
    return {"kind": kind, **_section("method", kinds.settings("methods", kind), own, probe)}


def _section(section: str, known: Sequence[Setting], given: Mapping[str, Any], probe: Task) -> dict[str, Any]:
    by_name = {item.name: item for item in known}
    for key in given:
        if key not in by_name:
            what, do = unknown("key", f"{section}.{key}", [f"{section}.{name}" for name in by_name])
            raise TaskError(what, probe.where(f"{section}.{key}"), do)
    return {
        name: _value(f"{section}.{name}", item, given[name], probe) if name in given else _default(item)
        for name, item in by_name.items()
    }


def _default(item: Setting) -> Any:
    return type(item.default)(item.default) if isinstance(item.default, (list, dict)) else item.default


def _number(value: Any) -> Any:
    """What YAML 1.1 takes for text although it is a number: 1e-3."""
    with contextlib.suppress(ValueError):
        return float(value) if isinstance(value, str) else value
    return value


def _value(key: str, item: Setting, value: Any, probe: Task) -> Any:
    wanted = item.type.replace("typing.", "")
    optional = wanted.endswith("| None")
    kind = wanted.removesuffix("| None").strip()
    if value is None and (optional or item.default in ("", [], {})):
        return _default(item)
    fits, told = True, kind
    if kind.startswith("Literal["):
        choices = [part.strip().strip("'\"") for part in kind[len("Literal[") : -1].split(",") if part.strip()]
        if value not in choices:
            what, do = unknown(f"value of {key}", value, choices)
            raise TaskError(what, probe.where(key), do)
    elif kind in ("int", "float"):
        value = _number(value)
        if kind == "int" and isinstance(value, float) and value.is_integer():
            value = int(value)
        fits = isinstance(value, (int,) if kind == "int" else (int, float)) and not isinstance(value, bool)
        told = "a whole number" if kind == "int" else "a number"
        if fits:
            value = int(value) if kind == "int" else float(value)
            fits = value == value and abs(value) != float("inf")
    elif kind == "bool":
        fits, told = isinstance(value, bool), "true or false"
    elif kind == "str":
        fits, told = isinstance(value, (str, int, float)) and not isinstance(value, bool), "text"
        value = str(value) if fits else value
    elif kind.startswith("list"):
        if isinstance(value, (str, int, float)):
            value = [value]
        fits, told = isinstance(value, list), "a list"
        if fits and kind == "list[str]":
            value = [str(part) for part in value]
        if fits and kind in ("list[int]", "list[float]"):
            value = [_number(part) for part in value]
            plain = int if kind == "list[int]" else (int, float)
            fits = all(isinstance(part, plain) and not isinstance(part, bool) for part in value)
            told = "a list of numbers"
    elif kind.startswith("dict"):
        fits, told = isinstance(value, dict), "a mapping such as {text: review, label: stars}"
    if not fits:
        raise TaskError(f"{key} must be {told}, not {value!r}", probe.where(key), f"its default is {item.default!r}")
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, (int, float)):
            if item.low is not None and part < item.low:
                raise TaskError(f"{key} must be at least {item.low}, not {part}", probe.where(key), "raise it")
            if item.high is not None and part > item.high:
                raise TaskError(f"{key} must be at most {item.high}, not {part}", probe.where(key), "lower it")
    return value


def write(task: Task, note: str = "") -> str:
    """task.yaml text with every key, its value and what it means."""
    told = task.to_json()
    lines = [f"# {line}" for line in note.splitlines()]
    docs = {(section, item.name): item.doc for section, item in keys()}
    for section, inner in told.items():
        if section == "rungs":
            lines += ["", f"rungs: {_plain(inner)}  # {docs['', 'rungs']}"]
            continue
        if not inner:
            continue
        lines += ["", f"{section}:"]
        for key, value in inner.items():
            lines.append(f"  {key}: {_plain(value)}  # {docs[section, key]}")
    return "\n".join(lines).strip() + "\n"


def _plain(value: Any) -> str:
    """One line of YAML."""
    if value is None:
        return ""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).strip()
    return text.removesuffix("...").strip()
