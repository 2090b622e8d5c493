"""The cheap probes behind `burnish advise`: what the data and the base say before anything is trained.

In: a Ladder and what the person says of how fast the facts change.  Out: Facts for evaluate/advice.py.  The base
answers at most 100 validation rows; of the test rows only the texts are looked at, for leaks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from burnish import kinds
from burnish.artifact import Artifact
from burnish.climb.foresee import foresee
from burnish.climb.ladder import Ladder
from burnish.evaluate import predict as predicting
from burnish.evaluate.facts import Changing, Facts, agreement, conflicts, leaks, novelty, obedience
from burnish.metrics._text import gold
from burnish.records import Event, Example, Prediction, Say
from burnish.tokens import ask

TRIED = 100  # validation rows that the base answers
WRITTEN = 40  # of these, answered in free words: generating is slow
LEAKED = "also in your own test or validation"
RUNGS = ("lora", "qlora", "prompt-tuning", "full")


def probe(ladder: Ladder, changing: Changing, say: Say) -> Facts:
    """Everything that is cheap to know; what makes no sense for the task stays None."""

    def tell(text: str) -> None:
        say("advise", Event("phase", 0, 0.0, {"text": text}))

    sides = {name: ladder.rows(name) for name in ("train", "validation", "test")}
    card, train = ladder.prepared.card, sides["train"]
    dropped = card.get("rows", {}).get("dropped", {}).get(LEAKED, 0)
    tell("looking at the data")
    facts = Facts(
        ladder.task.goal.task,
        {name: len(rows) for name, rows in sides.items()},
        dict(Counter(str(row.label) for row in train if isinstance(row.label, str) and not row.choices)),
        conflicts([*train, *sides["validation"]]),
        max(dropped / max(len(sides["test"]), 1), leaks(train, sides["test"])),
        agreement([row for rows in sides.values() for row in rows]),
        metric=ladder.metric,
        target=ladder.task.goal.target,
        changing=changing,
        documents=bool(ladder.task.rung_settings.get("retrieval", {}).get("documents")),
        novel=novelty(train[:2000]),
        fits=_fits(ladder, tell),
        prompted=ladder.base.kind != "encoder",
    )
    tried = (sides["validation"] or train)[:TRIED]
    reason = kinds.load("prompting", "zero-shot").unfit(ladder.base.kind, facts.goal, ladder.prepared.shape)
    return facts if reason or not tried or facts.goal == "write" else _asked(ladder, facts, tried, train, tell)


def _asked(
    ladder: Ladder, facts: Facts, tried: Sequence[Example], train: Sequence[Example], tell: Callable[[str], None]
) -> Facts:
    """The same facts and how the base does with an instruction alone."""
    tell(f"asking the base {len(tried)} validation rows")
    ready = predicting.answerer(Artifact("zero-shot", ladder.base, ladder.asked), ladder.task.evaluate)
    module = kinds.load("metrics", ladder.metric)
    said = list(ready.answer(tried))
    best = module.RANGE[1] if module.HIGHER else module.RANGE[0]
    told: dict[str, Any] = {
        "base": ladder.scoring(tried).value(said),
        "tried": len(tried),
        "best": best,
        "higher": module.HIGHER,
        "floor": _floor(ladder, tried, train),
    }
    written, free = tried[:WRITTEN], said[:WRITTEN]
    if ready.chooses:  # choosing always has the form: can it also say the label by itself?
        spoken = replace(ready, contract=replace(ladder.asked, goal="answer", labels=()), most=16)
        free = list(spoken.answer([ask.as_messages(row, ladder.asked.instruction) for row in written]))
    wanted = [gold(row) or str(row.label) for row in written]
    if any(item.text is not None for item in free):
        right = [_same(item, text) for item, text in zip(free, wanted, strict=True)]
        formed = [obedience([item], wanted) > 0 for item in free]
        told["obeys"] = sum(formed) / len(formed)
        told["in_form"] = (
            sum(a and b for a, b in zip(right, formed, strict=True)) / sum(formed) if any(formed) else None
        )
        if facts.goal in ("answer", "chat", "extract"):
            told["knows"] = sum(right) / len(right)
    return replace(facts, **told)


def _same(item: Prediction, wanted: str) -> bool:
    """Whether the wanted answer stands in what was said, whatever stands around it."""
    return " ".join(wanted.casefold().split()) in " ".join((item.text or "").casefold().split())


def _floor(ladder: Ladder, tried: Sequence[Example], train: Sequence[Example]) -> float | None:
    """What always the most frequent class scores."""
    labels = Counter(str(row.label) for row in train if isinstance(row.label, str))
    if not labels or any(isinstance(row.label, tuple) for row in tried):
        return None
    most = labels.most_common(1)[0][0]
    said = [Prediction(row.id, str(row.where), label=most) for row in tried]
    return ladder.scoring(tried).value(said)


def _fits(ladder: Ladder, tell: Callable[[str], None]) -> dict[str, str]:
    """What the plan says of each way of tuning on this machine."""
    if ladder.base.random:
        return {}
    tell("measuring what this machine can hold")
    there = [rung for rung in RUNGS if rung in kinds.names("adapters")]
    return {rung: str(told["verdict"]) for rung, told in foresee(ladder, there)["rungs"].items()}
