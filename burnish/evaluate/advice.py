"""What to do: before a climb (is fine-tuning the right tool at all?) and after it, each sentence with its figure.

In: Facts, measured on the data and on the base model before anything is trained (or asked of the person); or a Report.
Out: Advice: one first choice, what else to do, what stands in the way; or the next steps.  No model is loaded here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from burnish import kinds
from burnish.data.rows import counted
from burnish.evaluate.facts import Facts
from burnish.evaluate.statistics import wilson
from burnish.records import Report

Choice = Literal[
    "prompt", "retrieval", "prompt tuning", "LoRA", "QLoRA", "full fine-tuning", "more data", "smaller base",
    "larger base", "do not fine-tune", "mend the data",
]  # fmt: skip
FEW_PER_LABEL = 8  # rows of the rarest class; on Banking77 a linear probe gets .80 with 8, .84 with 16, .93 with all
FEW = 50  # training rows below which a tuned model is a memory of them
PLENTY = 5000  # training rows from which full fine-tuning has as a rule caught up with LoRA
STEADY = 0.95  # share of answers in the wanted form from which form is no reason to tune
CONFLICT = 0.02  # share of rows whose text stands with two labels, above which labels are to be mended first
LEAK = 0.01  # share of test rows that training holds word for word
SKEW = 0.9  # share of one class from which accuracy says little


@dataclass(frozen=True)
class Point:
    """One sentence of advice and the figures of Facts that it rests on."""

    advice: Choice
    sentence: str
    because: Mapping[str, Any]


@dataclass(frozen=True)
class Advice:
    """What to do first (a Choice), then everything that was found, the weightiest first."""

    first: Choice
    points: tuple[Point, ...]
    facts: Facts

    def to_json(self) -> dict[str, Any]:
        return {"first": self.first, "points": [asdict(item) for item in self.points], "facts": self.facts.to_json()}


def advise(facts: Facts) -> Advice:
    """The advice that the facts allow: what stands in the way of any verdict first, then what to do about the goal."""
    found = [*_data(facts), *_goal(facts), *_base(facts), *_tuning(facts)]
    return Advice(found[0].advice, tuple(found), facts)


def _data(facts: Facts) -> list[Point]:
    """What makes every later figure worthless."""
    told = []
    if facts.leak > LEAK:
        what = f"{facts.leak:.1%} of the test rows stand in the training rows too: any score on them flatters."
        told.append(Point("mend the data", f"{what} Take them out of one side first.", {"leak": facts.leak}))
    if facts.conflict > CONFLICT:
        what = f"{facts.conflict:.1%} of the rows have a text that stands elsewhere with another label"
        top = f"no model can be right on more than about {1 - facts.conflict / 2:.0%}"
        told.append(Point("mend the data", f"{what}: {top}. Settle these labels first.", {"conflict": facts.conflict}))
    if facts.agreement is not None and facts.target is not None and facts.target > facts.agreement:
        what = f"Your annotators agree on {facts.agreement:.0%} of the rows and the goal asks for {facts.target:.0%}"
        why = "a model that reached it would only copy one of them. Make the labels clearer, or lower the goal."
        because = {"agreement": facts.agreement, "target": facts.target}
        told.append(Point("mend the data", f"{what}: {why}", because))
    elif facts.agreement is not None and facts.agreement < 0.7:
        what = f"Your annotators agree on only {facts.agreement:.0%} of the rows: the labels are unclear."
        told.append(
            Point("mend the data", f"{what} Write down the rule, then label again.", {"agreement": facts.agreement})
        )
    return told


def _goal(facts: Facts) -> list[Point]:
    """When the answer is another tool, or nothing at all."""
    told = []
    if _reaches(facts):
        what = f"An instruction alone gets {facts.base:.3g} in {facts.metric} on {facts.tried} validation rows"
        goal = (
            f"the goal is {facts.target:.3g}" if facts.target is not None else f"at most {facts.best:.3g} is possible"
        )
        told.append(
            Point(
                "do not fine-tune",
                f"{what}, and {goal}: a prompt is enough.",
                {"base": facts.base, "tried": facts.tried, "target": facts.target},
            )
        )
    if facts.changing in ("daily", "weekly", "monthly"):
        what = f"The facts change {facts.changing}: a tuned model would be out of date as soon as it is made"
        how = "answer from your documents instead" if facts.documents else "gather the documents and answer from them"
        told.append(Point("retrieval", f"{what}; {how}.", {"changing": facts.changing, "documents": facts.documents}))
    elif _missing(facts):
        what = (
            f"The base knows {facts.knows:.0%} of the answers, and {facts.novel:.0%} of their rare words in no prompt"
        )
        why = "what is missing are facts, and tuning teaches form far better than facts"
        told.append(Point("retrieval", f"{what}: {why}.", {"knows": facts.knows, "novel": facts.novel}))
    return told


def _base(facts: Facts) -> list[Point]:
    """When a better prompt does it."""
    if facts.obeys is None or facts.in_form is None or _reaches(facts):
        return []
    far = facts.target if facts.target is not None else 0.9 * facts.best
    if facts.obeys < STEADY and facts.in_form >= far:
        what = (
            f"{facts.obeys:.0%} of the base's answers have the wanted form, and of those {facts.in_form:.0%} are right"
        )
        why = "it knows the task and misses only the form"
        how = "show it a few examples first; prompt tuning or LoRA if that is not enough"
        return [Point("prompt", f"{what}: {why}. So {how}.", {"obeys": facts.obeys, "in_form": facts.in_form})]
    return []


def _tuning(facts: Facts) -> list[Point]:
    """Which way of tuning, and with what."""
    told, rows = [], facts.rows.get("train", 0)
    least = min(facts.labels.values(), default=rows)
    if rows < FEW or least < FEW_PER_LABEL:
        rare = f", the rarest class has {least}" if facts.labels else ""
        what = f"There {'is' if rows == 1 else 'are'} {counted(rows, 'training row')}{rare}: too few to tune on"
        how = "show examples in the prompt now, and gather more rows" if facts.prompted else "gather more rows"
        told.append(
            Point("prompt" if facts.prompted else "more data", f"{what}; {how}.", {"rows": rows, "least": least})
        )
        told.append(
            Point(
                "more data", f"Aim for {FEW_PER_LABEL * 4} rows of each class, or a few hundred in all.", {"rows": rows}
            )
        )
        return told
    if facts.labels and max(facts.labels.values()) > SKEW * sum(facts.labels.values()):
        share = max(facts.labels.values()) / sum(facts.labels.values())
        what = f"{share:.0%} of the rows are of one class: always saying it is right that often."
        told.append(
            Point(
                "more data", f"{what} Gather rows of the others, and judge by f1-macro.", {"labels": dict(facts.labels)}
            )
        )
    fits = {rung: verdict for rung, verdict in facts.fits.items() if verdict != "does not fit"}
    if facts.fits and not fits:
        why = f"No way of tuning {facts.parameters:,} parameters fits this machine."
        told.append(
            Point(
                "smaller base", f"{why} Take a smaller base, or a machine with more memory.", {"fits": dict(facts.fits)}
            )
        )
        return told
    if facts.fits and "lora" not in fits:
        what = (
            "LoRA does not fit this machine, QLoRA over a 4-bit base does" if "qlora" in fits else "LoRA does not fit"
        )
        choice: Choice = "QLoRA" if "qlora" in fits else "prompt tuning" if "prompt-tuning" in fits else "smaller base"
        told.append(Point(choice, f"{what}: take {choice}.", {"fits": dict(facts.fits)}))
        return told
    start = f", starting from {facts.base:.3g} in {facts.metric}" if facts.base is not None else ""
    told.append(
        Point("LoRA", f"{rows:,} rows are enough to tune on{start}: LoRA first.", {"rows": rows, "base": facts.base})
    )
    if rows >= PLENTY and fits.get("full", "fits" if not facts.fits else "") == "fits":
        what = f"With {rows:,} rows full fine-tuning may gain a little more; the climb measures both."
        told.append(Point("full fine-tuning", what, {"rows": rows}))
    if facts.base is not None and facts.floor is not None and not _above(facts):
        what = f"The base alone is no better than always the same answer ({facts.base:.3g} against {facts.floor:.3g})"
        told.append(
            Point(
                "larger base",
                f"{what}: a larger base may start further up.",
                {"base": facts.base, "floor": facts.floor},
            )
        )
    return told


def _reaches(facts: Facts) -> bool:
    """Whether the base reaches the goal, or leaves next to nothing to gain, by its whole interval."""
    if facts.base is None or not facts.tried:
        return False
    if facts.higher and facts.best == 1.0:
        low = wilson(facts.base * facts.tried, facts.tried, 0.9)[0]
        return low >= (facts.target if facts.target is not None else 0.95)
    return facts.target is not None and (facts.base >= facts.target if facts.higher else facts.base <= facts.target)


def _missing(facts: Facts) -> bool:
    return facts.knows is not None and facts.novel is not None and facts.knows < 0.2 and facts.novel > 0.5


def _above(facts: Facts) -> bool:
    assert facts.base is not None
    assert facts.floor is not None
    return facts.base > facts.floor if facts.higher else facts.base < facts.floor


# --- after a climb -----------------------------------------------------------------------------------------------


def next_steps(report: Report) -> tuple[str, ...]:
    """What to do with what a climb found, the first thing first; every sentence names its figure."""
    verdict, told = report.verdict, []
    chosen = next((rung for rung in report.rungs if rung.rung == verdict.rung), None)
    claim = next((item for item in report.comparisons if item.claim), None)
    if chosen is not None:
        told.append(f"Use {chosen.rung}: burnish predict {chosen.artifact} NEW_ROWS.csv --out answers.csv")
    elif verdict.outcome == "too few rows":
        n = next((rung.scores[0].n for rung in report.rungs if rung.scores), 0)
        told.append(f"Hold out more test rows: {n:,} cannot tell. Four times as many halve every interval.")
    else:
        told.append("Do not ship any of these rungs; read the rows that are still wrong before trying a larger base.")
    if report.learning:
        told.append(str(report.learning["sentence"]))
    elif verdict.outcome in ("not met", "too few rows", "probably met"):
        told.append("Ask whether more data would help: the same command with --curve.")
    trained = [rung for rung in report.rungs if rung.trained and rung.scores]
    if trained and not any(rung.search for rung in trained):
        told.append(
            f"{len(trained)} trained rungs ran with one setting each: --search 4 tries others on validation rows."
        )
    if trained and not any(rung.seeds for rung in trained):
        told.append("One seed was trained: --seeds 3 says how much of a difference is the seed's luck.")
    ran, about = {rung.rung for rung in report.rungs}, (report.base.get("kind", "decoder"), report.goal["task"])
    asks = [
        name
        for name in kinds.names("prompting")
        if not kinds.load("prompting", name).unfit(*about, report.data.get("shape", "labelled"))
    ]
    if others := [name for name in (*asks, *kinds.names("adapters")) if name not in ran]:
        told.append(f"Not tried: {', '.join(others)}; name them under rungs: in the task to set them beside these.")
    if claim is not None and chosen is not None and chosen.trained == 0 and trained:
        told.append(
            f"Keep the prompt: {claim.b} against {claim.a} changes {claim.difference:+.3f} (p = {claim.p:.2g})."
        )
    if len(report.readings) > 1:
        told.append(f"Hold out fresh rows before you rely on this: these were opened {len(report.readings)} times.")
    return tuple(told)
