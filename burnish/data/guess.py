"""Which shape the rows have and which column is what: guessed from names and contents, overridden by `data.columns`.

In: the first rows.  Out: a Choice that says in one line what was guessed, or a DataError that lists the columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from burnish import kinds
from burnish.data.rows import Columns, Row, visible
from burnish.errors import DataError, unknown

SAMPLE = 1000  # rows that a guess looks at


@dataclass(frozen=True)
class Choice:
    """A shape, its columns by role, and which roles were guessed."""

    shape: str
    columns: dict[str, str | list[str]]
    guessed: tuple[str, ...]

    def __str__(self) -> str:
        told = []
        for role, column in self.columns.items():
            names = column if isinstance(column, str) else f"[{', '.join(column)}]"
            told.append(f"{role} = {names}" + (" (guessed)" if role in self.guessed else ""))
        return f"{self.shape}: {', '.join(told)}"


def shapes() -> list[tuple[str, ModuleType]]:
    """Every shape, the most particular first."""
    loaded = [(name, kinds.load("data/shapes", name)) for name in kinds.names("data/shapes")]
    return sorted(loaded, key=lambda pair: (pair[1].ORDER, pair[0]))


def choose(rows: Sequence[Row], shape: str = "auto", given: Columns | None = None, goal: str = "") -> Choice:
    """The first shape that serves the goal, knows the roles given, and finds the rest of its columns in the rows.

    goal: a task name, or "" when the data decides.  Raises DataError when nothing fits.
    """
    given = dict(given or {})
    values = [row.values for row in rows]
    columns = list(dict.fromkeys(str(key)[:200] for row in values for key in row))
    where = str(rows[0].where)
    _known(given, columns, where)
    candidates = [(name, module) for name, module in shapes() if shape in ("auto", name)]
    roles = {role for _, module in candidates for role in module.ROLES}
    for role in given:
        if role not in roles:
            what, do = unknown("role in data.columns", role, roles)
            raise DataError(what, "data.columns", do)
    for name, module in candidates:
        if shape == "auto" and goal and goal not in module.GOALS:
            continue
        if any(role not in module.ROLES for role in given):
            continue
        found = _complete(module, given, columns, values)
        if found is not None:
            settled = module.settle(found, values, goal) if hasattr(module, "settle") else found
            guessed = tuple(role for role in settled if settled[role] not in given.values())
            return Choice(name, settled, guessed)
    sought = shape if shape != "auto" else f"rows for `{goal}`" if goal else "rows of any shape"
    raise DataError(
        f"The columns do not look like {sought}: {visible(', '.join(columns[:20])) or 'there are none'}",
        where,
        "say which is which, e.g. data.columns: {text: ..., label: ...} or {prompt: ..., completion: ...}",
    )


def _known(given: Mapping[str, Any], columns: Sequence[str], where: str) -> None:
    for role, wanted in given.items():
        for column in wanted if isinstance(wanted, list) else [wanted]:
            if column not in columns:
                what, do = unknown("column", column, columns[:30])
                raise DataError(f"{what} (data.columns.{role})", where, visible(do))


def _complete(
    module: ModuleType, given: Mapping[str, str | list[str]], columns: Sequence[str], values: Sequence[Any]
) -> dict[str, str | list[str]] | None:
    """`given` and what the shape guesses for the roles it needs; without any given, all that it guesses."""
    if all(any(role in given for role in either) for either in module.NEEDS):
        return dict(given)
    guess: dict[str, str | list[str]] | None = module.guess(columns, values)
    if guess is None or not given:
        return guess
    taken = [column for wanted in given.values() for column in (wanted if isinstance(wanted, list) else [wanted])]
    if any(column in taken for column in guess.values() if isinstance(column, str)):
        guess = module.guess([column for column in columns if column not in taken], values) or guess
    found = dict(given)
    for either in module.NEEDS:
        if not any(role in given for role in either):
            role = next((role for role in either if role in guess and guess[role] not in taken), None)
            if role is None:
                return None
            found[role] = guess[role]
    return {role: found[role] for role in module.ROLES if role in found}
