"""Learning from raw text: the next token (decoder), hidden tokens (encoder), or hidden spans (encoder-decoder).

Sources: causal: Radford et al. 2018.  masked: Devlin et al. 2018, 15 % of tokens, of which 80 % are hidden, 10 %
replaced, 10 % kept.  spans: Raffel et al. 2020 (sentinels) where the tokenizer has them, else Lewis et al. 2019
(one mask a span, the whole text as the answer).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from burnish.errors import TokenError
from burnish.kinds import setting
from burnish.methods._losses import of_words
from burnish.models.model import Outputs
from burnish.tokens.batch import Batch
from burnish.tokens.rows import Tokens
from burnish.tokens.tokenizer import Tokenizer

MODELS = ("decoder", "encoder", "encoder-decoder")
HEAD = "language"
TARGET = "document"


@dataclass(frozen=True)
class Settings:
    """Keys of `method:` when its kind is selfsupervised."""

    hidden: float = setting(0.15, "share of the tokens hidden from an encoder or encoder-decoder", 0.01, 0.9)
    span: float = setting(3.0, "mean length of a hidden span (encoder-decoder)", 1, 20)


def weight(batch: Batch) -> float:
    """How many targets a batch holds."""
    return float(batch.weights.sum())


def loss(outputs: Outputs, batch: Batch, settings: Settings) -> Tensor:
    """Sum of minus log-likelihoods of the next, hidden or spanned tokens, in nats."""
    return of_words(outputs)


@dataclass(frozen=True)
class Corruption:
    """Noise for one row: what the model reads (ids or source) and what it must say.  Pure in (row, generator)."""

    kind: str
    tokenizer: Tokenizer
    settings: Settings

    def __call__(self, row: Tokens, generator: np.random.Generator) -> Tokens:
        return self._masked(row, generator) if self.kind == "encoder" else self._spans(row, generator)

    def _masked(self, row: Tokens, generator: np.random.Generator) -> Tokens:
        mask = self.tokenizer.id("mask")
        if mask is None:
            raise TokenError(
                "This encoder's tokenizer has no mask token", str(self.tokenizer.folder), "use another base"
            )
        open_ = np.flatnonzero(row.weights > 0)
        chosen = generator.choice(open_, max(1, round(len(open_) * self.settings.hidden)), replace=False)
        ids, weights = row.ids.copy(), np.zeros_like(row.weights)
        weights[chosen] = 1.0
        fate = generator.random(len(chosen))
        ids[chosen[fate < 0.8]] = mask
        swapped = chosen[fate >= 0.9]
        ids[swapped] = generator.integers(0, self.tokenizer.size, len(swapped))
        return Tokens(ids, weights, row.example, row.where, targets=row.ids)

    def _spans(self, row: Tokens, generator: np.random.Generator) -> Tokens:
        sentinels, mask = _sentinels(self.tokenizer), self.tokenizer.id("mask")
        if not sentinels and mask is None:
            raise TokenError(
                "This tokenizer has neither sentinels (<extra_id_0>) nor a mask token to hide spans with",
                str(self.tokenizer.folder),
                "use method sft with prompt/completion rows, or another base",
            )
        ids = row.ids.tolist()
        most = len(sentinels) or len(ids)
        hidden = _span_mask(row.weights > 0, self.settings, generator, most)
        source: list[int] = []
        answer: list[int] = []
        number = -1
        for i, token in enumerate(ids):
            starts = hidden[i] and (i == 0 or not hidden[i - 1])
            if starts:
                number += 1
                marker = sentinels[number % len(sentinels)] if sentinels else mask
                source.append(marker)  # type: ignore[arg-type]
                if sentinels:
                    answer.append(marker)  # type: ignore[arg-type]
            if hidden[i]:
                answer.append(token)
            else:
                source.append(token)
        if not sentinels:
            answer = ids
        elif (eos := self.tokenizer.id("eos")) is not None:
            answer.append(eos)
        told = np.asarray(answer, np.int32)
        return Tokens(told, np.ones(len(told), np.float32), row.example, row.where, np.asarray(source, np.int32))


def corruption(kind: str, tokenizer: Tokenizer, settings: Settings) -> Corruption | None:
    """The noise this kind of model learns from; None for decoders, which need none."""
    return None if kind == "decoder" else Corruption(kind, tokenizer, settings)


def _sentinels(tokenizer: Tokenizer) -> list[int]:
    added = tokenizer.backend.get_added_tokens_decoder()
    found = [(token.content, i) for i, token in added.items() if re.fullmatch(r"<extra_id_\d+>", token.content)]
    return [i for _, i in sorted(found, key=lambda item: int(item[0][10:-1]))]


def _span_mask(open_: np.ndarray, settings: Settings, generator: np.random.Generator, most: int) -> np.ndarray:
    """(T,) which tokens are hidden: at most `most` spans of mean length `span` until `hidden` of the open ones are."""
    hidden = np.zeros(len(open_), bool)
    places = np.flatnonzero(open_)
    wanted = max(1, round(len(places) * settings.hidden))
    for _ in range(most):
        if hidden.sum() >= wanted:
            break
        start = int(generator.choice(places))
        length = min(1 + int(generator.poisson(settings.span - 1)), wanted - int(hidden.sum()))
        hidden[start : start + length] = open_[start : start + length]
    while (short := wanted - int(hidden.sum())) > 0:  # spans fell on one another: let them grow, no new one begins
        beside = open_ & ~hidden & (np.append(hidden[1:], False) | np.append(False, hidden[:-1]))
        if not beside.any():
            break
        hidden[np.flatnonzero(beside)[:short]] = True
    return hidden
