"""What making a rung took and what running it takes, on this machine, in tokens, seconds, memory, energy and money.

In: seconds and tokens of training, the stored predictions' own records, and a table of prices that a person edits.
Out: plain mappings for the report.  Every running figure is a sum over predictions; nothing is modelled but energy,
which is seconds times the watts of the table.  Seconds are of the clock, so other work on the machine makes them too
high.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from burnish import store
from burnish.errors import TaskError
from burnish.records import Prediction, RungResult

REQUESTS = 1000  # running costs are told for so many
MILLION = 1e6
TABLE = """\
# Prices behind the costs in Burnish's reports.  Edit them: these are round placeholders, not anybody's offer.
# A prices.yaml beside a task file goes before this one.
currency: USD
machine_hour: 0.10   # this machine for an hour: rent, or purchase divided by its hours of use, and power
watts: 65            # drawn by this machine while it works; energy is seconds times this
hosted:              # for comparison: a hosted model, per million tokens
  a small hosted model: {prompt: 0.15, completion: 0.60}
"""


@dataclass(frozen=True)
class Hosted:
    """A hosted model's price per million tokens."""

    prompt: float
    completion: float


@dataclass(frozen=True)
class Prices:
    """The table: currency, this machine's price per hour and watts, hosted models for comparison; from `source`."""

    currency: str
    machine_hour: float
    watts: float
    hosted: Mapping[str, Hosted] = field(default_factory=dict)
    source: str = ""

    def to_json(self) -> dict[str, Any]:
        hosted = {name: {"prompt": own.prompt, "completion": own.completion} for name, own in self.hosted.items()}
        return {"currency": self.currency, "machine_hour": self.machine_hour, "watts": self.watts, "hosted": hosted,
                "source": self.source}  # fmt: skip


def prices(folder: str | Path = "") -> Prices:
    """The table beside the task, else the one in BURNISH_HOME, which is written there for editing if there is none.

    Raises TaskError when a key is unknown or a price is not a number of at least 0.
    """
    path = Path(folder) / "prices.yaml" if folder else store.home() / "prices.yaml"
    if not path.exists():
        path = store.home() / "prices.yaml"
    if not path.exists():
        store.write_text(path, TABLE)
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
        hosted = {str(name): Hosted(**{key: _price(value) for key, value in own.items()})
                  for name, own in (told.pop("hosted", None) or {}).items()}  # fmt: skip
        currency = str(told.pop("currency", "USD"))
        return Prices(currency, hosted=hosted, source=path.name, **{key: _price(value) for key, value in told.items()})
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as problem:
        what = f"The table of prices cannot be read: {' '.join(str(problem).split())[:200]}"
        raise TaskError(what, str(path), "mend it, or delete it to have the first one written again") from None


def _price(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"{value!r} is no price")
    return float(value)


# --- measuring -------------------------------------------------------------------------------------------------


@dataclass
class Peak:
    """The most memory this process held while it was measured, in bytes; 0 while it still is."""

    bytes: int = 0


@contextlib.contextmanager
def peak() -> Iterator[Peak]:
    """Measure the peak resident memory of this process, weights and libraries included, plus a GPU's."""
    found, clear = Peak(), Path("/proc/self/clear_refs")
    with contextlib.suppress(OSError):
        clear.write_text("5")  # Linux: the high-water mark starts again from here; elsewhere it is that of the process
    cuda = _cuda()
    if cuda:
        cuda.reset_peak_memory_stats()
    try:
        yield found
    finally:
        found.bytes = _high_water() + (cuda.max_memory_allocated() if cuda else 0)


def _high_water() -> int:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    import resource
    import sys

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _cuda() -> Any:
    """torch.cuda where torch is loaded and has a GPU."""
    import sys

    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None


# --- pricing ---------------------------------------------------------------------------------------------------


def making(seconds: float, tokens: int, memory: int, table: Prices) -> dict[str, float]:
    """What making a rung took: seconds, tokens trained on, peak bytes, energy in watt-hours, money."""
    return {
        "seconds": seconds,
        "tokens": tokens,
        "memory": memory,
        "watt_hours": seconds * table.watts / 3600,
        "price": seconds * table.machine_hour / 3600,
    }


def running(said: Sequence[Prediction], memory: int, table: Prices) -> dict[str, Any]:
    """What 1,000 requests like the predicted rows take; {} without predictions."""
    if not said:
        return {}
    share = REQUESTS / len(said)
    seconds = sum(row.seconds for row in said) * share
    prompt, completion = (sum(getattr(row, name) or 0 for row in said) * share for name in
                          ("prompt_tokens", "completion_tokens"))  # fmt: skip
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "seconds": seconds,
        "memory": memory,
        "watt_hours": seconds * table.watts / 3600,
        "price": seconds * table.machine_hour / 3600,
        "hosted": {
            name: (prompt * own.prompt + completion * own.completion) / MILLION for name, own in table.hosted.items()
        },
    }


@dataclass(frozen=True)
class BreakEven:
    """After how many requests the dearer one to make has paid for itself by being cheaper to run.

    requests: None when running it is not cheaper.  saved: money saved per 1,000 requests (negative: it costs more).
    tokens: prompt tokens saved per request.  extra: what making it costs more.
    """

    rung: str
    against: str
    requests: int | None
    saved: float
    tokens: float
    extra: float

    def sentence(self, currency: str) -> str:
        """In words, with the figures behind them."""
        size = f"{abs(self.tokens):,.0f} tokens {'shorter' if self.tokens > 0 else 'longer'} per request"
        longer = f"its prompts are {size if abs(self.tokens) >= 0.5 else 'as long'}"
        if self.requests is None:
            more = "as much" if self.saved == 0 else f"{money(-self.saved, currency)} more"
            return (
                f"{self.rung} never pays for itself by running cheaper than {self.against}: {longer}, and 1,000 "
                f"requests cost {more} on this machine."
            )
        if self.requests == 0:
            return f"{self.rung} costs no more than {self.against}, neither to make nor to run."
        return (
            f"{self.rung} pays for itself after {self.requests:,} requests: {longer}, which saves "
            f"{money(self.saved, currency)} per 1,000 requests on this machine, and making it costs "
            f"{money(self.extra, currency)} more than {self.against}."
        )


def break_even(tuned: RungResult, prompted: RungResult) -> BreakEven | None:
    """Tuned against prompted, both with their costs; None where one has none."""
    if not (tuned.cost.get("running") and prompted.cost.get("running")):
        return None
    one, other = tuned.cost["running"], prompted.cost["running"]
    saved = other["price"] - one["price"]
    extra = tuned.cost["making"]["price"] - prompted.cost["making"]["price"]
    requests = None if saved <= 0 < extra or saved < 0 else math.ceil(max(extra, 0) / saved * REQUESTS) if saved else 0
    tokens = (other["prompt_tokens"] - one["prompt_tokens"]) / REQUESTS
    return BreakEven(tuned.rung, prompted.rung, requests, saved, tokens, extra)


def money(value: float, currency: str) -> str:
    """An amount with two decimals, or two digits when it is small.

    >>> money(1.234, "USD"), money(0.000123, "USD"), money(0, "EUR")
    ('1.23 USD', '0.00012 USD', '0 EUR')
    """
    if value == 0:
        return f"0 {currency}"
    digits = max(2, 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f} {currency}"
