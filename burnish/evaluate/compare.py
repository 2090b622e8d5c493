"""Two artifacts on the same rows, whatever made them: is one better by more than luck, and which rows tell?

In: rows and what two artifacts said about them.  Out: a Side by side with the paired test and the rows that changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from burnish.errors import DataError
from burnish.evaluate import plain, verdict
from burnish.evaluate.listings import Change, changes, nearest_to
from burnish.evaluate.scores import Scoring
from burnish.records import Comparison, Example, Prediction, Score


@dataclass(frozen=True)
class Sides:
    """How two artifacts compare.

    better: the name of the better one, '' where that cannot be told.  change: rows fixed, broken and still wrong; None
    where nothing is right or wrong.
    """

    a: str
    b: str
    scores: tuple[Score, Score]
    comparison: Comparison
    detectable: float
    sentence: str
    better: str = ""
    change: Change | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compared(
    names: tuple[str, str],
    task: str,
    scoring: Scoring,
    said: tuple[Sequence[Prediction], Sequence[Prediction]],
    train: Sequence[Example] = (),
) -> Sides:
    """`names[1]` against `names[0]` on the same rows, by one paired test.

    train: rows among which the nearest to each changed row are shown.
    """
    a, b = names
    if a == b:
        raise DataError("The two sides have the same name", a, "name two artifacts")
    first, second = (scoring.score(own) for own in said)
    (found,) = scoring.compare(dict(zip(names, said, strict=True)))
    by_id = {name: {item.id: item for item in own} for name, own in zip(names, said, strict=True)}
    change = next(iter(changes(task, [(a, b)], scoring.rows, by_id, nearest_to(train))), None)
    least = verdict.detectable(found, scoring.confidence)
    sure = found.p < 1 - scoring.confidence
    better = (b if (found.difference > 0) is second.higher else a) if sure else ""
    return Sides(a, b, (first, second), found, least, _sentence(found, first, second, least, better), better, change)


def _sentence(found: Comparison, first: Score, second: Score, least: float, better: str) -> str:
    """Who is better, by how much, how sure; where nobody is, what these rows could have shown."""
    sign, other = 1, found.a
    if better == found.a:
        first, second, sign, other = second, first, -1, found.b
    low, high = sorted((sign * found.low, sign * found.high))
    p = "p < 0.001" if found.p < 0.001 else f"p = {found.p:.2g}"
    values = f"{second.metric} {plain.number(second.value)} against {plain.number(first.value)} on {found.n:,} rows"
    gap = f"a difference of {plain.signed(sign * found.difference)} ({plain.interval(low, high, sign=True)}, {p})"
    if better:
        return f"{better} is better than {other}: {values}, {gap}."
    return (
        f"{found.b} and {found.a} cannot be told apart: {values}, {gap}. A difference under {plain.number(least)} "
        "cannot reliably be told from luck with these rows."
    )
