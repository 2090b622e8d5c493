"""CSV and TSV as rows: quoted records may span lines, and a quote that is never closed is named by its line."""

from __future__ import annotations

import csv
import re
import zlib
from collections.abc import Iterator, Sequence
from itertools import chain, islice

from burnish.data import files
from burnish.data.files import Line, Source, lines
from burnish.data.rows import SHOWN, Bad, Row
from burnish.records import Where

RECORD = 20_000  # lines that one quoted CSV record may span
HEAD = 1000  # rows by which a first line is judged


class _Feed:
    """Lines for csv.reader that can be handed back: after a quote that never closes, reading goes on one line later."""

    def __init__(self, source: Source) -> None:
        self.source, self.items, self.back = source, lines(source), list[Line]()
        self.taken, self.bad, self.size = list[Line](), list[Bad](), 0

    def __iter__(self) -> Iterator[str]:
        while True:
            line = self.back.pop() if self.back else next(self.items, None)
            if line is None:
                return
            if isinstance(line, Bad):
                self.bad.append(line)
                if self.taken:  # a bad line inside a quoted record breaks the record
                    return
                yield "\n"
                continue
            self.taken.append(line)
            self.size += len(line.text)
            if len(self.taken) > RECORD or self.size > files.LINE:
                return
            yield line.text + "\n"


def _records(source: Source, delimiter: str) -> Iterator[tuple[int, list[str], str] | Bad]:
    """(first line, cells, text) of each record."""
    csv.field_size_limit(files.LINE)
    feed = _Feed(source)
    plain_tabs = delimiter == "\t"
    while True:
        feed.taken, feed.size = [], 0
        fault = ""
        cells: list[str] | None = None
        try:
            reader = csv.reader(iter(feed), delimiter=delimiter, strict=True, skipinitialspace=not plain_tabs)
            cells = next(reader, None)
        except csv.Error as problem:
            fault = str(problem)
        broken, feed.bad = feed.bad, []
        if not feed.taken and not broken:
            return
        if fault and feed.taken:
            first = feed.taken[0]
            feed.back += reversed(feed.taken[1:])
            if plain_tabs:
                cells = first.text.split("\t")
            else:
                what, do = _quote_fault(fault)
                yield Bad("row", what, do, Where(source.name, first.number), first.text[:SHOWN])
        if cells and feed.taken:
            text = "\n".join(line.text for line in feed.taken[:50])[:SHOWN] if not fault else feed.taken[0].text[:SHOWN]
            yield feed.taken[0].number, cells, text
        yield from broken


def _quote_fault(fault: str) -> tuple[str, str]:
    if "unexpected end" in fault:
        return 'a quote opened here is never closed (")', 'close it, or write a quote inside a text as ""'
    if "expected after" in fault:
        return 'text follows a closing quote (")', 'write a quote inside a quoted text as ""'
    if "new-line" in fault:
        return "a lone carriage return stands in the row", "save the file with plain line ends (LF)"
    return f"is not valid CSV: {fault}", "mend it"


def _delimiter(source: Source) -> str:
    """Tab for .tsv; else whichever of , ; tab | comes most often in the first line."""
    if source.format == "tsv":
        return "\t"
    first = next((line.text for line in lines(source) if isinstance(line, Line) and line.text.strip()), "")
    return max((",", ";", "\t", "|"), key=lambda mark: first.count(mark))


def read(source: Source) -> Iterator[Row | Bad]:
    """Rows by column; a first line that holds numbers is data, and columns are then called 1, 2, 3 ..."""
    records = _records(source, _delimiter(source))
    first = next(records, None)
    if first is None:
        return
    if isinstance(first, Bad):
        yield first
        what = "the line with the column names cannot be read, so no row can"
        yield Bad("file", what, "mend the first line", first.where, first.text, last=True)
        return
    number, cells, text = first
    where, header = Where(source.name, number), [cell.strip() for cell in cells]
    if any(re.fullmatch(r"[-+]?\d+(\.\d+)?", cell) for cell in header):
        yield from _rows(source, [str(at) for at in range(1, len(cells) + 1)], chain([first], records))
        return
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        what = f'the first line names the column "{twice[:60]}" twice'
        yield Bad("header", what, "give every column its own name", where, text, last=True)
        return
    rows = _rows(source, header, records)
    head = list[Row | Bad]()
    try:
        head.extend(islice(rows, HEAD))
    except (OSError, EOFError, zlib.error):  # the file breaks off: what came before it is given all the same
        yield from head
        raise
    if name := _class_as_name(head):
        what = f'the first line looks like a row: "{name[:60]}" is also a class in its column'
        do = "put a line with the columns' names before it, as text,label; if it has them, rename that column"
        yield Bad("header", what, do, where, text, last=True)
        return
    yield from chain(head, rows)


def _rows(
    source: Source, header: list[str], records: Iterator[tuple[int, list[str], str] | Bad]
) -> Iterator[Row | Bad]:
    for record in records:
        if isinstance(record, Bad):
            yield record
            continue
        number, cells, text = record
        where = Where(source.name, number)
        if len(cells) > len(header) and not any(cell.strip() for cell in cells[len(header) :]):
            cells = cells[: len(header)]
        if len(cells) != len(header):
            what = f"has {len(cells)} cells where the first line has {len(header)}"
            do = "put quotes around a text that holds the separator, or fill in what is missing"
            yield Bad("row", what, do, where, text)
        elif len(header) > 1 and header[0] != "1" and [cell.strip() for cell in cells] == header:  # 1, 2 are our names
            yield Bad("row", "holds the columns' names once more", "remove the line", where, text)
        else:
            yield Row(dict(zip(header, cells, strict=True)), where)


def _class_as_name(head: Sequence[Row | Bad]) -> str:
    """A column's name that is one of the few values which come again and again below it; '' where there is none."""
    rows = [item.values for item in head if isinstance(item, Row)]
    for name in rows[0] if rows else ():
        below = [row[name].strip() for row in rows]
        if name and below.count(name) > 1 and len(set(below)) <= max(2, len(below) / 3):
            return name
    return ""
