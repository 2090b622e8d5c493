"""The answer to the person's question: which rung, how sure, and was tuning worth it.

In: the goal, what each rung scored in order of cost, and how they differ.  Out: one Verdict; nothing else is read.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from burnish import kinds
from burnish import task as tasks
from burnish.data.rows import counted
from burnish.evaluate.statistics import minimum_detectable, quantile
from burnish.records import Comparison, Outcome, RungResult, Score, Verdict

TITLES = {
    "zero-shot": "zero-shot prompting",
    "few-shot": "few-shot prompting",
    "prompt-tuning": "prompt tuning",
    "lora": "LoRA",
    "qlora": "QLoRA",
    "partial": "tuning the last layers",
    "full": "full fine-tuning",
}
FLOOR = "always giving the same answer"
FLOORS = {"choose": "choosing by place or length alone", "prefer": "choosing by length alone"}  # of goals that differ
FEW = 10  # below this no interval deserves "met" or "not met"
ABLE = 5  # below this no test can tell: swapping rows that all agree gives p > 0.06
SMALL = 100  # below this a 95 % interval of a proportion is up to 0.2 wide: worth a note


@dataclass(frozen=True)
class _Gain:
    """How much better one rung is than another, in the direction that is better for the metric."""

    value: float
    low: float
    high: float
    p: float
    significant: bool
    source: Comparison

    def __str__(self) -> str:
        p = "p < 0.001" if self.p < 0.001 else f"p = {self.p:.2g}"
        return f"{_number(self.low)} to {_number(self.high)}, {p}"


@dataclass(frozen=True)
class _Climb:
    """The rungs that ran and how they compare; `scores` in order of cost, without the floor."""

    scores: dict[str, Score]
    floor: Score | None
    comparisons: tuple[Comparison, ...]
    reference: str
    higher: bool
    n: int
    always: str = FLOOR  # what the floor does, in words

    def gain(self, better: str, than: str) -> _Gain | None:
        """How much `better` gains over `than`; None when the two were not compared."""
        for item in self.comparisons:
            if {item.a, item.b} == {better, than} and better != than:
                sign = (1 if item.b == better else -1) * (1 if self.higher else -1)
                low, high = sorted((sign * item.low, sign * item.high))
                confidence = next(iter(self.scores.values())).confidence
                return _Gain(sign * item.difference, low, high, item.p_holm, item.p_holm < 1 - confidence, item)
        return None

    def question(self, trained: Collection[str]) -> tuple[str, str, _Gain | None]:
        """The trained rung and the other one that answer whether tuning pays, and the gain of the first.

        The pair that was chosen before the test rows were read, tested once; without one the best of either side on
        the test rows, whose p is corrected for all comparisons.
        """
        for item in self.comparisons:
            if item.claim and {item.a, item.b} <= self.scores.keys():
                tuned, asked = (item.b, item.a) if item.b in trained else (item.a, item.b)
                gain = self.gain(tuned, asked)
                assert gain is not None
                return tuned, asked, replace(gain, p=item.p, significant=item.p < 1 - self.scores[tuned].confidence)
        tuned = self.best([name for name in self.scores if name in trained])
        asked = self.best([name for name in self.scores if name not in trained])
        return tuned, asked, self.gain(tuned, asked)

    @property
    def bounded(self) -> bool:
        """Whether the metric is a share, 0 to 1, so that differences are told in points."""
        return kinds.load("metrics", next(iter(self.scores.values())).metric).RANGE == (0.0, 1.0)

    def beats(self, better: str, than: str) -> bool:
        """Whether `better` is better by more than luck."""
        gain = self.gain(better, than)
        return gain is not None and gain.significant and gain.value > 0

    def at_least(self, value: float, target: float) -> bool:
        """Whether a value reaches the target."""
        return value >= target if self.higher else value <= target

    def best(self, names: Collection[str]) -> str:
        """The best of some rungs by value, the cheapest of equals; '' of none."""
        values = [(self.scores[name].value * (1 if self.higher else -1), name) for name in self.scores if name in names]
        return max(values, key=lambda pair: pair[0])[1] if values else ""


def decide(
    goal: Mapping[str, Any],
    rungs: Sequence[RungResult],
    comparisons: Sequence[Comparison],
    n: int,
    reference: str = "baseline",
    trained: Collection[str] | None = None,
    openings: int = 1,
) -> Verdict:
    """The cheapest rung that does what the goal asks.

    goal: task, metric (not "auto") and target.  rungs: in order of cost.  n: test rows.
    reference: the rung that always gives the same answer: a floor, never recommended.
    trained: names of the rungs that train weights; by default all that train anything.
    openings: how often these rows were opened, this time included; every p is multiplied by it (Bonferroni).
    With a target: the cheapest rung whose value reaches it.  Without one: the cheapest rung that is better than the
    floor and that no other rung beats, both by more than luck.
    """
    trained = [rung.rung for rung in rungs if tasks.trains(rung.rung)] if trained is None else trained
    metric, target = str(goal["metric"]), goal.get("target")
    scores = {rung.rung: found for rung in rungs if not rung.skipped and (found := _of(rung, metric))}
    floor = scores.pop(reference, None)
    left_out = tuple(f"{_title(rung.rung)} was skipped: {rung.skipped}" for rung in rungs if rung.skipped)
    if not scores:
        return Verdict("", "not met", "No rung was measured, so there is nothing to recommend.", left_out)
    higher = next(iter(scores.values())).higher
    seen = [
        replace(item, p=min(1.0, item.p * openings), p_holm=min(1.0, item.p_holm * openings)) for item in comparisons
    ]
    climb = _Climb(scores, floor, tuple(seen), reference, higher, n, FLOORS.get(str(goal.get("task")), FLOOR))
    if target is None:
        rung, outcome, sentence = _without_target(climb)
    else:
        rung, outcome, sentence = _with_target(climb, float(target))
    notes = (*_notes(climb, rung, outcome, None if target is None else float(target), trained), *left_out)
    if any(len(item.seeds) == 2 for item in rungs):
        notes = (
            *notes,
            "Two seeds tell little of how far trainings scatter; from three on the intervals are narrower.",
        )
    if openings > 1:
        again = (
            f"This test set has been opened {openings} times.  What was chosen after an earlier opening may fit these "
            f"rows by luck: every p of this verdict is multiplied by {openings}, intervals are not corrected, and only "
            "rows that nobody has seen would settle it."
        )
        notes = (again, *notes)
    return Verdict(rung, outcome, f"{sentence} {_worth(climb, trained)}", notes)


def _with_target(climb: _Climb, target: float) -> tuple[str, Outcome, str]:
    def beyond(score: Score) -> bool:
        return climb.n >= FEW and climb.at_least(score.low if climb.higher else score.high, target)

    reaching = [name for name, score in climb.scores.items() if climb.at_least(score.value, target)]
    if reaching:
        rung = reaching[0]
        score = climb.scores[rung]
        side = "at" if score.value == target else "above" if climb.higher else "below"
        cheaper = list(climb.scores)[: list(climb.scores).index(rung)]
        rest = ""
        if nearest := climb.best(cheaper):
            rest = f"; {_title(nearest)}, the cheaper rung, reaches {_number(climb.scores[nearest].value, target)}"
        told = f"{score.metric} {_told(score, target)}, {side} the goal of {_number(target)}"
        if beyond(score):
            return rung, "met", _capital(f"{_title(rung)} reaches {told}{rest}.")
        doubt = "but luck is not ruled out"
        return rung, "probably met", _capital(f"{_title(rung)} probably meets the goal: {told}, {doubt}{rest}.")
    best = climb.best(climb.scores)
    score = climb.scores[best]
    told = f"the best, {_title(best)}, has {score.metric} {_told(score, target)}"
    possible = [s for s in climb.scores.values() if climb.at_least(s.high if climb.higher else s.low, target)]
    if possible or climb.n < FEW:
        doubt = "with so few rows it is not ruled out that the goal is met"
        return "", "too few rows", f"No rung reaches the goal of {_number(target)}: {told}; {doubt}."
    return "", "not met", f"No rung reaches the goal of {_number(target)}: {told}."


def _without_target(climb: _Climb) -> tuple[str, Outcome, str]:
    able = [name for name in climb.scores if climb.floor is None or climb.beats(name, climb.reference)]
    unbeaten = [name for name in able if not any(climb.beats(other, name) for other in climb.scores)]
    if unbeaten and climb.n >= (FEW if climb.floor else ABLE):  # few documents are many words
        rung = unbeaten[0]
        score = climb.scores[rung]
        over = f", against {_number(climb.floor.value, score.value)} for {climb.always}" if climb.floor else ""
        choice = (
            "the cheapest rung that no other beats by more than luck"
            if len(climb.scores) > 1
            else "the only rung measured"
        )
        return rung, "best", _capital(f"{_title(rung)} is {choice}: {score.metric} {_told(score)}{over}.")
    best = climb.best(climb.scores)
    score = climb.scores[best]
    gains = [climb.gain(name, climb.reference) for name in climb.scores]
    open_ = climb.n < FEW or any(gain is None or gain.high > 0 for gain in gains)
    floor = f" against {_number(climb.floor.value, score.value)}" if climb.floor else ""
    why = f"the best, {_title(best)}, has {score.metric} {_told(score)}{floor}"
    if not climb.floor and climb.n < ABLE:
        return "", "too few rows", f"{climb.n} test row{'s' * (climb.n > 1)} cannot tell the rungs apart: {why}."
    return "", "too few rows" if open_ else "not met", f"No rung is shown to be better than {climb.always}: {why}."


def _worth(climb: _Climb, trained: Collection[str]) -> str:
    """Was tuning worth it?"""
    tuned, asked, gain = climb.question(trained)
    if not tuned:
        return "No trained rung was measured, so whether tuning pays is open."
    if not asked:
        return "Only trained rungs were measured, so whether tuning pays is open."
    metric = climb.scores[tuned].metric
    if gain is None:
        return f"{_capital(_title(tuned))} and {_title(asked)} were not compared, so whether tuning pays is open."
    named = _title(tuned)
    if gain.source.claim and tuned != climb.best([name for name in climb.scores if name in trained]):
        named += " (chosen by validation rows, before the test)"  # else the reader wonders why not the best one
    if not gain.significant:
        return (
            f"Tuning is not shown to pay: {named} differs from {_title(asked)} in {metric} "
            f"by {_number(gain.value)} ({gain}), which may be luck."
        )
    over = climb.gain(tuned, climb.reference) if climb.floor else None
    if gain.value > 0 and over is not None and not (over.significant and over.value > 0):
        beaten = f"{named} improves {metric} over {_title(asked)} by {_number(gain.value)} ({gain})"
        return f"Tuning is not shown to pay: {beaten}, but is not shown to be better than {climb.always}."
    if gain.value > 0:
        return f"Tuning pays: {named} improves {metric} over {_title(asked)} by {_number(gain.value)} ({gain})."
    loss = replace(gain, value=-gain.value, low=-gain.high, high=-gain.low)
    return f"Tuning does not pay: {_title(asked)} is better than {named} by {_number(-gain.value)} ({loss})."


def _notes(
    climb: _Climb, rung: str, outcome: Outcome, target: float | None, trained: Collection[str]
) -> tuple[str, ...]:
    """What a sceptic should know."""
    notes = []
    if climb.n < FEW:
        told = f"{counted(climb.n, 'test row')} {'is' if climb.n == 1 else 'are'} too few for any firm verdict"
        notes.append(f"{told}; at least {FEW}, better {SMALL}, are needed.")
    elif climb.n < SMALL:
        notes.append(f"The test set is small ({climb.n} rows): every interval is wide.")
    metric = next(iter(climb.scores.values())).metric
    if climb.n >= ABLE and (least := _detectable(climb, rung, trained)) is not None:
        notes.append(
            f"With {climb.n} test rows a difference in {metric} under {least} cannot reliably be told "
            "from luck (at that size 4 of 5 such tests find it)."
        )
    for name in climb.scores:
        gain = climb.gain(name, rung)
        if gain and not gain.significant:
            notes.append(f"{_capital(_title(name))} and {_title(rung)} are within noise of each other ({gain}).")
    if target is not None and rung:
        if climb.floor and climb.at_least(climb.floor.value, target):
            notes.append(f"{_capital(climb.always)} reaches the goal too: the goal asks for nothing that was learned.")
        elif climb.floor and not climb.beats(rung, climb.reference):
            notes.append(f"{_capital(_title(rung))} is not shown to be better than {climb.always}.")
        sure = [
            name
            for name, score in climb.scores.items()
            if climb.n >= FEW and climb.at_least(score.low if climb.higher else score.high, target)
        ]
        if outcome == "probably met" and sure:
            notes.append(f"{_capital(_title(sure[0]))}, dearer, meets the goal with its whole interval.")
    return tuple(notes)


def _detectable(climb: _Climb, rung: str, trained: Collection[str]) -> str | None:
    """The smallest difference these rows can show, by the comparison that the verdict speaks of; points of a share."""
    tuned, asked, gain = climb.question(trained)
    gain = gain or climb.gain(rung or tuned or asked, climb.reference)
    if gain is None:
        return None
    least = detectable(gain.source, next(iter(climb.scores.values())).confidence)
    return f"{100 * least:.2g} points" if climb.bounded else _number(least)


def detectable(item: Comparison, confidence: float = 0.95, power: float = 0.8) -> float:
    """The smallest difference that a comparison like this one finds with this power, in the metric's unit."""
    if item.test == "mcnemar":
        return minimum_detectable(item.n, (item.fixed + item.broken) / item.n, power, confidence)
    error = (item.high - item.low) / (2 * quantile(confidence))
    return (quantile(confidence) + quantile(2 * power - 1)) * error


def _of(rung: RungResult, metric: str) -> Score | None:
    """The rung's score on the goal's metric; None when it has none that is a number."""
    return next((item for item in rung.scores if item.metric == metric and not math.isnan(item.value)), None)


def _title(rung: str) -> str:
    return TITLES.get(rung, rung)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _told(score: Score, beside: float | None = None) -> str:
    return (
        f"{_number(score.value, beside)} ({_number(score.low, beside)} to {_number(score.high, beside)}, n = {score.n})"
    )


def _number(value: float, beside: float | None = None) -> str:
    """Two decimals or two digits, whichever says more; more of them where it would read like `beside` but is not.

    >>> _number(0.8467), _number(0.8467, beside=0.85), _number(1234.5), _number(0.00123), _number(1.12e33)
    ('0.85', '0.847', '1234', '0.0012', '1.12e+33')
    """
    if not math.isfinite(value) or abs(value) >= 1e7:
        return f"{value:.3g}"
    size = math.floor(math.log10(abs(value))) if value else 0
    first = 0 if size >= 2 else 1 - min(size, -1)
    for digits in range(first, first + 6):
        text = f"{value:.{digits}f}"
        if beside is None or value == beside or text != f"{beside:.{digits}f}":
            break
    return "0" if float(text) == 0 else text
