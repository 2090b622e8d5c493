"""task.yaml: what the person wants.  Read with line numbers, overridden, checked, and written back in full.

In: a YAML file and overrides like `train.epochs=2`.  Out: a Task in which every key has a value, or a TaskError
that names the line and the nearest key.  Every key is declared once, by `setting(...)`: the sections below here,
a method's or adapter's own keys in its file.  No torch.
"""

from __future__ import annotations

import hashlib
import json
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from burnish import kinds
from burnish.errors import TaskError, unknown
from burnish.kinds import Setting, setting

GOALS = ("classify", "regress", "choose", "extract", "answer", "chat", "write", "prefer")


@dataclass(frozen=True)
class Goal:
    """What the model is for, and how good is good enough."""

    task: typing.Literal["classify", "regress", "choose", "extract", "answer", "chat", "write", "prefer"] = setting(
        "classify",
        "classify, regress, choose (multiple choice), extract, answer, chat, write or prefer (ranked answers)",
    )
    metric: str = setting("auto", "what is measured; auto picks the usual one for the task")
    target: float | None = setting(None, "the value to reach; empty: the cheapest rung that nothing dearer beats")


@dataclass(frozen=True)
class DataSettings:
    """Where the examples are, how to read them, what to do with bad ones, and how they are split."""

    files: list[str] = setting([], "files, folders or globs, relative to this file")
    shape: str = setting("auto", "how a row is read; auto looks at the columns")
    columns: dict[str, str | list[str]] = setting({}, "which column is what, e.g. {text: review, label: stars}")
    labels: list[str] = setting([], "the classes, in order; empty: those found")
    instruction: str = setting("", "what a prompt asks for; empty: made from the task and labels")
    template: typing.Literal["auto", "chat", "plain", "raw", "spaced"] = setting(
        "auto",
        "chat: the tokenizer's own; plain: Burnish's; raw, spaced: prompt and answer joined, by a space; auto picks",
    )
    train_on: typing.Literal["answers", "all"] = setting("answers", "answers: assistant turns only; all: every token")
    on_problem: typing.Literal["stop", "drop"] = setting("stop", "a bad row stops the work, or is dropped and listed")
    max_length: int = setting(0, "longest row in tokens; 0: what the base model holds", low=0)
    too_long: typing.Literal["auto", "error", "drop", "cut-prompt", "split"] = setting(
        "auto", "rows over max_length; auto: split for documents, error for the rest"
    )
    near_duplicates: float = setting(
        0.8, "Jaccard similarity of 5-letter shingles from which two rows count as one", 0, 1
    )
    validation: float = setting(0.1, "share of the rows that chooses settings", 0, 0.9)
    test: float = setting(0.2, "share of the rows that nobody trains or chooses on", 0, 0.9)
    validation_files: list[str] = setting([], "your own validation rows, instead of a share")
    test_files: list[str] = setting([], "your own test rows, instead of a share")
    limit: int = setting(0, "use only so many rows, drawn by id; 0: all", low=0)
    seed: int = setting(0, "decides the split", low=0)


@dataclass(frozen=True)
class Base:
    """The pre-trained model to start from."""

    name: str = setting("burnish-tiny", "a model folder, a Hub name, or burnish-tiny (embedded)")
    weights: typing.Literal["pretrained", "random"] = setting(
        "pretrained", "random: only the configuration and tokenizer are taken, to train from scratch"
    )


@dataclass(frozen=True)
class Train:
    """How a trained rung is trained."""

    epochs: float = setting(3.0, "passes over the training rows", 0)
    max_steps: int = setting(0, "stop after so many optimizer steps; 0: no limit", 0)
    batch_size: int = setting(16, "rows per optimizer step", 1)
    learning_rate: float = setting(0.0, "peak; 0: the rung's own default", 0)
    schedule: typing.Literal["linear", "cosine", "constant"] = setting("cosine", "how the rate falls after warm-up")
    warmup: float = setting(0.05, "share of the steps (below 1) or number of steps over which the rate rises", 0)
    floor: float = setting(0.1, "the last step's rate as a share of the peak (linear and cosine)", 0, 1)
    optimizer: typing.Literal["adamw", "adamw-8bit", "adafactor", "adam", "sgd"] = setting(
        "adamw", "adamw; with less memory adamw-8bit or adafactor; adam (L2 in the gradient); sgd"
    )
    betas: list[float] = setting(
        [0.9, 0.999], "decay of the two moment averages; sgd: the first is momentum; adafactor has neither"
    )
    weight_decay: float = setting(0.01, "L2; decoupled in adamw; never on biases and norms", 0)
    l1: float = setting(0.0, "L1 penalty per weight, on the same weights", 0)
    dropout: float | None = setting(
        None, "full, partial: the model's dropout; others: on the adapter's input; empty: as shipped", 0, 0.9
    )
    clip: float = setting(1.0, "largest gradient norm; 0: no clipping", 0)
    evaluate_every: int = setting(0, "steps between validations; 0: four times an epoch", 0)
    save_every: int = setting(0, "steps between checkpoints; 0: at every validation", 0)
    patience: int = setting(8, "validations without improvement before stopping; 0: never stop early", 0)
    micro_tokens: int = setting(0, "tokens run at once; changes memory, never the update; 0: what fits and is fast", 0)
    precision: typing.Literal["auto", "fp32", "bf16"] = setting(
        "auto", "arithmetic of the model; auto: bf16 where the machine has it; updates are summed in fp32 always"
    )
    seed: int = setting(0, "initial adapter and head, order of rows, dropout, masking", 0)


@dataclass(frozen=True)
class Evaluate:
    """How answers are made and how sure a verdict must be."""

    max_new_tokens: int = setting(128, "longest generated answer", 1)
    batch_tokens: int = setting(16384, "tokens run at once when predicting; changes memory, never a score", 1)
    confidence: float = setting(0.95, "of every interval", 0.5, 0.999)
    resamples: int = setting(2000, "bootstrap resamples", 100)
    samples: int = setting(3, "texts of each rung shown in the report (write, chat, answer)", 0)


@dataclass(frozen=True)
class Task:
    """The whole of task.yaml with every default filled in.

    method: {"kind": ..., its settings}.  rung_settings: a rung's own keys by rung name.
    folder: where relative file names start.  lines: key path -> line in `path`, for messages.
    """

    goal: Goal = field(default_factory=Goal)
    data: DataSettings = field(default_factory=DataSettings)
    base: Base = field(default_factory=Base)
    rungs: tuple[str, ...] = ()
    method: Mapping[str, Any] = field(default_factory=lambda: {"kind": "auto"})
    rung_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    train: Train = field(default_factory=Train)
    evaluate: Evaluate = field(default_factory=Evaluate)
    name: str = "task"
    folder: str = "."
    path: str = ""
    lines: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)

    def where(self, key: str) -> str:
        """`task.yaml line 14` for a key path such as "train.epochs" (or its nearest parent)."""
        while key and key not in self.lines:
            key = key.rpartition(".")[0]
        return f"{self.path} line {self.lines[key]}" if key else self.path

    def to_json(self) -> dict[str, Any]:
        """Every key and its value, in the order of task.yaml."""
        told: dict[str, Any] = {"goal": asdict(self.goal), "data": asdict(self.data), "base": asdict(self.base)}
        told |= {"rungs": list(self.rungs), "method": dict(self.method)}
        told |= {rung: dict(own) for rung, own in self.rung_settings.items()}
        return told | {"train": asdict(self.train), "evaluate": asdict(self.evaluate)}

    def fingerprint(self) -> str:
        """8 hex digits that change when any resolved key does."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:8]


SECTIONS: dict[str, type] = {"goal": Goal, "data": DataSettings, "base": Base, "train": Train, "evaluate": Evaluate}


def rung_names() -> tuple[str, ...]:
    """Every rung there is: those that change the prompt, then the adapters."""
    return (*kinds.names("prompting"), *kinds.names("adapters"))


def parts(rung: str) -> tuple[str, str]:
    """(what a rung asks with, what it trains), one of them may be ''; `few-shot+lora` is few-shot on lora's model.

    >>> parts("few-shot+lora"), parts("zero-shot"), parts("lora")
    (('few-shot', 'lora'), ('zero-shot', ''), ('', 'lora'))
    """
    asked, plus, trained = rung.partition("+")
    if plus:
        return asked, trained
    return ("", rung) if rung in kinds.names("adapters") else (rung, "")


def trains(rung: str) -> bool:
    """Whether a rung changes weights, alone or under a prompt."""
    return bool(parts(rung)[1])


def stacks() -> tuple[str, ...]:
    """Every prompting rung that can be searched on a tuned model, on every rung that tunes one."""
    asked = [name for name in kinds.names("prompting") if kinds.constants("prompting", name).get("STACKS")]
    return tuple(f"{one}+{other}" for one in asked for other in kinds.names("adapters"))


def rung_keys(rung: str) -> tuple[Setting, ...]:
    """A rung's own settings."""
    return kinds.settings("adapters" if rung in kinds.names("adapters") else "prompting", rung)


def keys() -> Iterator[tuple[str, Setting]]:
    """Every key of task.yaml as (section, setting); a method's own keys come under "method"."""
    for section, record in SECTIONS.items():
        for item in kinds.declared(record):
            yield section, item
    doc = "which rungs to try; few-shot+lora: few-shot on lora's model; empty: those that fit the base"
    yield "", Setting("rungs", "list[str]", [], doc)
    yield "method", Setting("kind", "str", "auto", "auto, or " + ", ".join(kinds.names("methods")))
    seen = set()
    for method in kinds.names("methods"):
        for item in kinds.settings("methods", method):
            if item.name not in seen:
                seen.add(item.name)
                yield "method", item
    for rung in rung_names():
        for item in rung_keys(rung):
            yield rung, item


# --- reading -------------------------------------------------------------------------------------------------


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
    if text.count("*") + text.count("&") > 0 and any(
        isinstance(token, (yaml.AliasToken, yaml.AnchorToken)) for token in _scan(text, path)
    ):
        raise TaskError("A task file has no use for YAML anchors and aliases", path, "write the values out")
    try:
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


def _scan(text: str, path: str) -> Iterator[yaml.Token]:
    try:
        yield from yaml.scan(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return


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
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        try:
            value = float(value)
        except ValueError:
            pass
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
        if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
            try:
                value = float(value)
            except ValueError:
                pass
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


# --- writing -------------------------------------------------------------------------------------------------


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
