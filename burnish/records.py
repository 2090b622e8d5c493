"""The types that flow from a file to a verdict; no torch, so that data work starts in an instant.

Each is frozen: what a later stage needs to change, it makes anew.  Every one knows where it came from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

Label = str | float | tuple[str, ...]
ROLES: tuple[str, ...] = ("system", "developer", "user", "assistant", "tool")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # what the choices of a question are called, in their order


@dataclass(frozen=True)
class Where:
    """A place in a file that a person can open: `line` counts from 1; 0 means the file as a whole."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True)
class Message:
    """One turn.  `weight` 0 keeps an assistant turn as context without training on it."""

    role: str
    content: str
    weight: float = 1.0


@dataclass(frozen=True)
class Example:
    """One row of the user's data in Burnish's own form.

    shape: the file of data/shapes it came through.
    messages: conversation, instruction and prompt shapes; the last assistant turn is the answer.
    text, pair: labelled and document shapes (`pair` is the second of two texts).
    label: a class, several classes, a number, or the letter of the right choice.
    choices: what may follow the question (choices shape, or two ranked answers, the better one first); the last
    assistant turn is then the right one.
    """

    shape: str
    where: Where
    messages: tuple[Message, ...] = ()
    text: str = ""
    pair: str | None = None
    label: Label | None = None
    choices: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", content_hash(self))

    @property
    def answer(self) -> str:
        """The last assistant turn: what an answering model should say."""
        if self.messages and self.messages[-1].role == "assistant":
            return self.messages[-1].content
        return ""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The turns before the answer."""
        return self.messages[:-1] if self.answer else self.messages

    @property
    def surface(self) -> str:
        """The text a duplicate would share: everything but the label."""
        parts = [f"{turn.role}: {turn.content}" for turn in self.messages]
        return "\n".join([*parts, self.text, self.pair or ""]).strip()

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` gives back an equal Example."""
        row: dict[str, Any] = {"id": self.id, "shape": self.shape, "file": self.where.file, "line": self.where.line}
        if self.messages:
            row["messages"] = [asdict(turn) for turn in self.messages]
        for name in ("text", "pair", "label", "choices"):
            value = getattr(self, name)
            if value not in (None, "") and (value != () or name == "label"):
                row[name] = list(value) if isinstance(value, tuple) else value
        if self.meta:
            row["meta"] = dict(self.meta)
        return row

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> Example:
        """The Example behind a line of `train.jsonl`."""
        label = row.get("label")
        return Example(
            shape=row["shape"],
            where=Where(row["file"], row["line"]),
            messages=tuple(Message(**turn) for turn in row.get("messages", ())),
            text=row.get("text", ""),
            pair=row.get("pair"),
            label=tuple(label) if isinstance(label, list) else label,
            choices=tuple(row.get("choices", ())),
            meta=row.get("meta", {}),
            id=row["id"],
        )


def content_hash(example: Example) -> str:
    """16 hex digits of SHA-256 over what the example says (not over where it stands)."""
    turns = [[turn.role, turn.content, turn.weight] for turn in example.messages]
    label = list(example.label) if isinstance(example.label, tuple) else example.label
    parts = [example.shape, turns, example.text, example.pair, label, *([example.choices] if example.choices else [])]
    told = json.dumps(parts, ensure_ascii=False)
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:16]


Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one row (or with a plan): the same three fields everywhere, and how bad it is."""

    what: str
    where: str
    do: str = ""
    severity: Severity = "error"
    example: str = ""

    def to_json(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class Event:
    """One thing that happened in a run.

    kind: started, step, validated, saved, warned, finished.  step counts optimizer steps from 1.
    seconds: since the run began, from a monotonic clock, summed over resumes.
    """

    kind: str
    step: int
    seconds: float
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "step": self.step, "seconds": round(self.seconds, 3), **self.numbers}


Say = Callable[[str, Event], None]  # told what happens while it happens: the rung or verb, and the event


@dataclass(frozen=True)
class Prediction:
    """What an artifact said about one example, and all that any metric needs.

    text: what was generated.  label, number: what that was read as.  probabilities: per class, summing to 1.
    nll: minus log-likelihood of the gold text in nats over `tokens` tokens and `bytes` UTF-8 bytes.
    finished: whether generation ended by itself.  problem: why there is no usable answer ('' when there is).
    sources: where the passages in its prompt stand, as `[1] manual.md, Refunds`.
    loglikelihoods: of each choice of a multiple-choice row after its question, in nats, in their order.
    prompt_tokens, completion_tokens: what an API would count for the answer alone, demonstrations included.
    """

    id: str
    where: str
    text: str | None = None
    label: str | tuple[str, ...] | None = None
    number: float | None = None
    probabilities: Mapping[str, float] | None = None
    nll: float | None = None
    tokens: int | None = None
    bytes: int | None = None
    finished: bool | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float = 0.0
    problem: str = ""
    sources: tuple[str, ...] | None = None
    loglikelihoods: tuple[float, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object without the fields that say nothing."""
        row = {item.name: getattr(self, item.name) for item in fields(self)}
        return {
            name: (list(value) if isinstance(value, tuple) else value)
            for name, value in row.items()
            if value is not None and value != ""
        }

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> Prediction:
        label = row.get("label")
        rows = {name: tuple(row[name]) for name in ("sources", "loglikelihoods") if name in row}
        return Prediction(**{**row, "label": tuple(label) if isinstance(label, list) else label, **rows})


@dataclass(frozen=True)
class Score:
    """One metric over n rows: the value and a two-sided interval at `confidence`.

    method: how the interval was made (wilson, bootstrap).  higher: whether more is better.
    """

    metric: str
    value: float
    low: float
    high: float
    n: int
    method: str
    higher: bool = True
    confidence: float = 0.95

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """Two rungs on the same rows: `b` minus `a` on the goal's metric, its interval, and how likely by luck.

    fixed, broken: rows that only b / only a got right (0 when the metric has no right or wrong).
    p: two-sided.  p_holm: after Holm's correction over all comparisons of the verdict.
    claim: this is the one pair, chosen before the test rows were read, that says whether tuning makes a difference:
    its p stands uncorrected.
    """

    a: str
    b: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    n: int
    test: str
    fixed: int = 0
    broken: int = 0
    claim: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


Outcome = Literal["met", "probably met", "not met", "too few rows", "best"]


@dataclass(frozen=True)
class Verdict:
    """The answer to the person's question.

    rung: the cheapest rung that meets the target, or '' when none does.
    outcome: met (the whole interval is beyond the target), probably met (only the value is), not met,
    too few rows (n cannot tell), best (no target was set: cheapest rung that nothing dearer beats).
    sentence: what a manager can read.  notes: what a sceptic should know.
    """

    rung: str
    outcome: Outcome
    sentence: str
    notes: tuple[str, ...] = ()

    @property
    def met(self) -> bool:
        """Whether the goal counts as reached (exit code 0)."""
        return self.outcome in ("met", "probably met", "best") and bool(self.rung)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "notes": list(self.notes), "met": self.met}


@dataclass(frozen=True)
class RungResult:
    """One rung of a climb as the report shows it.

    seconds: what making it took.  trained: parameters that were trained.  skipped: why it was not run ('' if it was).
    scores: every metric that applies, the goal's first.  settings: what was chosen (shots, order, best step ...).
    cost: what making it took and what 1,000 requests take (evaluate/cost.py).  seeds: every further training seed as
    {seed, value, artifact, predictions}.  search: every trial of its search on validation rows.
    prompt: the first test row as the model was asked it.
    """

    rung: str
    scores: tuple[Score, ...] = ()
    seconds: float = 0.0
    trained: int = 0
    skipped: str = ""
    artifact: str = ""
    predictions: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    curve: tuple[Mapping[str, float], ...] = ()
    samples: tuple[Mapping[str, str], ...] = ()
    cost: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[Mapping[str, Any], ...] = ()
    search: tuple[Mapping[str, Any], ...] = ()
    prompt: str = ""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "settings": dict(self.settings), "curve": [dict(point) for point in self.curve]}


@dataclass(frozen=True)
class Report:
    """Everything a climb or an evaluation found; report.json is this, report.html shows it.

    seconds: of the whole climb, all its sittings together.  advice: what to do next.
    learning: the learning curve (evaluate/curve.py), empty where none was asked.
    """

    name: str
    goal: Mapping[str, Any]
    base: Mapping[str, Any]
    rungs: tuple[RungResult, ...]
    comparisons: tuple[Comparison, ...]
    verdict: Verdict
    data: Mapping[str, Any]
    readings: tuple[Mapping[str, Any], ...]
    environment: Mapping[str, Any]
    folder: str
    seconds: float = 0.0
    page: str = ""
    learning: Mapping[str, Any] = field(default_factory=dict)
    advice: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "goal": dict(self.goal),
            "base": dict(self.base),
            "verdict": self.verdict.to_json(),
            "rungs": [rung.to_json() for rung in self.rungs],
            "comparisons": [item.to_json() for item in self.comparisons],
            "data": dict(self.data),
            "readings": [dict(item) for item in self.readings],
            "environment": dict(self.environment),
            "folder": self.folder,
            "page": self.page,
            "seconds": round(self.seconds, 1),
            "learning": dict(self.learning),
            "advice": list(self.advice),
        }
