"""The ledger of test-set openings: every time rows that judge are answered, whatever run it was for.

In: test rows and the artifacts that are about to answer them.  Out: lines of BURNISH_HOME/readings.jsonl.  A judging
that is killed and begun again with the same artifacts is one opening; `opening-SUITE.json` in the run tells which.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from burnish import store
from burnish.records import Example


def key(rows: Sequence[Example]) -> str:
    """What a test set is known by: its rows, in any order."""
    return hashlib.sha256("\n".join(sorted(row.id for row in rows)).encode()).hexdigest()[:16]


def open(folder: Path, rows: Sequence[Example], suite: str, verb: str, made_by: Sequence[Mapping[str, Any]]) -> None:
    """Write an opening to the ledger, unless this run is still inside one for the same artifacts and rows."""
    work = hashlib.sha256(json.dumps([key(rows), *made_by], sort_keys=True).encode()).hexdigest()[:16]
    state = _state(folder, suite)
    if state.get("done", True) or state.get("work") != work:
        state = {"id": uuid.uuid4().hex[:16], "work": work, "done": False}
        store.write_json(folder / f"opening-{suite}.json", state)
    if any(row.get("id") == state["id"] for row in _ledger()):
        return
    told = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "verb": verb,
        "run": folder.name,
        "suite": suite,
        "rows": len(rows),
        "test_set": key(rows),
        "id": state["id"],
    }
    store.append_jsonl(store.home() / "readings.jsonl", [told])


def done(folder: Path, suite: str) -> None:
    """All artifacts have answered: what is asked from now on is another opening."""
    store.write_json(folder / f"opening-{suite}.json", {**_state(folder, suite), "done": True})


def readings(rows: Sequence[Example]) -> list[dict[str, Any]]:
    """Every opening of this very test set in this home, by whatever run."""
    return [row for row in _ledger() if row["test_set"] == key(rows)]


def _ledger() -> list[dict[str, Any]]:
    path = store.home() / "readings.jsonl"
    return list(store.read_jsonl(path)) if path.exists() else []


def _state(folder: Path, suite: str) -> dict[str, Any]:
    return store.read_json(folder / f"opening-{suite}.json")
