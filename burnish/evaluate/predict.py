"""An artifact answers rows: whatever rung made it, the same call.

In: an Artifact and examples.  Out: Predictions in order, stored as they come, so that every score can be traced.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from burnish import kinds, store
from burnish.artifact import Artifact
from burnish.generate.answer import Answerer
from burnish.models.model import Model
from burnish.records import Example, Prediction
from burnish.task import Evaluate

CHUNK = 512  # a prompt's common beginning runs once for each


def answerer(artifact: Artifact, settings: Evaluate | None = None, model: Model | None = None) -> Answerer:
    """The artifact's model ready to answer; `model` is a base already loaded (for rungs that share it).

    Without settings answers are as long at most as those that the artifact was judged by.
    """
    if settings is None:
        settings = Evaluate()
        settings = replace(settings, max_new_tokens=artifact.facts.get("max_new_tokens", settings.max_new_tokens))
    return Answerer(
        model or artifact.model(),
        artifact.tokenizer(),
        artifact.contract,
        settings.max_new_tokens,
        settings.batch_tokens,
    )


def predict(
    artifact: Artifact,
    rows: Sequence[Example],
    settings: Evaluate,
    model: Model | None = None,
    tell: Callable[[int], None] = lambda done: None,
) -> Iterator[Prediction]:
    """One Prediction for each row, in order."""
    ready = answerer(artifact, settings, model)
    rung = kinds.load("prompting", artifact.prompting) if artifact.prompting else None
    for start in range(0, len(rows), CHUNK):
        chunk, clock = rows[start : start + CHUNK], time.monotonic()
        if rung is None:
            yield from ready.answer(chunk)
        else:
            done = list(rung.answer(ready, artifact.recipe, artifact.tensors, chunk))
            each = round((time.monotonic() - clock) / len(chunk), 6)
            yield from (replace(item, seconds=item.seconds or each) for item in done)  # rungs that skip the answerer
        tell(start + len(chunk))


def stored(path: Path) -> list[Prediction]:
    """Predictions that were written before; none where there is no file."""
    return [Prediction.from_json(row) for row in store.read_jsonl(path)] if path.exists() else []


def keep(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write predictions whole."""
    store.write_jsonl(path, (prediction.to_json() for prediction in predictions))
