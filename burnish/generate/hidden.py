"""A text as a model that does not write from left to right can be asked about it: part by part, hidden from it.

In: Tokens of a document.  Out: copies in each of which another seventh is hidden; together every scored token is
hidden exactly once, so that the sum over the copies is one likelihood of the whole text that nothing random decides.
Source: Salazar et al. 2020 (pseudo-likelihood), with as many tokens hidden at once as in training.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from burnish.errors import TokenError
from burnish.methods.selfsupervised import _sentinels
from burnish.tokens.rows import Tokens
from burnish.tokens.tokenizer import Tokenizer

PARTS = 7
SPAN = 3  # tokens hidden in a row from an encoder-decoder, the mean length in training


def hidden(row: Tokens, kind: str, tokenizer: Tokenizer) -> list[Tokens]:
    """Copies of a document's row, for an encoder or encoder-decoder: PARTS, or more where sentinels are few."""
    mask = tokenizer.id("mask")
    sentinels = _sentinels(tokenizer) if kind == "encoder-decoder" else []
    if mask is None and not sentinels:
        raise TokenError("This tokenizer has no token to hide text with", str(tokenizer.folder), "use another base")
    places = np.arange(len(row.ids)) // (1 if kind == "encoder" else SPAN)
    parts = max(PARTS, math.ceil((places[-1] + 1) / len(sentinels))) if sentinels else PARTS
    copies = []
    for part in range(parts):
        chosen = (places % parts == part) & (row.weights > 0)
        if not chosen.any():
            continue
        if kind == "encoder":
            ids = row.ids.copy()
            ids[chosen] = mask
            copies.append(replace(row, ids=ids, weights=chosen.astype(np.float32), targets=row.ids))
        else:
            copies.append(_spans(row, chosen, sentinels, mask))
    return copies


def _spans(row: Tokens, chosen: np.ndarray, sentinels: list[int], mask: int | None) -> Tokens:
    """Each hidden span is one sentinel, and the answer lists them; or (no sentinels) a mask, and the whole text."""
    source: list[int] = []
    answer: list[int] = []
    weights: list[float] = []
    spans = 0
    for i, token in enumerate(row.ids.tolist()):
        if chosen[i] and not (i and chosen[i - 1]):
            marker = sentinels[spans] if sentinels else mask
            assert marker is not None
            source.append(marker)
            if sentinels:
                answer.append(marker)
                weights.append(0.0)
            spans += 1
        if not chosen[i]:
            source.append(token)
        if chosen[i] or not sentinels:
            answer.append(token)
            weights.append(float(chosen[i]))
    told, counted = np.asarray(answer, np.int32), np.asarray(weights, np.float32)
    return replace(row, ids=told, weights=counted, source=np.asarray(source, np.int32))
