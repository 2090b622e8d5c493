"""A workflow that does nothing but return, say and raise what the real one may: the command line's test double."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import burnish
from burnish import store
from burnish.errors import Interrupted
from burnish.records import Comparison, Event, Outcome, Report, RungResult, Score, Verdict

Say = Callable[[str, Event], None]
HOSTILE = "\x1b[31mred\x1b]0;owned\x07 [bold]not markup[/bold] \u202e\x9b2J :smile:"


def score(value: float, metric: str = "accuracy") -> Score:
    return Score(metric, value, value - 0.05, value + 0.05, 172, "wilson")


def report(outcome: Outcome = "met", text: str = "LoRA meets the goal.") -> Report:
    rungs = (
        RungResult("zero-shot", (score(0.51),), seconds=3.1),
        RungResult("lora", (score(0.91), score(0.9, "macro-f1")), 61.0, 12288, artifact="my runs/lora"),
        RungResult("retrieval", skipped="there are no passages"),
    )
    return Report(
        name="reviews",
        goal={"task": "classify", "metric": "accuracy", "target": 0.9},
        base={"name": "burnish-tiny"},
        rungs=rungs,
        comparisons=(Comparison("zero-shot", "lora", 0.4, 0.3, 0.5, 0.00001, 0.0002, 172, "mcnemar", 31, 4),),
        verdict=Verdict("lora" if outcome == "met" else "", outcome, text, ("172 test rows",)),
        data={},
        readings=(),
        environment={},
        folder="burnish_home/runs/reviews",
        seconds=64.1,
    )


class Chat:
    describes = "reviews, rung lora"

    def __init__(self) -> None:
        self.turns: list[str] = []

    def reply(self, text: str) -> Iterator[str]:
        self.turns.append(text)
        yield from (f"{len(self.turns)}: ", text.upper(), "\x1b[2J")

    def reset(self) -> None:
        self.turns.clear()


def init(data: str, *, out: str = "task.yaml", base: str = "burnish-tiny", force: bool = False) -> dict[str, Any]:
    """Guess a task file from data."""
    told = {"task_file": out, "shape": "labelled", "columns": {"text": "review"}, "goal": "classify", "rows": 600}
    return told | {
        "metric": "accuracy",
        "labels": ["bad", "good"],
        "notes": ["2 classes"],
        "first": [{"text": HOSTILE}],
    }


def check(task: str, *, set: Sequence[str] = (), show: int = 0) -> dict[str, Any]:
    """Check the data as a run would.

    More words that a summary leaves out.
    """
    problem = {"what": f"The label is empty {HOSTILE}", "where": "a.csv:42", "do": "fill it in", "severity": "error"}
    shown = [{"where": "a.csv:1", "spans": [["Review: fine", False], ["good", True]]}] * show
    ok = "data.on_problem=drop" in set
    problems = [] if ok else [problem] * 25
    card = {
        "rows": {"read": 600, "dropped": {"exact duplicate": 2}},
        "label_counts": {"train": {"bad": 300, "good": 298}},
    }
    count = {f"tokens_{kind}": 9 for kind in ("kept", "trained", "masked", "cut", "unknown")}
    tokens = {"train": {"rows": 140, "pieces": 140, "longest": 159, **count}}
    return {"data": card, "tokens": tokens, "problems": problems, "shown": shown, "ok": ok}


def figure(value: float, error: float = 0.0) -> dict[str, float]:
    return {"value": value, "low": value * (1 - error), "high": value * (1 + error)}


def needs(verdict: str = "fits") -> dict[str, Any]:
    exact = {"parameters": 134_515_008, "trained": 4_884_480, "tokens": 1_000_000, "steps": 300}
    told: dict[str, Any] = {name: figure(value) for name, value in exact.items()}
    told |= {"seconds": figure(600.0, 0.2), "cpu": figure(3e9, 0.1), "gpu": figure(0.0), "disk": figure(80e6, 0.05)}
    told |= {"micro_tokens": 1024, "recompute": verdict != "fits", "verdict": verdict, "room": 21e9, "remedies": []}
    told |= {"states": {}}
    if verdict != "fits":
        text = "limit rows to 512 tokens, which leaves out 7 of 300 training rows"
        override = ["data.max_length=512", "data.too_long=drop"]
        told["remedies"] = [{"text": text, "set": override, "rung": "", "rows_cut": 7, "peak": 2e9}]
        told["remedies"] += [{"text": "train qlora instead", "set": [], "rung": "qlora", "rows_cut": 0, "peak": 1e9}]
    return told


def plan(task: str = "", *, rung: str = "", set: Sequence[str] = ()) -> dict[str, Any]:
    """Plan."""
    if not task:
        row = {"rung": "lora", "name": "Llama 3.1 8B", "parameters": 8_030_261_248, "peak": 19e9}
        return {"largest": [row, row | {"rung": "full", "name": "", "parameters": 0}], "room": 21e9, "row": 512}
    rungs = {"lora": needs(), "full": needs("does not fit" if rung == "full" else "tight")}
    told = {"base": "burnish-tiny", "method": "sft", "rungs": rungs, "stacked": {}}
    return told | {"ok": rung != "full"}


def climb(
    task: str,
    *,
    set: Sequence[str] = (),
    again: bool = False,
    seeds: int = 1,
    search: int = 0,
    curve: bool = False,
    say: Say | None = None,
) -> Report:
    """Climb the rungs."""
    print("a library prints")
    if say:
        for step in range(1, 41):
            say("lora", Event("step", step, float(step), {"loss": 1.0, "steps": 40}))
        say("lora", Event("warned", 40, 40.0, {"text": HOSTILE}))
    return report("not met" if "goal.target=1" in set else "met", HOSTILE)


def train(task: str, *, rung: str, set: Sequence[str] = (), again: bool = False, say: Say | None = None) -> RungResult:
    """Train one rung."""
    return report().rungs[2 if rung == "retrieval" else 1]


def launch(task: str, *, rung: str, slurm: bool = False, nodes: int = 1, out: str = "") -> dict[str, Any]:
    """Write a script."""
    return {"script": f"burnish train {task}\n", "out": out, "slurm": slurm}


def evaluate(target: str, *, data: str = "", set: Sequence[str] = (), say: Say | None = None) -> Report:
    """Evaluate."""
    return report()


def compare(a: str, b: str, *, data: str = "", say: Say | None = None) -> dict[str, Any]:
    """Compare."""
    found = Comparison("x/zero-shot", "y/lora", 0.4, 0.3, 0.5, 0.00001, 0.0002, 172, "mcnemar", 31, 4)
    row = {"text": HOSTILE, "gold": "good", "near": [HOSTILE]}
    listing = {"title": "Rows fixed", "told": "31 of 172 rows.", "rows": [row]}
    change = {"fixed": listing, "broken": {**listing, "rows": []}, "still": 7}
    told = {"sentence": "y/lora is better than x/zero-shot.", "scores": [score(0.5).to_json()], "change": change}
    return {**told, "comparison": found.to_json(), "better": "y/lora", "openings": 2, "page": "x--y.html"}


def advise(task: str, *, set: Sequence[str] = (), changing: str = "", say: Say | None = None) -> dict[str, Any]:
    """Advise."""
    return {"first": "LoRA", "points": [{"advice": "LoRA", "sentence": "800 rows.", "because": {"rows": 800}}]}


def predict(artifact: str, data: str, *, out: str, say: Say | None = None) -> dict[str, Any]:
    """Predict."""
    return {"rows": 172, "done_before": 100, "out": out, "seconds": 2.0, "problems": 3}


def chat(artifact: str) -> Chat:
    """Talk."""
    return Chat()


def runs() -> list[dict[str, Any]]:
    """List the runs."""
    row = {"name": "reviews", "goal": {"task": "classify"}, "rungs": ["lora"], "verdict": "met", "seconds": 64.1}
    row |= {"outcome": "lora: met"}
    return [row | {"when": "2026-11-21 07:00", "state": "done"}]


def demo(*, fast: bool = False, say: Say | None = None) -> Report:
    """Show everything."""
    return report()


VERBS = {name: globals()[name] for name in burnish.VERBS}


def verbs(**changed: Callable[..., Any]) -> SimpleNamespace:
    """The fake workflow with some verbs replaced."""
    return SimpleNamespace(**{**VERBS, **changed})


def raising(problem: BaseException) -> SimpleNamespace:
    """A workflow whose `climb` raises."""

    def climb(task: str, *, set: Sequence[str] = (), again: bool = False, say: Say | None = None) -> Report:
        raise problem

    return verbs(climb=climb)


def stopping() -> SimpleNamespace:
    """A workflow whose `climb` is interrupted as the real loop is: asked once, it saves and ends."""

    def climb(task: str, *, set: Sequence[str] = (), again: bool = False, say: Say | None = None) -> Report:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGINT)
        assert store.stop_requested()
        raise Interrupted("Stopped after step 3", "burnish_home/runs/x", f"burnish climb {task}")

    return verbs(climb=climb)
