"""Every row of a file answered, in order, into a file of the same kind; killed at any moment, it goes on.

Finished rows are kept beside the output in `.NAME.part` (JSON lines, synced chunk by chunk); the output itself
appears whole, at the end.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from burnish import kinds, store
from burnish.artifact import Artifact
from burnish.data.questions import Question, questions
from burnish.errors import DataError, Interrupted
from burnish.evaluate.predict import answerer
from burnish.records import LETTERS, Event, Prediction, Say

CHUNK = 128  # rows lost by a kill at most; what prompts have in common runs once for each
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def run(artifact: Artifact, data: str, out: Path, say: Say) -> dict[str, Any]:
    """Answer `data` into `out` (.csv, .tsv or .jsonl); returns rows, done_before, problems, seconds."""
    if out.suffix not in (".csv", ".tsv", ".jsonl"):
        raise DataError(f'The output "{out.name}" has no known ending', str(out), "end it in .csv, .tsv or .jsonl")
    if Path(data).exists() and out.exists() and Path(data).samefile(out):
        raise DataError("Input and output are the same file", str(out), "give --out another name")
    clock = time.monotonic()
    contract = artifact.contract
    rows = list(questions(data, contract.shape, dict(artifact.facts.get("columns", {})), contract.labels))
    part = out.with_name(f".{out.name}.part")
    header = {"rows": len(rows), "work": _work(artifact, rows)}
    done = _done(part, header)
    before, problems = len(done), 0
    if not done:
        store.write_jsonl(part, [header])
    rung = kinds.load("prompting", artifact.prompting) if artifact.prompting else None
    ready = answerer(artifact) if before < len(rows) else None
    for start in range(before, len(rows), CHUNK):
        if store.stop_requested():
            raise Interrupted(f"Stopped after {start} of {len(rows)} rows", str(part), "give the same command again")
        chunk = rows[start : start + CHUNK]
        asked = [row.example for row in chunk if row.example is not None]
        assert ready is not None
        told = ready.answer(asked) if rung is None else rung.answer(ready, artifact.recipe, artifact.tensors, asked)
        answers = iter(list(told))
        made = [next(answers) if row.example is not None else _refused(row) for row in chunk]
        store.append_jsonl(part, [item.to_json() for item in made])
        done += made
        text = f"{len(done)} of {len(rows)} rows"
        say(
            "predict",
            Event("phase", 0, time.monotonic() - clock, {"text": text, "done": len(done), "total": len(rows)}),
        )
    problems = sum(bool(item.problem) for item in done)
    _write(out, rows, done)
    part.unlink(missing_ok=True)
    seconds = round(time.monotonic() - clock, 2)
    return {"rows": len(rows), "done_before": before, "out": str(out), "seconds": seconds, "problems": problems}


def _refused(row: Question) -> Prediction:
    assert row.problem is not None
    return Prediction("", row.problem.where, problem=f"{row.problem.what}; {row.problem.do}")


def _work(artifact: Artifact, rows: list[Question]) -> str:
    """A hash of what is being done, so that another artifact's or file's leftovers are not taken for ours."""
    digest = hashlib.sha256(str(sorted(artifact.facts.items(), key=str)).encode())
    digest.update(artifact.base.fingerprint.encode() + artifact.rung.encode())
    if artifact.folder is not None:
        digest.update((artifact.folder / "artifact.json").read_bytes())
    for row in rows:
        digest.update(json.dumps(dict(row.values), sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _done(part: Path, header: Mapping[str, Any]) -> list[Prediction]:
    if not part.exists():
        return []
    told = list(store.read_jsonl(part))
    refused = {"id": ""}  # what a row without an Example has, and JSON leaves out
    return [Prediction.from_json({**refused, **row}) for row in told[1:]] if told and told[0] == header else []


def _answer(prediction: Prediction) -> Any:
    for value in (prediction.label, prediction.number, prediction.text):
        if value is not None:
            return list(value) if isinstance(value, tuple) else value
    return prediction.nll if prediction.nll is not None else None


def _columns(prediction: Prediction) -> dict[str, Any]:
    told: dict[str, Any] = {"prediction": _answer(prediction)}
    if prediction.probabilities and isinstance(prediction.label, str):
        told["probability"] = round(prediction.probabilities[prediction.label], 4)
    if prediction.nll is not None and prediction.text is None:
        told = {"nll": round(prediction.nll, 4), "tokens": prediction.tokens}
    if prediction.sources is not None:
        told["sources"] = "; ".join(prediction.sources)
    told["problem"] = prediction.problem
    return told


def _write(out: Path, rows: list[Question], done: list[Prediction]) -> None:
    if out.suffix == ".jsonl":
        store.write_jsonl(out, _merged(rows, done))
        return
    names = list(dict.fromkeys(name for row in _merged(rows, done) for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, delimiter="\t" if out.suffix == ".tsv" else ",", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(name, value) for name, value in row.items()} for row in _merged(rows, done))
    store.write_text(out, text.getvalue())


def _merged(rows: list[Question], done: list[Prediction]) -> Iterator[dict[str, Any]]:
    for row, prediction in zip(rows, done, strict=True):
        told = _columns(prediction)
        if row.example is not None and row.example.shape == "choices":
            named = dict(zip(LETTERS, row.example.choices, strict=False))
            told = {**told, "choice": named.get(told["prediction"], ""), "loglikelihoods": prediction.loglikelihoods}
        yield {**row.values, **told}


def _cell(name: str, value: Any) -> Any:
    """A model's text that a spreadsheet would run as a formula is made plain text (CWE-1236); the user's own stays."""
    if isinstance(value, (list, tuple, dict)):
        return json.dumps(value, ensure_ascii=False)
    if name == "prediction" and isinstance(value, str) and value.startswith(FORMULA):
        return f"'{value}"
    return value
