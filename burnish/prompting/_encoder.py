"""Texts as vectors: mean hidden states of a frozen model, the base itself or another model's folder.

In: the name a person wrote (`base`, a folder, a Hub name).  Out: an Encoder, and a reference by which an artifact finds
the very same one again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from burnish.errors import ArtifactError, BurnishError
from burnish.generate.answer import Answerer
from burnish.models import base as models
from burnish.models.base import Head
from burnish.models.load import load
from burnish.prompting import _frozen
from burnish.records import Example, Where
from burnish.tokens.contract import Contract
from burnish.tokens.tokenizer import Tokenizer

LONGEST = 512  # tokens read of a text where the model sets no limit


@dataclass(frozen=True)
class Encoder:
    """A frozen model that reads texts.  reference: how an artifact names it."""

    answerer: Answerer
    reference: Mapping[str, str]

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """(N, H) mean hidden states; zeros for a text that cannot be read."""
        rows = [Example("labelled", Where("pool", i + 1), text=text) for i, text in enumerate(texts)]
        states, problems = _frozen.features(self.answerer, rows)
        told = np.zeros((len(rows), self.answerer.model.base.width), np.float32)
        told[[not problem for problem in problems]] = states.numpy()
        return told


def named(name: str, root: str, answerer: Answerer) -> Encoder | None:
    """The encoder a task names; None for ''.  Folders start at `root`; `base` is the answering model itself."""
    if not name:
        return None
    if name == "base":
        return Encoder(answerer, {"name": "base"})
    base = models.inspect(name, root)
    reference = {"name": name, "folder": str(base.folder.resolve()), "fingerprint": base.fingerprint}
    return Encoder(_loaded(str(base.folder.resolve()), base.fingerprint, answerer.budget), reference)


def again(reference: Mapping[str, str], answerer: Answerer) -> Encoder:
    """The encoder behind an artifact's reference; raises ArtifactError when it is gone or another one."""
    if reference["name"] == "base":
        return Encoder(answerer, reference)
    try:
        found = models.inspect(reference["folder"])
    except BurnishError as problem:
        raise ArtifactError(f"The encoder is gone: {problem.what}", reference["folder"], "put it back") from None
    if found.fingerprint != reference["fingerprint"]:
        raise ArtifactError(
            "The encoder is not the one this artifact was made with", reference["folder"], "put it back"
        )
    return Encoder(_loaded(reference["folder"], found.fingerprint, answerer.budget), reference)


@lru_cache(maxsize=2)
def _loaded(folder: str, fingerprint: str, budget: int) -> Answerer:
    base = models.inspect(folder)
    head: Literal["none", "language"] = "none" if base.kind == "encoder" else "language"
    contract = Contract("classify", "labelled", "label", "raw", "", base.context or LONGEST, "cut-prompt", head)
    model = load(base, Head(head))
    return Answerer(model.eval(), Tokenizer.load(Path(folder)), contract, budget=budget)
