"""What artifacts answer to rows, each asked once: the answers lie beside the artifact, with what made them.

In: rows, and the folders of artifacts.  Out: Predictions, made now or found; nothing here reads a label.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish import artifact as artifacts
from burnish import kinds, store
from burnish.artifact import Artifact
from burnish.climb.ladder import Ladder
from burnish.evaluate import cost as costs
from burnish.evaluate import predict as predicting
from burnish.generate.engine import Sampling
from burnish.generate.pieces import continued
from burnish.models.model import Model
from burnish.records import Event, Example, Prediction, Say


@dataclass(frozen=True)
class Asker:
    """Rows that artifacts answer, each once: predictions lie beside the artifact, with what made them."""

    ladder: Ladder
    rows: Sequence[Example]
    suite: str
    say: Say
    model: Callable[[], Model] | None

    def path(self, artifact: str) -> Path:
        return Path(artifact).parent / "predictions" / f"{self.suite}.jsonl"

    def made_by(self, artifact: str) -> dict[str, Any]:
        """What decides an artifact's answers besides the rows."""
        settings = self.ladder.task.evaluate
        return {
            "artifact": hashlib.sha256((Path(artifact) / "artifact.json").read_bytes()).hexdigest(),
            "max_new_tokens": settings.max_new_tokens,
            "samples_wanted": settings.samples,
        }

    def answered(self, artifact: str) -> bool:
        """Whether this artifact, unchanged, has answered just these rows."""
        path = self.path(artifact)
        made_by = self.made_by(artifact)
        kept = kept_with(path)
        same = {name: kept.get(name) for name in made_by} == made_by
        return same and [item.id for item in predicting.stored(path)] == [row.id for row in self.rows]

    def ask(self, name: str, where: str) -> list[Prediction]:
        """The artifact's answers, made now if they are not there."""
        path = self.path(where)
        if self.answered(where):
            return predicting.stored(path)
        total = len(self.rows)

        def tell(count: int) -> None:
            text = f"{name}: {count} of {total} {self.suite} rows"
            self.say(name, Event("phase", 0, 0.0, {"text": text, "done": count, "total": total}))

        tell(0)
        artifact = artifacts.load(where)
        base = self.model() if self.model and not artifact.adapter else artifact.model()
        with costs.peak() as peak:
            done = list(predicting.predict(artifact, self.rows, self.ladder.task.evaluate, base, tell))
        predicting.keep(path, done)
        samples = _samples(artifact, self.rows, self.ladder, base) if self.suite != "validation" else []
        store.write_json(
            path.with_suffix(".json"),
            {**self.made_by(where), "memory": peak.bytes, "samples": samples, "prompt": self._prompt(artifact, base)},
        )
        return done

    def _prompt(self, artifact: Artifact, base: Model) -> str:
        """The first row as a prompting rung asks it, word for word; '' where nothing is asked in words."""
        contract = artifact.contract
        if not artifact.prompting or contract.target == "document":
            return ""
        module = kinds.load("prompting", artifact.prompting)
        if not hasattr(module, "shown") and artifact.rung != "zero-shot":
            return ""
        ready, row = predicting.answerer(artifact, self.ladder.task.evaluate, base), self.rows[0]
        if hasattr(module, "shown"):
            row = module.shown(ready, artifact.recipe, artifact.tensors, row)
        return ready.tokenizer.decode(ready.prompt_ids(row), special=True)


def kept_with(predictions: Path) -> dict[str, Any]:
    """What is known of kept predictions besides themselves; {} where there are none."""
    return store.read_json(predictions.with_suffix(".json"))


def _samples(artifact: Artifact, rows: Sequence[Example], ladder: Ladder, model: Model) -> list[dict[str, str]]:
    """A few texts of a writing rung: the beginnings of held-out documents, continued."""
    settings = ladder.task.evaluate
    if artifact.contract.target != "document" or ladder.base.kind != "decoder" or not settings.samples:
        return []
    ready = predicting.answerer(artifact, settings, model)
    return [
        {"prompt": prompt, "text": "".join(continued(ready, prompt, Sampling(0.8, 0.95, 0))), "reference": rest[:600]}
        for prompt, rest in (_beginning(row.text) for row in rows[: settings.samples])
    ]


def _beginning(text: str) -> tuple[str, str]:
    words = text.split(" ")
    return " ".join(words[:12]), " ".join(words[12:])
