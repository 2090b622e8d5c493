"""What went wrong, where, and what to do: the one way every part of Burnish says no.

In: three short texts.  Out: an exception that a terminal, a page and a JSON reader show alike.
One subclass per stage, so that a border (CLI, HTTP) can map a stage to an exit code without reading words.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BurnishError(Exception):
    """Something a person must change; `exit_code` follows the command line's contract (2: wrong use or input)."""

    exit_code = 2

    def __init__(self, what: str, where: str = "", do: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.do = do

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where  {self.where}")
        if self.do:
            lines.append(f"  do     {self.do}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, str]:
        """The same three fields for machines, plus the stage."""
        return {"stage": type(self).__name__, "what": self.what, "where": self.where, "do": self.do}


class TaskError(BurnishError):
    """task.yaml or an override cannot be used as written."""


class DataError(BurnishError):
    """The data cannot be used as it is."""


class TokenError(BurnishError):
    """A tokenizer or template cannot carry an example without changing what is learned."""


class ModelError(BurnishError):
    """A model folder cannot be loaded, or does not fit the task."""


class MissingExtra(BurnishError):
    """A library that only some uses need is not installed."""

    def __init__(self, need: str, extra: str) -> None:
        super().__init__(f"{need} needs the `{extra}` extra", do=f"pip install 'burnish[{extra}]'")


class ArtifactError(BurnishError):
    """A saved artifact is incomplete, damaged or not one of ours."""


class TrainError(BurnishError):
    """A run failed while training; what it had saved is intact."""

    exit_code = 3


class CheckpointError(TrainError):
    """A checkpoint could not be written, or no saved one can be trusted."""


class Interrupted(BurnishError):
    """The person stopped a run; it is saved and goes on with the same command."""

    exit_code = 130


def nearest(word: str, known: Iterable[str]) -> str:
    """The known name closest to `word`, or '' when none is close.

    >>> nearest("dop", ["dpo", "sft"])
    'dpo'
    """
    known = list(known)
    folded = {name.casefold().replace("-", "_"): name for name in known}
    close = difflib.get_close_matches(word.casefold().replace("-", "_"), list(folded), n=1, cutoff=0.5)
    return folded[close[0]] if close else ""


def unknown(kind: str, word: object, known: Iterable[str]) -> tuple[str, str]:
    """The `what` and `do` of a name nobody knows: the choices, and the nearest of them."""
    known = sorted(known)
    close = nearest(str(word), known)
    hint = f" (nearest: {close})" if close else ""
    return f'Unknown {kind} "{word}"', f"use one of {', '.join(known)}{hint}"
