"""What a person may ask for: every section and key of task.yaml, and the Task that holds a value for each.

In: nothing.  Out: the records, and the rungs there are.  Every key is declared once, by `setting(...)`: the sections
here, a method's or rung's own keys in its file.  `taskfile.py` reads, checks and writes them.  No torch.
"""

from __future__ import annotations

import hashlib
import json
import typing
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from burnish import kinds
from burnish.kinds import Setting, setting


@dataclass(frozen=True)
class Goal:
    """What the model is for, and how good is good enough."""

    task: typing.Literal["classify", "regress", "choose", "extract", "answer", "chat", "write", "prefer"] = setting(
        "classify",
        "classify, regress, choose (multiple choice), extract, answer, chat, write or prefer (ranked answers)",
    )
    metric: str = setting("auto", "what is measured; auto picks the usual one for the task")
    target: float | None = setting(None, "the value to reach; empty: the cheapest rung that nothing dearer beats")


GOALS = typing.get_args(typing.get_type_hints(Goal)["task"])


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
