"""Labels in other words, and label probabilities without the prompt's own leaning.

In: an Answerer and questions.  Out: Predictions in the user's labels, and the same calibrated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from burnish.generate.answer import Answerer
from burnish.records import Example, Prediction
from burnish.tokens import ask

BLANK = ("N/A", "[MASK]", "")  # questions without content (Zhao et al. 2021, section 5)
LEAST = 1e-6  # a share is told to six digits


def worded(answerer: Answerer, instruction: str, words: Mapping[str, str]) -> Answerer:
    """The same Answerer with this instruction, choosing among `words` (label -> word; a label left out is its own)."""
    contract = answerer.contract
    labels = tuple(words.get(name, name) for name in contract.labels)
    return replace(answerer, contract=replace(contract, instruction=instruction, labels=labels))


def instruction(answerer: Answerer, words: Mapping[str, str]) -> str:
    """The task's instruction; where Burnish made it from the labels, made from their words."""
    contract = answerer.contract
    told = ask.instruction(contract.goal, contract.labels, "", contract.multi)
    if contract.instruction != told:
        return contract.instruction
    return ask.instruction(contract.goal, [words.get(name, name) for name in contract.labels], "", contract.multi)


def in_words(row: Example, words: Mapping[str, str]) -> Example:
    """A demonstration whose answer is the label's word."""
    if not words or row.label is None or isinstance(row.label, float):
        return row
    several = tuple(words.get(name, name) for name in row.label) if isinstance(row.label, tuple) else ()
    return replace(row, label=several or words.get(str(row.label), str(row.label)))


def in_labels(told: Prediction, words: Mapping[str, str]) -> Prediction:
    """A Prediction in the user's labels again."""
    names = {word: name for name, word in words.items()}
    label = told.label
    if isinstance(label, tuple):
        label = tuple(names.get(word, word) for word in label)
    elif label is not None:
        label = names.get(label, label)
    shares = told.probabilities and {names.get(word, word): share for word, share in told.probabilities.items()}
    return replace(told, label=label, probabilities=shares)


def plainer(labels: Sequence[str]) -> dict[str, str]:
    """Labels as a text would spell them (`card_arrival` is `card arrival`); {} where that changes nothing."""
    words = {name: " ".join(name.replace("_", " ").replace("-", " ").split()).casefold() or name for name in labels}
    return words if len(set(words.values())) == len(words) and any(word != name for name, word in words.items()) else {}


def blank(row: Example, text: str) -> Example:
    """The row with this text for a question, and no answer."""
    if not row.messages:
        return replace(row, text=text, pair=None, label=None)
    *before, last = row.prompt
    return replace(row, messages=(*before, replace(last, content=text)), label=None)


def calibrated(told: Prediction, blank: Sequence[Prediction]) -> Prediction:
    """Label shares divided by the mean share that questions without content get (Zhao et al. 2021, eq. 1, W = 1/p)."""
    if not told.probabilities:
        return told
    names = list(told.probabilities)
    leaning = np.mean([[(item.probabilities or {}).get(name, 0.0) for name in names] for item in blank], axis=0)
    shares = np.array([told.probabilities[name] for name in names]) / np.maximum(leaning, LEAST)
    shares /= max(shares.sum(), 1e-300)
    likely = names[int(np.argmax(shares))]
    return replace(told, label=likely, probabilities=dict(zip(names, shares.round(6).tolist(), strict=True)))
