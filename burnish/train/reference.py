"""How likely the model found every answer before it was trained: worked out once, kept, and carried by the rows.

In: a Run whose method learns from pairs, before its first step; the policy is then the reference, so no second model is
ever held.  Out: the same Run, whose rows bring the reference's log-likelihoods.  They are kept under
BURNISH_HOME/cache/<hash of what decides them>/, so that a run that goes on, or another one on the same rows, has the
same bits without a pass.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from burnish import store
from burnish.errors import Interrupted
from burnish.methods import _losses
from burnish.records import Event
from burnish.tokens import cache
from burnish.tokens.rows import Rows, Tokens
from burnish.train import memory
from burnish.train.run import Run

FILE = "reference.npy"


def refer(run: Run) -> Generator[Event, None, float]:
    """Give the rows of a run their reference, with the model as it will compute; returns the seconds of new passes.

    Raises Interrupted when a stop is asked for meanwhile: nothing is trained yet.
    """
    clock, fresh = time.monotonic(), False
    for name in ("batches", "validation"):
        batches = getattr(run, name)
        if batches is None:
            continue
        folder = store.home() / "cache" / _key(run, batches.rows)
        kept = run.ranks.tell(_kept(folder, len(batches.rows)) if run.ranks.main and run.start else None)
        if kept is None:
            fresh = True
            values = yield from memory.within(partial(_likelihoods, run, name), run.smaller)
            if run.ranks.main and run.start:
                _keep(folder, values)
        else:
            values = np.asarray(kept, np.float32)
        batches = getattr(run, name)  # cut smaller where memory ran out
        setattr(run, name, replace(batches, rows=Referred(batches.rows, values)))
    return (time.monotonic() - clock) * fresh


def _key(run: Run, rows: Sequence[Tokens]) -> str:
    """A name that changes with the model before its first step, its arithmetic, the rows, or the code."""
    digest = hashlib.sha256(json.dumps([run.start, str(run.precision), str(run.model.device)]).encode())
    for path in (Path(__file__), Path(_losses.__file__)):
        digest.update(path.read_bytes())
    for row in rows:
        for one in row.documents():
            for part in (one.ids, one.weights, np.zeros(0) if one.source is None else one.source):
                digest.update(len(part).to_bytes(4, "big") + np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:32]


def _kept(folder: Path, rows: int) -> list[list[float]] | None:
    """The values in an entry of the cache, every byte verified; None where there are none."""
    if cache.fault(folder):
        return None
    os.utime(folder / cache.MANIFEST)
    values = np.load(folder / FILE, allow_pickle=False)
    return values.tolist() if values.shape == (rows, 2) else None


def _keep(folder: Path, values: np.ndarray) -> None:
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=False)
    store.write_bytes(folder / FILE, stream.getvalue())
    cache.seal(folder, [FILE])


def _likelihoods(run: Run, name: str) -> np.ndarray:
    """(rows, 2) of the chosen and rejected answer under the model as it is, in nats; every rank does its share."""
    model, batches = run.model, getattr(run, name)
    places = {row.example: i for i, row in enumerate(batches.rows)}
    assert len(places) == len(batches.rows), "rows are told apart by their ids"
    values = np.zeros((len(batches.rows), 2), np.float32)
    was = model.training

    def passes() -> None:
        for batch, counts in run.watched(batches.once(), batches):
            if run.ranks.size == 1 and store.stop_requested():
                raise Interrupted("Stopped before the first step", name, "give the same command again")
            found = _losses.answers(model(batch.to(model.device)), batch)[0]
            if counts:
                values[[places[example] for example in batch.examples]] = found.cpu().numpy()

    try:
        model.eval()
        with torch.no_grad():
            run.ranks.together(passes)
    finally:
        model.train(was)
    return np.asarray(run.ranks.sum(*values.flatten().tolist()), np.float32).reshape(values.shape)


class Referred(Rows):
    """Rows that bring their reference."""

    def __init__(self, rows: Sequence[Tokens], values: np.ndarray) -> None:
        self._rows, self._values = rows, values

    def __len__(self) -> int:
        return len(self._rows)

    def make(self, place: int) -> Tokens:
        return replace(self._rows[place], reference=self._values[place])
