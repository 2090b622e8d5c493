"""Spoil good data files in every way we know: each must load, or be refused by file and line, never by a traceback.

    python benchmarks/fuzz_data.py 2000 [seed]

In: a number of mutants.  Out: counts; exit 1 when one gave a traceback or a message without file:line.
Mutant i of a seed is always the same file, so a failure can be had again: `python benchmarks/fuzz_data.py 1 0 I`.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import random
import re
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from burnish.data.prepare import look, prepare
from burnish.data.validate import BadRows
from burnish.errors import DataError
from burnish.taskfile import resolve

WORDS = ("the", "miller", "river", "lantern", "oak", "bread", "winter", "letter", "heron", "slow", "bright", "gold")
PLACE = re.compile(r".+:\d+$", re.DOTALL)


def _text(rng: random.Random, words: int = 8) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(2, words))) + rng.choice([".", "!", "?", " é.", " 水"])


def _rows(rng: random.Random, shape: str) -> list[dict[str, object]]:
    count = rng.randint(3, 30)
    make: dict[str, Callable[[], dict[str, object]]] = {
        "labelled": lambda: {"text": _text(rng), "label": rng.choice(["pos", "neg"])},
        "number": lambda: {"text": _text(rng), "score": round(rng.random() * 5, 2)},
        "flags": lambda: {"smiles": _text(rng), "A": rng.choice([0, 1]), "B": rng.choice([0, 1, ""])},
        "prompt": lambda: {"prompt": _text(rng), "completion": _text(rng)},
        "instruction": lambda: {"instruction": _text(rng), "input": rng.choice(["", _text(rng)]), "output": _text(rng)},
        "messages": lambda: {
            "messages": [{"role": "user", "content": _text(rng)}, {"role": "assistant", "content": _text(rng)}]
        },
        "sharegpt": lambda: {
            "conversations": [{"from": "human", "value": _text(rng)}, {"from": "gpt", "value": "Yes."}]
        },
        "document": lambda: {"text": _text(rng, 60)},
    }
    return [make[shape]() for _ in range(count)]


SHAPES = ("labelled", "number", "flags", "prompt", "instruction", "messages", "sharegpt", "document")
FORMATS = ("csv", "tsv", "json", "jsonl", "jsonl", "csv", "txt", "parquet")


def _written(rows: list[dict[str, object]], kind: str, rng: random.Random) -> bytes:
    if kind in ("csv", "tsv"):
        import csv

        stream = io.StringIO()
        cells = [
            {key: json.dumps(value) if isinstance(value, list) else value for key, value in row.items()} for row in rows
        ]
        writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
        writer.writeheader()
        writer.writerows(cells)
        return stream.getvalue().encode()
    if kind == "json":
        return json.dumps(rows, indent=rng.choice([None, 1, 2]), ensure_ascii=rng.random() < 0.5).encode(
            "utf-8", "surrogatepass"
        )
    if kind == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=rng.random() < 0.5) + "\n" for row in rows).encode(
            "utf-8", "surrogatepass"
        )
    if kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        sink = io.BytesIO()
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist([{k: str(v) for k, v in row.items()} for row in rows]), sink
        )
        return sink.getvalue()
    return "\n".join(" ".join(str(value) for value in reversed(row.values())) for row in rows).encode()


# --- ways to spoil a row, and ways to spoil a file ------------------------------------------------------------

VALUES: tuple[object, ...] = (
    *(None, "", "   ", 0, -1, 1e308, 10**5000, float("nan"), float("inf"), True, [], {}, [[]], ["a", "b"], {"a": 1}),
    *(
        "\0",
        "a\0b",
        "\ud800",
        "x\udfffy",
        "\u202eabc",
        "\ufeffx",
        "\u2028",
        "\x0b\x0c\x1b",
        "é" * 50,
        "=cmd()",
        "a;b|c",
    ),
    *([{"role": "user"}], [{"role": "wizard", "content": "x"}], [{"role": "assistant", "content": None}], "[{", "[[[["),
    *([{"role": "user", "content": [{"type": "image", "url": "x"}]}], [None], [{"from": "gpt"}], '"', "a\nb\r\nc"),
)


def _spoil_row(row: dict[str, object], rng: random.Random) -> object:
    key = rng.choice(list(row))
    way = rng.randrange(7)
    if way == 0:
        return {name[:-1] + "x" if name == key else name: value for name, value in row.items()}
    if way == 1:
        return {name: value for name, value in row.items() if name != key}
    if way == 2:
        return {**row, rng.choice(["extra", "", "\0", "label ", "TEXT"]): rng.choice(VALUES)}
    if way == 3:
        return rng.choice([[1, 2], "text", 7, None, [], {}, True])
    if way == 4 and isinstance(row[key], str):
        return {**row, key: str(row[key]).upper() + rng.choice(["", " ", "."])}
    if way == 5:
        deep: object = "x"
        for _ in range(rng.choice([10, 70, 900])):
            deep = [deep]
        return {**row, key: deep}
    return {**row, key: rng.choice(VALUES)}


def _spoil_bytes(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    end = min(len(data), at + rng.randint(1, 40))
    junk = (
        b"\0",
        b"\xff",
        b"\xc3",
        b'"',
        b"{",
        b"[" * 200,
        b"}",
        b",",
        b"\n",
        b"\r",
        b"\r\n",
        b"\\",
        b"\t",
        b"\xed\xa0\x80",
    )
    ways: tuple[Callable[[], bytes], ...] = (
        lambda: data[:at] + rng.choice(junk) * rng.choice([1, 1, 3]) + data[at:],
        lambda: data[:at] + data[end:],
        lambda: data[:at],
        lambda: data[:at] + bytes(rng.randrange(256) for _ in range(5)) + data[end:],
        lambda: data[:at] + data[at:end] * 3 + data[end:],
        lambda: data.replace(b"\n", rng.choice([b"\r\n", b"\r", b"\n\n", b"", b"\n\n\n"])),
        lambda: b"\xef\xbb\xbf" + data,
        lambda: data.decode("utf-8", "replace").encode(rng.choice(["utf-16", "utf-32", "utf-16-le", "utf-16-be"])),
        lambda: data.decode("utf-8", "replace").encode("latin-1", "replace"),
        lambda: b"\xff\xfe" + data[at:],
        lambda: bytes(byte ^ (1 << rng.randrange(8)) if rng.random() < 0.02 else byte for byte in data),
        lambda: (
            data + rng.choice([b"[" * 100_000, b'{"text": ' * 3000, b'"', b"]", b"1e999", b"9" * 6000, b"\0" * 500])
        ),
        lambda: data.replace(b'"', rng.choice([b"", b"'", b'""', b"\xe2\x80\x9c"]), rng.randint(1, 9)),
        lambda: data.replace(b",", rng.choice([b";", b"", b",,", b"\t"]), rng.randint(1, 9)),
        lambda: data.split(b"\n", 1)[-1],
        lambda: b"",
    )
    return rng.choice(ways)()


def mutant(seed: int, index: int) -> tuple[str, bytes, str]:
    """(file name, bytes, goal) of one spoilt file; the goal mostly fits its shape."""
    rng = random.Random(f"{seed} {index}")
    shape, kind = rng.choice(SHAPES), rng.choice(FORMATS)
    rows: list[Any] = list(_rows(rng, shape))
    if kind in ("json", "jsonl") and rng.random() < 0.5:
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(rows))
            if isinstance(rows[at], dict) and rows[at]:
                rows[at] = _spoil_row(rows[at], rng)
        limit = sys.get_int_max_str_digits()
        sys.set_int_max_str_digits(0)
        try:
            data = _written(rows, kind, rng)
        finally:
            sys.set_int_max_str_digits(limit)
    else:
        data = _written(rows, kind, rng)
        for _ in range(rng.choice([1, 1, 2, 4])):
            data = _spoil_bytes(data, rng)
    if rng.random() < 0.1:
        data, kind = gzip.compress(data, mtime=0), f"{kind}.gz"
        if rng.random() < 0.5:
            data = data[: rng.randrange(len(data))]
        elif rng.random() < 0.5:
            data = _spoil_bytes(data, rng)
    fits = {"labelled": "classify", "flags": "classify", "number": "regress", "document": "write"}.get(shape, "answer")
    goal = fits if rng.random() < 0.9 else rng.choice(["classify", "regress", "answer", "chat", "write", "extract"])
    return f"mutant.{kind}", data, goal


# --- the verdict ---------------------------------------------------------------------------------------------


def verdict(folder: Path, name: str, data: bytes, goal: str, on_problem: str) -> tuple[str, str]:
    """("loads", "refused", or a failure: "no place", "unprintable", "traceback"; what was said) of one file."""
    (folder / name).write_bytes(data)
    settings = {"files": [name], "on_problem": on_problem}
    task = resolve({"goal": {"task": goal}, "data": settings}, str(folder / "task.yaml"))
    try:
        prepared = prepare(task, folder / "out")
    except BadRows as problem:
        if not str(problem).replace("\n", "").isprintable():
            return "unprintable", repr(str(problem))
        lost = [item.what for item in problem.problems if not PLACE.fullmatch(item.where)]
        return ("no place", lost[0]) if lost or not problem.problems else ("refused", str(problem))
    except DataError as problem:
        if not str(problem).replace("\n", "").isprintable():
            return "unprintable", repr(str(problem))
        return ("refused" if PLACE.fullmatch(problem.where) else "no place"), str(problem)
    except Exception:
        return "traceback", traceback.format_exc()
    lost = [item.what for item in prepared.problems if item.severity == "error" and not PLACE.fullmatch(item.where)]
    dropped = (folder / "out/dropped.jsonl").read_bytes().count(b"\n")
    counts = prepared.card["rows"]
    if lost or dropped != sum(counts["dropped"].values()):
        return "no place", lost[0] if lost else "rows were lost without a line in dropped.jsonl"
    return "loads", ""


def run(count: int, seed: int = 0, first: int = 0) -> tuple[Counter[str], list[str]]:
    """Counts by verdict, and what was said about each failure."""
    counts: Counter[str] = Counter()
    failures = []
    for index in range(first, first + count):
        name, data, goal = mutant(seed, index)
        for on_problem in ("stop", "drop"):
            with tempfile.TemporaryDirectory() as folder:
                found, said = verdict(Path(folder), name, data, goal, on_problem)
                if on_problem == "stop":
                    try:
                        look(Path(folder) / name)
                    except DataError as problem:
                        if not PLACE.fullmatch(problem.where):
                            found, said = "no place", str(problem)
                    except Exception:
                        found, said = "traceback", traceback.format_exc()
            counts[f"{on_problem}: {found}"] += 1
            if found not in ("loads", "refused"):
                failures.append(f"mutant {index} of seed {seed} ({name}, {goal}, {on_problem}): {found}\n{said}")
    return counts, failures


if __name__ == "__main__":
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("count", type=int, nargs="?", default=2000)
    asked.add_argument("seed", type=int, nargs="?", default=0)
    asked.add_argument("first", type=int, nargs="?", default=0)
    given = asked.parse_args()
    told, wrong = run(given.count, given.seed, given.first)
    for line in wrong[:10]:
        print(line)
    for name, count in sorted(told.items()):
        print(f"{name:20s} {count}")
    print(f"{given.count} mutants, each with stop and with drop: {len(wrong)} failures")
    sys.exit(bool(wrong))
