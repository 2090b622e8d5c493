"""Talking with an artifact in the terminal: a conversation, a text that goes on, or a class with its share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from burnish import kinds
from burnish.artifact import Artifact
from burnish.evaluate.predict import answerer
from burnish.generate import engine
from burnish.generate.engine import Sampling
from burnish.generate.pieces import continued, pieces
from burnish.records import Example, Message, Prediction, Where


class Chat:
    """`reply(text)` yields pieces; a conversation is remembered until `reset`."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.ready = answerer(artifact)
        self.turns: list[Message] = []
        self.sources: Sequence[str] = ()  # of the last answer's passages
        kind = "answers in classes" if artifact.contract.labels else "goes on from your text"
        if artifact.contract.target in ("answers", "all", "pairs") and not artifact.contract.labels:
            kind = "answers"
        self.describes = f"{artifact.base.name}, rung {artifact.rung}: {kind}"

    def reset(self) -> None:
        """Forget the conversation."""
        self.turns = []

    def reply(self, text: str) -> Iterator[str]:
        """The answer to one line, piece by piece."""
        contract = self.artifact.contract
        if contract.target == "document":
            yield from continued(self.ready, text, Sampling(0.8, 0.95, len(self.turns)))
            return
        if contract.shape == "labelled":
            yield self._read(text)
            return
        self.turns.append(Message("user", text))
        told = ""
        for piece in self._answer():
            told += piece
            yield piece
        self.turns.append(Message("assistant", told))
        if self.sources:
            yield "\n" + "\n".join(self.sources)

    def _answer(self) -> Iterator[str]:
        ready, row = self.ready, Example("conversation", Where("typed"), tuple(self.turns))
        told = self.artifact
        module = kinds.load("prompting", told.prompting) if told.prompting else None
        if module is not None and hasattr(module, "shown"):
            row = module.shown(ready, told.recipe, told.tensors, row)
        self.sources = row.meta.get("sources", ())
        prompt = ready.prompt_ids(row, min(ready.most, ready.encoding.max_length // 2))
        if ready.model.base.kind == "encoder-decoder":
            made = engine.generate(ready.model, [prompt], ready.stops, ready.most, ready.budget, pad=ready.pad)
            yield ready.tokenizer.decode(made[0].ids)
            return
        ids = engine.stream(ready.model, prompt, ready.stops, ready.most, Sampling())
        yield from pieces(ready.tokenizer, prompt, ids)

    def _read(self, text: str) -> str:
        row = Example("labelled", Where("typed"), text=text)
        artifact = self.artifact
        if artifact.prompting:
            module = kinds.load("prompting", artifact.prompting)
            told = module.answer(self.ready, artifact.recipe, artifact.tensors, [row])
        else:
            told = self.ready.answer([row])
        return spoken(next(iter(told)))


def spoken(prediction: Prediction) -> str:
    """A prediction as a person reads it: the class and how sure, a number, or a text."""
    if prediction.problem:
        return f"(no answer: {prediction.problem})"
    if prediction.number is not None:
        return f"{prediction.number:.4g}"
    if isinstance(prediction.label, tuple):
        return ", ".join(prediction.label) or "(none)"
    if prediction.label is not None:
        share = (prediction.probabilities or {}).get(prediction.label)
        return prediction.label if share is None else f"{prediction.label} ({share:.0%})"
    return prediction.text or ""
