"""JSON and JSONL as rows: each object knows its line, and a broken one does not take the others with it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from burnish.data.files import Source, lines, not_utf8, opened
from burnish.data.rows import SHOWN, Bad, Row
from burnish.records import Where

WHOLE = 512 * 2**20  # bytes of a .json array that is read as one
DEPTH = 64  # lists and objects inside each other


class _BadJson(ValueError):
    def __init__(self, what: str, do: str = "mend it") -> None:
        super().__init__(what)
        self.what, self.do = what, do


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _BadJson(f'has the key "{twice[:60]}" twice', "keep one")
    return found


def _constant(name: str) -> Any:
    raise _BadJson(f"holds {name}, which is not JSON", "write a number, or null")


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def _parse(text: str, start: int = 0) -> tuple[Any, int]:
    """One JSON value from `start`, and where it ends; raises _BadJson in a person's words."""
    try:
        value, end = DECODER.raw_decode(text, start)
    except RecursionError:
        raise _BadJson(f"is nested more than {DEPTH} deep", "flatten it") from None
    except json.JSONDecodeError as problem:
        line_start = text.rfind("\n", 0, problem.pos) + 1
        told = problem.msg[:1].lower() + problem.msg[1:].removesuffix(" at")
        wrong = _BadJson(f"is not valid JSON: {told} at column {problem.pos - max(line_start, 0) + 1}")
        wrong.args = (problem.pos,)
        raise wrong from None
    except ValueError as problem:
        if isinstance(problem, _BadJson):
            raise
        raise _BadJson("holds a number of too many digits", "shorten it, or write it as text") from None
    if text.count("[", start, end) + text.count("{", start, end) > DEPTH and _depth(value) > DEPTH:
        raise _BadJson(f"is nested more than {DEPTH} deep", "flatten it")
    return value, end


def _depth(value: object) -> int:
    """How many lists and objects are inside each other; stops counting past the limit."""
    level, depth = [value], 0
    while level and depth <= DEPTH + 1:
        level = [inner for item in level for inner in _inner(item)]
        depth += 1
    return depth - 1


def _inner(item: object) -> Sequence[object]:
    return list(item.values()) if isinstance(item, dict) else item if isinstance(item, list) else ()


def _row(value: object, where: Where, text: str) -> Row | Bad:
    if isinstance(value, dict):
        return Row(value, where)
    return Bad("row", "is not a JSON object", 'write {"column": value, ...}', where, text[:SHOWN])


def read_lines(source: Source) -> Iterator[Row | Bad]:
    for line in lines(source):
        if isinstance(line, Bad):
            yield line
        elif line.text.strip():
            where = Where(source.name, line.number)
            try:
                text = line.text.strip()
                value, end = _parse(text)
                if text[end:].strip():
                    raise _BadJson(f"goes on after the JSON value, at column {end + 1}", "write one object a line")
                yield _row(value, where, text)
            except _BadJson as problem:
                yield Bad("row", problem.what, problem.do, where, line.text[:SHOWN])


SPACE = re.compile(r"[ \t\r\n]*")


def read_array(source: Source) -> Iterator[Row | Bad]:
    """An array of objects, an object that holds one such array, one object, or objects one after the other."""
    whole = io.BytesIO()
    with closing(opened(source)) as stream:
        while piece := stream.read(1 << 20):
            whole.write(piece)
            if whole.tell() > WHOLE:
                what = f"is a JSON file of more than {WHOLE >> 20} MB"
                yield Bad("file", what, "write it as JSONL, one object a line", Where(source.name, 1), last=True)
                return
    raw = whole.getvalue()
    del whole
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as problem:
        number = raw.count(b"\n", 0, problem.start) + 1
        begin = raw.rfind(b"\n", 0, problem.start) + 1
        line = raw[begin : problem.end + SHOWN]
        wrong = UnicodeDecodeError("utf-8", line, problem.start - begin, problem.end - begin, problem.reason)
        yield not_utf8(line, wrong, Where(source.name, number))
        return
    start = _skip(text, 0)
    if text[start : start + 1] == "{":
        arrays = _arrays_inside(text, start)
        if len(arrays) > 1:
            what = f"holds {len(arrays)} lists ({', '.join(list(arrays)[:5])[:100]}), not one"
            do = "save the list you mean as a file of its own"
            yield Bad("file", what, do, Where(source.name, 1), text[:SHOWN], last=True)
            return
        start = next(iter(arrays.values()), start)
    if text[start : start + 1] == "[":
        yield from _elements(text, start + 1, source)
    elif text[start : start + 1] == "{" and not text.strip().endswith("}"):
        yield from read_lines(source)
    elif start < len(text):
        yield from _objects(text, start, source)


def _skip(text: str, at: int) -> int:
    found = SPACE.match(text, at)
    return found.end() if found else at


def _arrays_inside(text: str, start: int) -> dict[str, int]:
    """Where each list of rows in the object at `start` begins, by its key; {} when the file goes on after the object.

    A list of turns is no list of rows.
    """
    at, arrays = _skip(text, start + 1), {}
    try:
        while text[at : at + 1] == '"':
            name, at = _parse(text, at)
            at = _skip(text, _skip(text, at) + 1)
            value, end = _parse(text, at)
            first = value[0] if isinstance(value, list) and value else None
            if isinstance(first, list) or (isinstance(first, dict) and not {"role", "from"} & first.keys()):
                arrays[str(name)] = at
            at = _skip(text, end)
            at = _skip(text, at + 1) if text[at : at + 1] == "," else at
    except _BadJson:
        return {}
    return arrays if text[at : at + 1] == "}" and _skip(text, at + 1) == len(text) else {}


def _objects(text: str, at: int, source: Source) -> Iterator[Row | Bad]:
    line, seen = 1, 0
    while at < len(text):
        line, seen = line + text.count("\n", seen, at), at
        try:
            value, end = _parse(text, at)
            if line == 1 and _skip(text, end) == len(text) and _columns(value):
                what, do = (
                    "holds columns, not rows",
                    'write one object a row, as pandas does: to_json(orient="records")',
                )
                yield Bad("file", what, do, Where(source.name, line), text[at : at + SHOWN], last=True)
                return
            yield _row(value, Where(source.name, line), text[at : at + SHOWN])
        except _BadJson as problem:
            yield _broken(text, at, line, problem, source)
            end = text.find("\n{", at) + 1 or len(text)
        at = _skip(text, end)


def _columns(value: object) -> bool:
    """Whether an object is a table written column by column: lists, or objects by row number, of equally many cells."""
    if not isinstance(value, dict) or len(value) < 2:
        return False
    found = [_inner(own) for own in value.values() if not isinstance(own, dict) or all(map(str.isdigit, own))]
    flat = not any(_inner(cell) for own in found for cell in own)
    return flat and len(found) == len(value) and len({len(own) for own in found}) == 1 < len(found[0])


def _elements(text: str, at: int, source: Source) -> Iterator[Row | Bad]:
    """The elements of an array; after a broken one, reading goes on where the next seems to begin."""
    line, seen, indent = 1, 0, ""
    at = _skip(text, at)
    while at < len(text) and text[at] != "]":
        line, seen = line + text.count("\n", seen, at), at
        try:
            value, end = _parse(text, at)
            follow = _skip(text, end)
            if text[follow : follow + 1] not in (",", "]"):
                raise _BadJson('is not followed by "," or "]"', "put a comma between two rows")
            yield _row(value, Where(source.name, line), text[at : at + SHOWN])
            indent = text[text.rfind("\n", 0, at) + 1 : at]
            at = _skip(text, follow + 1) if text[follow] == "," else follow
        except _BadJson as problem:
            bad = _broken(text, at, line, problem, source)
            again = re.compile(rf"\n{indent}\{{" if not indent.strip() else r"\n\s*\{").search(text, at + 1)
            if again is None and "\n" in text[at:]:
                bad = replace(bad, last=True)
            yield bad
            at = again.end() - 1 if again else len(text) + 1
    if at == len(text):
        where = Where(source.name, 1 + text.count("\n"))
        what, do = 'the array has no end: "]" is missing', "the file is cut short; fetch it again"
        yield Bad("file", what, do, where, last=True)


def _broken(text: str, at: int, line: int, problem: _BadJson, source: Source) -> Bad:
    """At the line of the fault when the parser knows it, else at the row's first line."""
    place = problem.args[0] if problem.args and isinstance(problem.args[0], int) else at
    where = Where(source.name, line + text.count("\n", at, place))
    return Bad("row", problem.what, problem.do, where, text[at : at + SHOWN])
