"""Pictures for the report: inline SVG whose marks stand at percentages of the width.

In: numbers and labels.  Out: escaped SVG markup that is drawn with no library, script or network.
Positions are percentages and text keeps its size, so that one picture is right at 390 and at 1280 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from markupsafe import Markup

from burnish.evaluate.plain import interval, line, number, visible
from burnish.records import Score

LEFT, RIGHT = 1.5, 98.5  # percent of the width: room for a dot at either end
MOST_POINTS = 300  # of one curve; more cannot be told apart at this size


@dataclass(frozen=True)
class Axis:
    """Values to places: `at(low)` is LEFT percent, `at(high)` RIGHT percent."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float, left: float = LEFT, right: float = RIGHT) -> float:
        """The place of a value in percent, held inside the picture; what is not a number stands at the left."""
        low, high, value = (self._scaled(item) for item in (self.low, self.high, value))
        share = (value - low) / (high - low)
        return round(left + (right - left) * min(max(0.0, share), 1.0), 3)

    def _scaled(self, value: float) -> float:
        return math.log10(max(value, 1e-12)) if self.log else value

    def ticks(self, wanted: int = 5) -> list[float]:
        """Round values from low to high."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if self.high / self.low < 300 else (1,)
            return [item for power in powers for step in steps if self.low <= (item := step * 10.0**power) <= self.high]
        step = _step((self.high - self.low) / wanted)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(index * step, 12) for index in range(first, last + 1)]


def _step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= rough * 0.999)


def axis(values: Iterable[float], log: bool = False, air: float = 0.08) -> Axis:
    """An axis with a share of air around the values that ends on round numbers; shares stay within 0 to 1."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    if log and low > 0 and high / low > 20:
        return Axis(low / 1.3, high * 1.3, log=True)
    bounded = low >= 0 and high <= 1
    air = (high - low) * air if high > low else abs(high) * 0.1 or 0.5
    step = _step((high - low + 2 * air) / 5)
    low, high = math.floor((low - air) / step) * step, math.ceil((high + air) / step) * step
    return Axis(max(low, 0.0), min(high, 1.0)) if bounded else Axis(low, high)


def _text(x: float, y: float, told: str, kind: str = "", anchor: str = "start") -> Markup:
    return Markup('<text x="{}%" y="{}" class="{}" text-anchor="{}">{}</text>').format(
        x, y, kind, anchor, visible(told)
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line x1="{}%" y1="{}" x2="{}%" y2="{}" class="{}"/>').format(x1, y1, x2, y2, kind)


def _svg(height: float, told: str, parts: Iterable[Markup]) -> Markup:
    return Markup('<svg role="img" width="100%" height="{}" aria-label="{}">{}</svg>').format(
        height, visible(told), Markup("").join(parts)
    )


def _anchor(x: float) -> str:
    return "start" if x < 20 else "end" if x > 80 else "middle"


def ladder(scores: Sequence[tuple[str, Score]], target: float | None, chosen: str, note: Mapping[str, str]) -> Markup:
    """Each rung's score with its interval on one axis, the target as a line through all of them.

    note: what stands beside a rung's name (what it cost).
    """
    higher = scores[0][1].higher
    bounds = [value for _, score in scores for value in (score.value, score.low, score.high)]
    scale = axis(bounds + ([] if target is None else [target]), log=not higher)
    top, row = 26 if target is not None else 6, 60
    foot = top + row * len(scores) + 4
    parts = []
    for tick in scale.ticks():
        x = scale.at(tick)
        parts += [_line(x, top, x, foot, "grid"), _text(x, foot + 18, _short(tick), "tick", _edge(x))]
    if target is not None:
        x = scale.at(target)
        side = "≥" if higher else "≤"
        parts += [_line(x, 20, x, foot, "target"), _text(x, 13, f"target {side} {_short(target)}", "goal", _anchor(x))]
    for index, (rung, score) in enumerate(scores):
        y, kind = top + row * index, " chosen" if rung == chosen else ""
        low, mid, high = (scale.at(value) for value in (score.low, score.value, score.high))
        label = Markup('<tspan class="name">{}</tspan><tspan class="note" dx="8">{}</tspan>').format(
            visible(line(rung, 30)), visible(note.get(rung, ""))
        )
        parts += [
            Markup('<text x="0" y="{}" class="label{}">{}</text>').format(y + 20, kind, label),
            _text(100, y + 20, number(score.value), "value" + kind, "end"),
            _line(LEFT, y + 38, RIGHT, y + 38, "track"),
            _line(low, y + 38, high, y + 38, "interval" + kind),
            _line(low, y + 33, low, y + 43, "cap" + kind),
            _line(high, y + 33, high, y + 43, "cap" + kind),
            Markup('<circle cx="{}%" cy="{}" r="6" class="dot{}"/>').format(mid, y + 38, kind),
        ]
    told = "; ".join(
        f"{line(rung, 30)} {number(score.value)}, interval {interval(score.low, score.high)}, n {score.n}"
        for rung, score in scores
    )
    aim = "" if target is None else f", target {number(target)}"
    return _svg(foot + 26, f"{scores[0][1].metric} of each rung{aim}: {told}", parts)


def _edge(x: float) -> str:
    return "start" if x < 4 else "end" if x > 96 else "middle"


def _short(value: float) -> str:
    text = f"{value:,.6g}"
    return (f"{Decimal(text):f}" if "e-" in text else text).replace("-", "−")


def losses(rung: str, curve: Sequence[Mapping[str, Any]], best: int | None) -> Markup:
    """Training and validation loss by step, the kept step marked, the learning rate as a strip below."""
    trained, valid, rates = (_points(curve, key) for key in ("train_loss", "valid_loss", "learning_rate"))
    steps = [step for step, _ in trained + valid] or [0.0]
    across = Axis(0.0, max(*steps, 1.0))
    up = axis(_bulk([loss for _, loss in trained]) + [loss for _, loss in valid], air=0.0)
    top, bottom = 24, 214
    parts = []
    for tick in up.ticks(4):
        y = _height(up, tick, top, bottom)
        parts += [_line(LEFT, y, 100, y, "grid"), _text(0, y - 4, _short(tick), "tick")]
    parts += [
        _text(across.at(tick), bottom + 18, _short(tick), "tick", _edge(across.at(tick))) for tick in across.ticks(4)
    ]
    if best is not None and 0 <= best <= across.high:
        x = across.at(best)
        parts += [_line(x, top - 6, x, bottom, "best"), _text(x, top - 11, f"kept: step {best:,}", "goal", _anchor(x))]
    for points, kind in ((trained, "train"), (valid, "valid")):
        places = [(across.at(step), _height(up, loss, top, bottom)) for step, loss in points]
        parts.append(_path(places, kind, bottom))
        if kind == "valid" or len(places) == 1:
            parts += [Markup('<circle cx="{}%" cy="{}" r="3" class="{}"/>').format(x, y, kind) for x, y in places]
    height = bottom + 26
    if rates:
        most = max(rate for _, rate in rates) or 1.0
        places = [(across.at(step), height + 34 - 26 * rate / most) for step, rate in rates]
        parts += [
            _path(places, "rate", height + 40),
            _text(100, height + 50, f"learning rate, peak {most:.2g}", "tick", "end"),
        ]
        height += 56
    ends = [f"{name} {number(points[0][1])} to {number(points[-1][1])}" for name, points in
            (("training", trained), ("validation", valid)) if points]  # fmt: skip
    return _svg(height, f"Loss of {line(rung, 30)} by step: {', '.join(ends)}", parts)


def _points(curve: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """The finite points of one key, averaged in equal bins when there are more than a picture can show."""
    told = [
        (float(point["step"]), float(point[key]))
        for point in curve
        if _finite(point.get(key)) and _finite(point.get("step"))
    ]
    size = math.ceil(len(told) / MOST_POINTS)
    if size <= 1:
        return told
    bins = [told[start : start + size] for start in range(0, len(told), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in bins]


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _bulk(values: list[float]) -> list[float]:
    """The values without the top 2 %: one spike must not flatten a curve."""
    return sorted(values)[: max(1, math.ceil(len(values) * 0.98))] if values else []


def _height(scale: Axis, value: float, top: float, bottom: float) -> float:
    return scale.at(value, bottom, top)


def _path(places: Sequence[tuple[float, float]], kind: str, height: float) -> Markup:
    """A polyline in percent across and pixels down: SVG only has this by stretching an inner picture."""
    if len(places) < 2:
        return Markup("")
    points = " ".join(f"{x:g},{y:.4g}" for x, y in places)
    return Markup(
        '<svg x="0" y="0" width="100%" height="{0}" viewBox="0 0 100 {0}" preserveAspectRatio="none">'
        '<polyline points="{1}" class="{2}" vector-effect="non-scaling-stroke"/></svg>'
    ).format(height, points, kind)


def scatter(pairs: Sequence[tuple[float, float]], rung: str) -> Markup:
    """True against predicted numbers; the diagonal is where every dot should be."""
    pairs = [pair for pair in pairs if all(map(math.isfinite, pair))]
    scale = axis([value for pair in pairs for value in pair], air=0.02)
    top, bottom = 10, 330
    parts = []
    for tick in scale.ticks(5):
        x, y = scale.at(tick, 8, 99), _height(scale, tick, top, bottom)
        parts += [_line(8, y, 99, y, "grid"), _line(x, top, x, bottom, "grid")]
        parts += [_text(7, y + 4, _short(tick), "tick", "end"), _text(x, bottom + 18, _short(tick), "tick", "middle")]
    parts.append(_path([(8, bottom), (99, top)], "diagonal", bottom))
    parts += [
        Markup('<circle cx="{}%" cy="{}" r="3.5" class="point"/>').format(
            scale.at(x, 8, 99), _height(scale, y, top, bottom)
        )
        for x, y in pairs[:1000]
    ]
    told = f"Predicted (up) against true (across) numbers of {line(rung, 30)}, {min(len(pairs), 1000):,} rows"
    return _svg(bottom + 26, told, parts)


def tradeoff(
    points: Sequence[tuple[str, float, Score]], floor: Score | None, target: float | None, chosen: str, unit: str
) -> Markup:
    """Score with interval (up) against what 1,000 requests cost (across), one dot for each rung.

    floor: what always the same answer scores, as a line.  unit: of the cost.
    """
    higher = points[0][2].higher
    bounds = [value for _, _, score in points for value in (score.value, score.low, score.high)]
    bounds += ([] if floor is None else [floor.value]) + ([] if target is None else [target])
    up, across = axis(bounds, log=not higher), axis([price for _, price, _ in points], log=True)
    top, bottom, left, right = 30, 300, 10, 96
    parts = [_text(0, 12, f"{points[0][2].metric}{'' if higher else ', lower is better'}", "tick")]
    for tick in up.ticks(4):
        y = _height(up, tick, top, bottom)
        parts += [_line(left, y, 100, y, "grid"), _text(left - 1.5, y + 4, _short(tick), "tick", "end")]
    ticks = across.ticks(4)
    for tick in ticks[:: max(1, math.ceil(len(ticks) / 5))]:
        x = across.at(tick, left, right)
        parts += [_line(x, bottom, x, bottom + 5, "track"), _text(x, bottom + 20, _short(tick), "tick", _edge(x))]
    parts.append(_text(100, bottom + 40, f"{unit} per 1,000 requests", "tick", "end"))
    spots = [(price, _height(up, score.value, top, bottom)) for _, price, score in points]
    for value, kind, told in (
        (target, "target", "target"),
        (floor.value if floor else None, "floor", "always the same"),
    ):
        if value is not None:
            y = _height(up, value, top, bottom)
            near = [across.at(price, left + 2, right) for price, own in spots if abs(own - y) < 24] or [left]
            x, anchor = (left + 0.5, "start") if min(near) - left > 100 - max(near) else (100.0, "end")  # more room
            parts += [
                _line(left, y, 100, y, kind),
                _text(x, y - 5, f"{told} {_short(round(value, 3))}", "goal" if kind == "target" else "note", anchor),
            ]
    taken: list[tuple[float, float]] = []
    for rung, price, score in sorted(points, key=lambda point: -_height(up, point[2].value, top, bottom)):
        x, kind = across.at(price, left + 2, right), " chosen" if rung == chosen else ""
        low, mid, high = (_height(up, value, top, bottom) for value in (score.low, score.value, score.high))
        y = mid
        while any(abs(y - other) < 18 and abs(x - beside) < 45 for beside, other in taken):
            y -= 4  # names of dots that lie close together climb out of each other's way
        taken.append((x, y))
        side, shift = ("end", -12) if x > 55 else ("start", 12)
        parts += [
            _line(x, low, x, high, "interval thin" + kind),
            Markup('<circle cx="{}%" cy="{}" r="5.5" class="dot{}"/>').format(x, mid, kind),
            Markup('<text x="{}%" y="{}" dx="{}" class="name{}" text-anchor="{}">{}</text>').format(
                x, y + 5, shift, kind, side, visible(line(rung, 24))
            ),
        ]
    told = "; ".join(f"{line(rung, 30)} {number(score.value)} for {number(price)}" for rung, price, score in points)
    return _svg(bottom + 46, f"{points[0][2].metric} against {unit} per 1,000 requests: {told}", parts)


def growth(points: Sequence[tuple[float, float]], law: Sequence[tuple[float, ...]], metric: str) -> Markup:
    """The metric by training rows (each step to the right doubles them), the fitted law going on to twice the data.

    law: (rows, value, low, high), the last two drawn as a band.
    """
    rows = [own[0] for own in law] or [row for row, _ in points]
    across = Axis(min(rows) / 1.1, max(rows) * 1.05, log=True)
    up = axis([value for own in (*points, *law) for value in own[1:]], air=0.1)
    top, bottom, left = 12, 220, 10
    parts = []
    for tick in up.ticks(4):
        y = _height(up, tick, top, bottom)
        parts += [_line(left, y, 100, y, "grid"), _text(left - 1.5, y + 4, _short(tick), "tick", "end")]
    for row, _ in points:
        x = across.at(row, left + 2, 97)
        parts.append(_text(x, bottom + 20, _short(row), "tick", "middle"))
    last = across.at(max(rows), left + 2, 97)
    parts.append(_text(last, bottom + 20, "twice", "tick", "end"))
    line_, low, high = (
        [(across.at(own[0], left + 2, 97), _height(up, own[place], top, bottom)) for own in law] for place in (1, 2, 3)
    )
    parts += [_path([*low, *high[::-1]], "band", bottom), _path(line_, "law", bottom)]
    parts += [
        Markup('<circle cx="{}%" cy="{}" r="5" class="valid"/>').format(
            across.at(x, left + 2, 97), _height(up, y, top, bottom)
        )
        for x, y in points
    ]
    told = ", ".join(f"{row:,.0f} rows {number(value)}" for row, value in points)
    return _svg(bottom + 28, f"{metric} by training rows: {told}", parts)


def reliability(bins: Sequence[tuple[float, float, int]], rung: str) -> Markup:
    """How many answers of a stated certainty are right; on the line certainty can be believed.  (sure, right, n)."""
    scale = Axis(0.0, 1.0)
    top, bottom = 10, 250
    parts = []
    for tick in scale.ticks(4):
        x, y = scale.at(tick, 10, 99), _height(scale, tick, top, bottom)
        parts += [_line(10, y, 99, y, "grid"), _text(9, y + 4, _short(tick), "tick", "end")]
        parts.append(_text(x, bottom + 18, _short(tick), "tick", "middle"))
    parts.append(_path([(10, bottom), (99, top)], "diagonal", bottom))
    most = max(n for _, _, n in bins)
    for sure, right, n in bins:
        x, y = scale.at(sure, 10, 99), _height(scale, right, top, bottom)
        parts.append(Markup('<circle cx="{}%" cy="{}" r="{}" class="valid"/>').format(x, y, round(3 + 6 * n / most, 1)))
    told = "; ".join(f"{sure:.0%} sure, {right:.0%} right, {n:,} rows" for sure, right, n in bins)
    return _svg(bottom + 26, f"Certainty of {line(rung, 30)} against truth: {told}", parts)
