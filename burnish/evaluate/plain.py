"""Values as a person reads them: text with nothing hidden in it, numbers with no false precision.

In: any value, the text of strangers among them.  Out: plain text, not yet escaped for any format.
A report, a model card and a terminal must show the same number alike, and none of them may be steered by data.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from burnish.records import Score

# What a reader cannot see or what reorders the text around it: C0 and C1 controls except newline and tab, soft hyphen,
# marks and overrides of direction, zero-width space and joins of words, line separators, tag characters, surrogates,
# non-characters.  The joiners U+200C and U+200D stay: Persian, Indic scripts and emoji are spelt with them.
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufeff\ufff9-\ufffb\ufffe\uffff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    r"""The text with every hidden character written out.

    >>> visible("a\x1b[31mb\u202ec")
    'a␛[31mb⟨U+202E⟩c'
    """
    return HIDDEN.sub(_name, text.replace("\r\n", "\n"))


def _name(found: re.Match[str]) -> str:
    code = ord(found.group())
    return chr(0x2400 + code) if code < 0x20 else f"⟨U+{code:04X}⟩"


def clip(text: object, limit: int = 600) -> str:
    """At most `limit` characters, and how many were left out.

    >>> clip("abcdefgh", 3)
    'abc … (5 more characters)'
    """
    told = str(text)
    left = len(told) - limit
    return told if left <= 0 else f"{told[:limit]} … ({left:,} more character{'s' * (left > 1)})"


def line(text: object, limit: int = 80) -> str:
    """`clip` on one line, for labels, headings and names."""
    return clip(" ".join(str(text).split()), limit)


def number(value: object) -> str:
    """A measured value with three or four digits that count; '–' when there is none.

    >>> number(0.91342), number(12.3456), number(1234.5), number(3e-4), number(7), number(None)
    ('0.913', '12.35', '1,234', '0.0003', '7', '–')
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "–" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return "–" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    size = abs(value)
    if size and (size < 0.0095 or size >= 1e7):
        told = f"{value:.3g}"
    else:
        told = f"{value:,.{3 if size < 1 else 2 if size < 100 else 1 if size < 1000 else 0}f}"
    return told.replace("-", "−") if value < 0 else told


def signed(value: float) -> str:
    """A difference, always with its sign.

    >>> signed(0.08), signed(-0.02)
    ('+0.080', '−0.020')
    """
    return f"+{number(value)}" if value > 0 else number(value)


def interval(low: float, high: float, sign: bool = False) -> str:
    """`0.89 to 0.93`; the word, since a dash next to a minus misleads."""
    told = signed if sign else number
    return f"{told(low)} to {told(high)}"


def chance(p: float) -> str:
    """A p-value.

    >>> chance(0.00001), chance(0.0312), chance(1.0)
    ('< 0.0001', '0.031', '1.000')
    """
    if math.isnan(p):
        return "–"
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.001 else f"{p:.3f}"


def percent(confidence: float) -> str:
    """`95 %`."""
    return f"{confidence * 100:.3g} %"


def scored(score: Score) -> str:
    """A score in words: `0.913 (95 % interval 0.890 to 0.931, n = 600)`."""
    around = f"{percent(score.confidence)} interval {interval(score.low, score.high)}"
    return f"{number(score.value)} ({around}, n = {score.n:,})"


def seconds(value: float) -> str:
    """A duration.

    >>> seconds(0), seconds(0.42), seconds(200), seconds(3900)
    ('0 s', '0.4 s', '3 min 20 s', '1 h 5 min')
    """
    if 0 < value < 9.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s".removesuffix(" 0 s")
    return f"{whole // 3600} h {whole % 3600 // 60} min".removesuffix(" 0 min")


def size(value: float) -> str:
    """Bytes as a person says them.

    >>> size(512), size(3_500_000), size(38e6), size(2.5e9), size(12e9)
    ('512 B', '3.5 MB', '38 MB', '2.5 GB', '12 GB')
    """
    for unit, of in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= of:
            return f"{value / of:,.{0 if value >= 10 * of else 1}f} {unit}"
    return f"{value:.0f} B"


def setting(value: Any) -> str:
    """A setting's value on one line."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, (int, float)):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {setting(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(setting(item) for item in value)
    return str(value)


def cell(value: Any) -> str:
    """A value of a table as it was set or counted; thousands are marked from five digits on.

    >>> cell(3.0), cell(0.0003), cell(2904), cell(61010), cell([1, 2])
    ('3', '0.0003', '2904', '61,010', '1, 2')
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:,.6g}" if isinstance(value, float) else f"{value:,}" if abs(value) >= 10_000 else str(value)
    return setting(value)
