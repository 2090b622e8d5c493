"""Ids as they come become text as it can be read: a character that is not yet whole waits for its rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from burnish.generate import engine
from burnish.generate.answer import Answerer
from burnish.generate.engine import Sampling
from burnish.tokens.tokenizer import Tokenizer


def continued(ready: Answerer, text: str, sampling: Sampling) -> Iterator[str]:
    """Pieces of text that go on from `text`."""
    tokenizer = ready.tokenizer
    encoding = ready.encoding
    prompt = [*encoding.lead, *[*tokenizer.prefix, *tokenizer.encode_text(text)][-(encoding.max_length // 2) :]]
    yield from pieces(tokenizer, prompt, engine.stream(ready.model, prompt, ready.stops, ready.most, sampling))


def pieces(tokenizer: Tokenizer, prompt: Sequence[int], ids: Iterator[int]) -> Iterator[str]:
    """Text of ids that follow `prompt`."""
    held = list(prompt[-8:])
    told = tokenizer.decode(held)
    for token in ids:
        held.append(token)
        text = tokenizer.decode(held)
        if not text.endswith("\ufffd"):
            yield text[len(told) :]
            told = text
