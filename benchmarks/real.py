"""The main job on real data and real small models: one climb for each case, its scores and comparisons as a table.

    BURNISH_SHARED=FOLDER python benchmarks/real.py [CASE ...] [--json]

FOLDER holds data/ and models/ as the cases below name them; without CASE all of them run.  What a case asserts is
written beside it; exit code 1 when one does not hold.  `spectrum` stands for five tasks on which every rung is tried.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

import burnish
from burnish.records import Event, Report

EVERY = [
    *("baseline", "zero-shot", "few-shot", "retrieval", "nearest-neighbour", "linear-probe", "prompt-tuning", "lora"),
    *("qlora", "partial", "full", "few-shot+lora"),
]


def _every(goal: dict[str, Any], data: dict[str, Any], epochs: int, base: str = "burnish-tiny") -> dict[str, Any]:
    return {"goal": goal, "data": data, "base": base, "rungs": EVERY, "train": {"epochs": epochs}}


SST2 = {
    "files": ["data/sentiment-sst2/train.txt"],
    "test_files": ["data/sentiment-sst2/dev.txt"],
    "instruction": "Is this review negative or positive?",
}
SPECTRUM = {
    "every-sst2": _every({"task": "classify", "target": 0.7}, SST2, 2),
    "every-banking77": _every(
        {"task": "classify", "target": 0.8}, {"files": ["data/intent-banking77/train.csv"], "on_problem": "drop"}, 4
    ),
    "every-trec": _every(
        {"task": "classify", "target": 0.8}, {"files": ["data/topic-trec/train.txt"], "on_problem": "drop"}, 3
    ),
    "every-bookings": {  # what guests write -> {"people": "5 adults", "date": ...}
        **_every(
            {"task": "answer", "metric": "exact-match", "target": 0.5},
            {"files": ["bookings.jsonl"], "test": 0.3, "on_problem": "drop"},
            10,
        ),
        "evaluate": {"max_new_tokens": 64},
    },
    "every-tales": _every(
        {"task": "write", "metric": "perplexity"},
        {"files": ["data/story-grimm-en/tales.jsonl"], "test": 0.25},
        3,
        "models/stories3m-bitnet",
    ),
}
CASES: dict[str, dict[str, Any]] = SPECTRUM | {
    "sst2": {
        "goal": {"task": "classify", "target": 0.75},
        "data": SST2,
        "base": "burnish-tiny",
        "few-shot": {"shots": [4], "orders": 2},
        "train": {"epochs": 2},
    },
    "sst2-bitnet": {
        "goal": {"task": "classify", "target": 0.7},
        "data": {
            "files": ["data/sentiment-sst2/train.txt"],
            "test_files": ["data/sentiment-sst2/dev.txt"],
            "limit": 4000,
            "too_long": "cut-prompt",
        },
        "base": "models/stories3m-bitnet",
        "rungs": ["zero-shot", "few-shot", "lora"],
        "few-shot": {"shots": [2], "orders": 1, "budget": 120},
        "train": {"epochs": 2},
    },
    "movie-reviews": {
        "goal": {"task": "classify", "target": 0.7},
        "data": {
            "files": ["data/sentiment-movie-reviews/data.jsonl"],
            "too_long": "cut-prompt",
            "max_length": 256,
            "on_problem": "drop",
            "test": 0.3,
        },
        "base": "burnish-tiny",
        "few-shot": {"shots": [2], "orders": 1, "budget": 90},
        "train": {"epochs": 2, "batch_size": 8},
    },
    "movie-reviews-bitnet": {
        "goal": {"task": "classify", "target": 0.7},
        "data": {
            "files": ["data/sentiment-movie-reviews/data.jsonl"],
            "too_long": "cut-prompt",
            "max_length": 256,
            "on_problem": "drop",
            "test": 0.3,
        },
        "base": "models/stories3m-bitnet",
        "rungs": ["zero-shot", "few-shot", "lora"],
        "few-shot": {"shots": [1], "orders": 1, "budget": 90},
        "train": {"epochs": 2, "batch_size": 8},
    },
    "tales": {
        "goal": {"task": "write", "metric": "perplexity"},
        "data": {"files": ["data/story-grimm-en/tales.jsonl"], "test": 0.25},
        "base": "burnish-tiny",
        "train": {"epochs": 5, "batch_size": 8},
    },
    "tales-stories260k": {
        "goal": {"task": "write", "metric": "perplexity"},
        "data": {"files": ["data/story-grimm-en/tales.jsonl"], "test": 0.25},
        "base": "models/stories260k-llama",
        "train": {"epochs": 3, "batch_size": 8},
    },
    "tales-stories3m": {
        "goal": {"task": "write", "metric": "perplexity"},
        "data": {"files": ["data/story-grimm-en/tales.jsonl"], "test": 0.25},
        "base": "models/stories3m-bitnet",
        "train": {"epochs": 3, "batch_size": 8},
    },
    "solubility": {
        "goal": {"task": "regress"},
        "data": {"files": ["data/chem-solubility/data.csv"], "test": 0.25, "on_problem": "drop"},
        "base": "models/smiles-albert",
        "train": {"epochs": 15, "batch_size": 8},
    },
    "tox21": {
        "goal": {"task": "classify", "metric": "f1-micro"},
        "data": {"files": ["data/chem-tox21/data.csv"], "test": 0.25, "on_problem": "drop"},
        "base": "models/smiles-albert",
        "train": {"epochs": 10, "batch_size": 8},
    },
    "soluble": {  # the same molecules as two classes, above and below the median
        "goal": {"task": "classify"},
        "data": {"files": ["soluble.csv"], "test": 0.3, "on_problem": "drop"},
        "base": "models/smiles-albert",
        "train": {"epochs": 15, "batch_size": 8},
    },
    "characters": {  # whose name comes next?  it stands in one of 450 stories, and nowhere else
        "goal": {"task": "choose"},
        "data": {"files": ["characters.jsonl"], "test": 0.5, "validation": 0.2},
        "base": "models/stories3m-bitnet",
        "rungs": ["baseline", "zero-shot", "few-shot", "retrieval", "lora", "retrieval+lora"],
        "retrieval": {"documents": ["stories"], "k": [1, 2], "chunk": [60, 100]},
        "train": {"epochs": 3},
    },
    "boolq": {  # yes or no?  an encyclopedia's passage says, to whom can read it
        "goal": {"task": "classify", "target": 0.7},
        "data": {"files": ["boolq.jsonl"], "test": 0.45, "validation": 0.15, "on_problem": "drop"},
        "base": "burnish-tiny",
        "rungs": ["baseline", "zero-shot", "few-shot", "retrieval", "lora", "retrieval+lora"],
        "retrieval": {"documents": ["encyclopedia"], "k": [1, 2], "chunk": [60, 150]},
        "method": {"kind": "sft"},
        "train": {"epochs": 3},
    },
    "pronunciation": {
        "goal": {"task": "answer", "metric": "exact-match"},
        "data": {
            "files": ["data/g2p-pronunciation/gb-train.jsonl"],
            "test_files": ["data/g2p-pronunciation/gb-dev.jsonl"],
            "columns": {"prompt": "word", "completion": "phonemes"},
            "on_problem": "drop",
        },
        "base": "models/g2p-bart-en-us",
        "rungs": ["zero-shot", "lora", "full"],
        "train": {"epochs": 4},
        "evaluate": {"max_new_tokens": 40},
    },
}


def better(report: Report, a: str, b: str, p: float = 0.01) -> bool:
    """Whether rung b beats rung a with Holm-corrected p below `p`."""
    for item in report.comparisons:
        if {item.a, item.b} == {a, b}:
            higher = next(rung for rung in report.rungs if rung.rung == a).scores[0].higher
            gain = item.difference if item.b == b else -item.difference
            return item.p_holm < p and (gain > 0) == higher
    return False


def soluble(shared: Path, folder: Path) -> None:
    """Write soluble.csv: each molecule and whether it dissolves better than the median one."""
    lines = (shared / "data/chem-solubility/data.csv").read_text(encoding="utf-8").splitlines()[1:]
    rows = [(smiles, float(number)) for smiles, _, number in (line.rpartition(",") for line in lines)]
    median = sorted(number for _, number in rows)[len(rows) // 2]
    told = [f"{smiles},{'soluble' if number > median else 'insoluble'}" for smiles, number in rows]
    (folder / "soluble.csv").write_text("\n".join(["smiles,label", *told]) + "\n", encoding="utf-8")


def bookings(shared: Path, folder: Path) -> None:
    """Write bookings.jsonl: a message to a restaurant, and what it says as one JSON object."""
    lines = []
    for row in json.loads((shared / "data/extract-restaurant8k/train_4.json").read_text(encoding="utf-8")):
        text, told = row["userInput"]["text"], {}
        for label in row.get("labels", []):
            span = label["valueSpan"]
            told[label["slot"]] = text[span.get("startIndex", 0) : span["endIndex"]]
        lines.append(json.dumps({"prompt": text, "completion": json.dumps(told)}))
    (folder / "bookings.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def characters(shared: Path, folder: Path) -> None:
    """Write stories/ and characters.jsonl: a story's retelling up to a name, and four names to go on with.

    The stories are the documents, in every kind of file; the wrong names are those of other stories.
    """
    rows = []
    for name in ("summarise-stories", "paraphrase-stories"):
        lines = (shared / f"data/{name}/data.jsonl").read_text(encoding="utf-8").splitlines()
        told = [json.loads(line) for line in lines]
        rows += [(row["prompt"].partition("\n")[2].strip(), row["response"]) for row in told]
    common = set(re.findall(r"\b[a-z]+\b", " ".join(" ".join(row) for row in rows)))
    found = [re.findall(r"\b[A-Z][a-z]{2,}\b", story) for story, _ in rows]
    names = [{word for word in own if own.count(word) > 1 and word.lower() not in common} for own in found]
    every = [name for own in names for name in sorted(own)]  # a wrong name is as frequent as a right one
    draw, asked = random.Random(0), []
    for number, ((story, retold), own) in enumerate(zip(rows, names, strict=True)):
        source = _document(folder / "stories", number, story)
        for match in re.finditer(r"\b[A-Z][a-z]+\b", retold):
            before, word = retold[: match.start()].rstrip(), match.group()
            if word in own and len(before) > 40 and not re.search(r"[.!?]\W*$", before) and word not in before:
                others = dict.fromkeys(name for name in draw.sample(every, 100) if name not in story + retold)
                choices = draw.sample([word, *list(others)[:3]], 4)
                asked.append({"context": before, "choices": choices, "answer": word, "source": source})
    told = [json.dumps(row) for row in asked]
    (folder / "characters.jsonl").write_text("\n".join(told) + "\n", encoding="utf-8")


def boolq(shared: Path, folder: Path) -> None:
    """Write encyclopedia/ and boolq.jsonl: questions, and the passages they were asked of."""
    lines = (shared / "data/bench-boolq/data.jsonl").read_text(encoding="utf-8").splitlines()
    rows, names = [json.loads(line) for line in lines], dict[str, str]()
    for row in rows:
        if row["passage"] not in names:
            names[row["passage"]] = _document(folder / "encyclopedia", len(names), row["passage"])
    told = [
        {"text": row["question"], "label": "yes" if row["answer"] else "no", "source": names[row["passage"]]}
        for row in rows
    ]
    (folder / "boolq.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told), encoding="utf-8")


def _document(folder: Path, number: int, text: str) -> str:
    """Write a text as txt, md, html or docx in turn, unless it is there (a docx holds the time); its name."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{number:03}.{('txt', 'md', 'html', 'docx')[number % 4]}"
    if path.exists():
        return path.name
    if path.suffix == ".docx":
        import docx

        made = docx.Document()
        for line in text.splitlines():
            made.add_paragraph(line)
        made.save(str(path))
    elif path.suffix == ".html":
        lines = "".join(f"<p>{html.escape(line)}</p>\n" for line in text.splitlines())
        path.write_text(f"<html><body>{lines}</body></html>\n", encoding="utf-8")
    else:
        path.write_text(text + "\n", encoding="utf-8")
    return path.name


EXPECTED: dict[str, Callable[[Report], bool]] = {
    "every-sst2": lambda report: better(report, "few-shot", "lora"),
    "every-banking77": lambda report: better(report, "few-shot", "lora"),
    "every-trec": lambda report: better(report, "few-shot", "lora"),
    "every-bookings": lambda report: better(report, "few-shot", "full"),
    "every-tales": lambda report: better(report, "zero-shot", "full"),
    "sst2": lambda report: better(report, "few-shot", "lora"),
    "sst2-bitnet": lambda report: better(report, "few-shot", "lora"),
    "tales": lambda report: better(report, "zero-shot", "lora") and better(report, "zero-shot", "full"),
    "tales-stories3m": lambda report: better(report, "zero-shot", "lora"),
    "solubility": lambda report: better(report, "baseline", "full"),
    "soluble": lambda report: better(report, "baseline", "full"),
    "characters": lambda report: better(report, "zero-shot", "retrieval"),
    "pronunciation": lambda report: better(report, "zero-shot", "full"),
}


def run(name: str, shared: Path, folder: Path) -> tuple[Report, float]:
    told = json.loads(json.dumps(CASES[name]))
    for key in ("files", "test_files"):
        if key in told["data"]:
            told["data"][key] = [str((shared if "/" in item else folder) / item) for item in told["data"][key]]
    for made in (soluble, bookings, characters, boolq):
        if f"{made.__name__}." in told["data"]["files"][0]:
            made(shared, folder)
    if "/" in told["base"]:
        told["base"] = str(shared / told["base"])
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, **told}))
    clock = time.time()
    return burnish.climb(str(path), say=_say), time.time() - clock


def _say(phase: str, event: Event) -> None:
    if event.kind in ("started", "finished"):
        print(f"  {phase} {event.kind}", file=sys.stderr, flush=True)


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("cases", nargs="*", metavar="CASE", help=f"spectrum, {', '.join(CASES)}")
    words.add_argument("--json", action="store_true")
    asked = words.parse_args()
    if unknown := set(asked.cases) - {"spectrum", *CASES}:
        words.error(f"no case {', '.join(unknown)}")
    shared = os.environ.get("BURNISH_SHARED")
    if not shared:
        words.error("set BURNISH_SHARED to the folder that holds data/ and models/")
    names = [name for item in asked.cases or CASES for name in (SPECTRUM if item == "spectrum" else [item])]
    failed, told = [], {}
    home = Path(os.environ.get("BURNISH_HOME", tempfile.mkdtemp()))
    os.environ["BURNISH_HOME"] = str(home)
    home.mkdir(parents=True, exist_ok=True)
    for name in names:
        report, seconds = run(name, Path(shared), home)
        print(f"\n{name}: {report.goal['metric']}, n = {report.rungs[-1].scores[0].n}, {seconds:.0f} s")
        for rung in report.rungs:
            if rung.skipped:
                print(f"  {rung.rung:18} skipped: {rung.skipped}")
                continue
            shown = "  ".join(f"{s.metric} {s.value:.4g} ({s.low:.4g} to {s.high:.4g})" for s in rung.scores[:3])
            print(f"  {rung.rung:18} {shown}  {rung.seconds:.0f} s")
        for item in report.comparisons:
            print(f"    {item.b} - {item.a}: {item.difference:+.4g}, p {item.p_holm:.2g} ({item.test})")
        print(f"  {report.verdict.sentence}", flush=True)
        for rung in report.rungs:
            for sample in rung.samples[:1]:
                print(f"    {rung.rung}: {sample['prompt']} | {sample['text'][:300]!r}")
        if not EXPECTED.get(name, lambda report: True)(report):
            failed.append(name)
        told[name] = {rung.rung: rung.scores[0].value for rung in report.rungs if rung.scores}
    if asked.json:
        print(json.dumps({"scores": told, "failed": failed}))
    elif failed:
        print(f"\nnot as expected: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
