"""A terminal or a log to write on: colour, columns and wrapping, and nothing a stranger's text could do to it.

In: a stream, then lines and tables.  Out: what a person reads.  Models and data speak here in the words of strangers:
everything passes `plain.visible`, and nothing is read as markup.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import IO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from burnish.evaluate import plain

Part = str | tuple[str, str]  # text, or text and its style


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Go quiet: whoever closed the pipe has read enough, and the work behind it goes on."""
        self.quiet = True
        silence(self.file)


def silence(stream: IO[str]) -> None:
    """Send what is still buffered for a closed pipe nowhere, or Python complains about it at exit."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):
        pass


class Screen:
    """A terminal or a log: colour and wrapping only on the first."""

    def __init__(self, stream: IO[str]) -> None:
        self.terminal = stream.isatty() and "CI" not in os.environ
        width = None if self.terminal or "COLUMNS" in os.environ else 1000  # a log line is never broken
        self.console = _Console(file=stream, width=width, markup=False, emoji=False, highlight=False)

    @property
    def coloured(self) -> bool:
        return self.console.color_system is not None and not self.console.no_color

    def line(self, *parts: Part, whole: bool = False) -> None:
        """Print one line (a part may hold more); `whole` for what people copy, which is never broken."""
        self.console.print(_text(*parts), soft_wrap=whole or not self.terminal)

    def table(
        self, heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, first: Sequence[int] = ()
    ) -> None:
        """Print columns; the first `left` are words, the others numbers.

        first: the columns by what matters most; where the terminal is too narrow for all, the last are left out.
        """
        room = self.console.width
        kept: list[int] = []
        for column in first:
            room -= max(len(row[column]) for row in (heads, *rows)) + 3
            kept += [column] if room >= 0 else []
        if len(kept) < len(first):
            left = sum(column < left for column in kept)
            heads, *rows = ([row[column] for column in sorted(kept)] for row in (heads, *rows))
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
        for index, head in enumerate(heads):
            table.add_column(_text(head), justify="left" if index < left else "right")
        for row in rows:
            table.add_row(*(_text(plain.line(cell)) for cell in row))
        self.console.print(table)

    def error(self, told: object) -> None:
        """Print a BurnishError's lines: the first stands out."""
        what, *rest = str(told).splitlines() or [""]
        self.line((what, "bold red"))
        for item in rest:
            self.line(item)


def _text(*parts: Part) -> Text:
    pairs = [(part, "") if isinstance(part, str) else part for part in parts]
    return Text.assemble(*((plain.visible(text), style) for text, style in pairs))
