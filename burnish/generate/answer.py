"""Examples in, Predictions out, for any model and contract: the one place where an answer is read off a model.

A head gives its class or number; a language model chooses among the labels or a question's own choices by likelihood,
writes a text, or says how likely the given text is.  Every rung is asked through here, so every rung is judged alike.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from burnish.errors import TokenError
from burnish.generate import engine
from burnish.generate.engine import Sampling
from burnish.generate.hidden import hidden
from burnish.models.model import Model
from burnish.records import LETTERS, Example, Message, Prediction
from burnish.tokens import ask
from burnish.tokens.contract import Contract
from burnish.tokens.encode import Encoding, RowProblem
from burnish.tokens.rows import Tokens, led
from burnish.tokens.tokenizer import Tokenizer

NUMBER = re.compile(
    r"[-+−]?(?:\d{1,3}(?:,\d{3}){2,}(?:\.\d+)?|\d{1,3},\d{3}\.\d+|\d+(?:[.,]\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
)
CHUNK = 512


@dataclass(frozen=True)
class Answerer:
    """A loaded model ready to answer.  most: longest generated answer in tokens.  budget: tokens run at once."""

    model: Model
    tokenizer: Tokenizer
    contract: Contract
    most: int = 128
    budget: int = 16384
    sampling: Sampling = Sampling()

    @property
    def encoding(self) -> Encoding:
        """The token contract for answering: a document's end is not scored, and prompts may be shortened."""
        told = self.contract.encoding(self.tokenizer, self.model.base.kind, end=False)
        return replace(told, too_long="split" if told.target == "document" else "cut-prompt")

    @property
    def pad(self) -> int:
        return self.tokenizer.id("pad") or 0

    @property
    def stops(self) -> tuple[int, ...]:
        """Ids that end an answer: the model's own, and the template's end of turn."""
        probe = (Message("user", "a"), Message("assistant", "b"))
        tokens = replace(self.encoding, target="answers")._whole(probe).ids
        last = int(tokens[-1]) if len(tokens) and self.contract.template_text else -1
        own = set(self.tokenizer.eos_ids)
        return tuple(own | ({last} if last in self.tokenizer.special_ids else set()))

    @property
    def chooses(self) -> bool:
        """Whether answers are chosen among the labels, not written."""
        return self.contract.goal == "classify" and bool(self.contract.labels) and not self.contract.multi

    @property
    def picks(self) -> bool:
        """Whether a row brings what is chosen among."""
        return self.contract.goal in ("choose", "prefer")

    @cached_property
    def room(self) -> int:
        """How many tokens of the context a prompt leaves for its answer."""
        if self.model.base.kind != "decoder":
            return 0
        return max(map(len, self.label_ids())) if self.chooses else min(self.most, self.encoding.max_length // 2)

    def room_for(self, row: Example) -> int:
        """`room`, for this row: its own choices where it has some."""
        if not self.picks or not row.choices or self.model.base.kind != "decoder":
            return self.room
        return max(map(len, self._said((Message("user", "a"),), row.choices)[1]))

    def answer(self, rows: Sequence[Example]) -> Iterator[Prediction]:
        """One Prediction for each row, in order; rows with messages may carry demonstrations already."""
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            clock = time.monotonic()
            told = self._chunk(chunk)
            each = (time.monotonic() - clock) / len(chunk)
            if told and any(prediction.text is not None for prediction in told):
                told = self._with_likelihood(chunk, told)  # for the scores; a request does not pay for it
            yield from (replace(prediction, seconds=round(each, 6)) for prediction in told)

    def _chunk(self, rows: Sequence[Example]) -> list[Prediction]:
        if self.contract.target == "label":
            return self._head(rows)
        if self.picks and (self.contract.goal == "choose" or all(row.choices for row in rows)):
            return self._pick(rows)
        if self.contract.target == "document":
            return self.documents(rows)
        return self._choose(rows) if self.chooses else self._write(rows)

    def _head(self, rows: Sequence[Example]) -> list[Prediction]:
        encoding = replace(self.encoding, labels={}, multi=False)
        told: list[Prediction] = []
        readable: list[tuple[int, Tokens]] = []
        for place, row in enumerate(rows):
            told.append(Prediction(row.id, str(row.where)))
            try:
                readable.append((place, encoding.encode(replace(row, label=None))[0][0]))
                read = len(readable[-1][1].ids)
                told[place] = replace(told[place], prompt_tokens=read, completion_tokens=0)
            except TokenError as problem:
                told[place] = replace(told[place], problem=problem.what)
        if not readable:
            return told
        logits = engine.head(self.model, [tokens for _, tokens in readable], self.budget, self.pad).astype(np.float64)
        for (place, _), row_logits in zip(readable, logits, strict=True):
            told[place] = read_head(self.contract, told[place], row_logits)
        return told

    def documents(self, rows: Sequence[Example], prefix: Sequence[int] = ()) -> list[Prediction]:
        """How likely each text is, given `prefix` ids that are read before every window and not scored.

        An encoder or encoder-decoder says it of parts of the text that are hidden from it, every part once.
        """
        encoding = replace(self.encoding, max_length=self.encoding.max_length - len(prefix), target="document")
        before = np.asarray(prefix, np.int32)
        told = [Prediction(row.id, str(row.where)) for row in rows]
        read: dict[int, int] = {}
        places: list[int] = []
        tokens: list[Tokens] = []
        for place, row in enumerate(rows):
            try:
                pieces = encoding.encode(row)[0]
            except TokenError as problem:
                told[place] = replace(told[place], problem=problem.what)
                continue
            read[place] = sum(len(before) + len(piece.ids) for piece in pieces)
            for piece in pieces:
                ids = np.concatenate([before, piece.ids])
                weights = np.concatenate([np.zeros(len(before), np.float32), piece.weights])
                whole = replace(piece, ids=ids, weights=weights)
                shown = [whole] if self.model.base.kind == "decoder" else hidden(whole, encoding.kind, self.tokenizer)
                tokens += shown
                places += [place] * len(shown)
        for place, (nll, count) in self._sums(places, tokens).items():
            size = len((rows[place].text or rows[place].surface).encode())
            told[place] = replace(told[place], nll=nll, tokens=count, bytes=size)
            told[place] = replace(told[place], prompt_tokens=read[place], completion_tokens=0)
        return told

    def _sums(self, places: Sequence[int], tokens: Sequence[Tokens]) -> dict[int, tuple[float, int]]:
        """(minus log-likelihood, how many tokens) of all Tokens that share a place."""
        sums = dict.fromkeys(places, (0.0, 0))
        scores = engine.likelihood(self.model, tokens, self.budget, self.pad)
        for place, (nll, count) in zip(places, scores, strict=True):
            sums[place] = (sums[place][0] + nll, sums[place][1] + count)
        return sums

    def spoken(self, row: Example, with_answer: bool = True) -> Example:
        """The row as turns; a labelled row that has turns already was given the instruction in them."""
        told = "" if row.messages and self.contract.shape == "labelled" else self.contract.instruction
        return ask.as_messages(row, told, with_answer)

    def prompt_ids(self, row: Example, room: int = 0) -> list[int]:
        """ids that ask a row; a question too long for the context is shortened inside its longest text."""
        question = self.spoken(row, with_answer=False)
        ids = self.encoding.prompt_ids(question.messages)
        limit = self.encoding.max_length - max(room, int(self.model.base.kind == "decoder"))
        if len(ids) > limit:
            ids = self.encoding.prompt_ids(self.encoding.fit_prompt(question, limit))
        return ids

    def _prompts(self, rows: Sequence[Example]) -> tuple[list[Prediction], list[tuple[int, list[int]]]]:
        """A blank Prediction for each row, and the place and ids of each prompt that can be made."""
        told, prompts = [], []
        for place, row in enumerate(rows):
            told.append(Prediction(row.id, str(row.where)))
            try:
                prompts.append((place, self.prompt_ids(row, self.room)))
                told[place] = replace(told[place], prompt_tokens=len(prompts[-1][1]))
            except TokenError as problem:
                told[place] = replace(told[place], problem=problem.what)
        return told, prompts

    def label_ids(self) -> list[list[int]]:
        """ids of each label as an answer, its end of turn included."""
        turns = (Message("user", "a"),)
        prompt = self.encoding.prompt_ids(turns)
        return [
            self.encoding.answer_ids((*turns, Message("assistant", ask.label_text(label))), prompt)
            for label in self.contract.labels
        ]

    def _choose(self, rows: Sequence[Example]) -> list[Prediction]:
        answers = self.label_ids()
        told, prompts = self._prompts(rows)
        if not prompts:
            return told
        scores = engine.choices(self.model, [ids for _, ids in prompts], answers, self.budget, self.pad)
        for (place, _), row_scores in zip(prompts, scores, strict=True):
            length = len(answers[int(np.argmax(row_scores))])
            told[place] = replace(_chosen(told[place], self.contract.labels, row_scores), completion_tokens=length)
        return told

    def choice_ids(self, row: Example) -> tuple[list[int], list[list[int]]]:
        """(ids that ask a row, ids of each of its choices); what is too long is shortened as in `prompt_ids`."""
        if not row.choices:
            raise TokenError("The row has no choices", str(row.where), "give it choices")
        question = self.spoken(row, with_answer=False)
        prompt, said = self._said(question.messages, row.choices)
        if not all(said):
            raise TokenError(f"Choice {LETTERS[said.index([])]} has no token", str(row.where), "fill it in")
        limit, longest = self.encoding.max_length, max(map(len, said))
        if longest >= limit:
            raise TokenError(f"A choice has {longest} tokens; the base holds {limit}", str(row.where), "shorten it")
        limit -= longest if self.model.base.kind == "decoder" else 0
        if len(prompt) > limit:
            prompt, said = self._said(self.encoding.fit_prompt(question, limit), row.choices)
        return prompt, said

    def _said(self, messages: Sequence[Message], choices: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        """(ids that ask these turns, ids of each choice after them); ranked answers are whole, with their ends."""
        if self.contract.goal == "choose":
            return self.encoding.choice_ids(messages, choices)
        prompt = self.encoding.prompt_ids(messages)
        turns = [(*messages, Message("assistant", choice)) for choice in choices]
        return prompt, [self.encoding.answer_ids(told, prompt) for told in turns]

    def _pick(self, rows: Sequence[Example]) -> list[Prediction]:
        """The likeliest choice of each row, and how likely every one is as what follows the question."""
        told: list[Prediction] = []
        asked: list[tuple[int, list[int], list[list[int]]]] = []
        for place, row in enumerate(rows):
            told.append(Prediction(row.id, str(row.where)))
            try:
                asked.append((place, *self.choice_ids(row)))
            except TokenError as problem:
                told[place] = replace(told[place], problem=problem.what)
        prompts, answers = [prompt for _, prompt, _ in asked], [said for *_, said in asked]
        scores = engine.continuations(self.model, prompts, answers, self.budget, self.pad)
        for (place, prompt, said), row_scores in zip(asked, scores, strict=True):
            told[place] = replace(
                _chosen(told[place], LETTERS[: len(said)], row_scores),
                loglikelihoods=tuple(row_scores.round(6).tolist()),
                prompt_tokens=len(prompt),
                completion_tokens=len(said[int(np.argmax(row_scores))]),
            )
        return told

    def _write(self, rows: Sequence[Example]) -> list[Prediction]:
        told, prompts = self._prompts(rows)
        made = engine.generate(
            self.model, [ids for _, ids in prompts], self.stops, self.most, self.budget, self.sampling, self.pad
        )
        for (place, _), written in zip(prompts, made, strict=True):
            text = self.tokenizer.decode(written.ids).strip()
            made_tokens = len(written.ids) + written.finished
            written_row = replace(told[place], text=text, finished=written.finished, completion_tokens=made_tokens)
            told[place] = self._read_text(written_row)
        return told

    def _with_likelihood(self, rows: Sequence[Example], told: list[Prediction]) -> list[Prediction]:
        """Add how likely the right answer was, where there is one."""
        places: list[int] = []
        tokens: list[Tokens] = []
        for place, row in enumerate(rows):
            spoken = self.spoken(row)
            if told[place].problem or not spoken.answer:
                continue
            try:
                pieces = self._gold(spoken)
            except TokenError:
                continue
            tokens += pieces
            places += [place] * len(pieces)
        for place, (nll, count) in self._sums(places, tokens).items():
            size = len(self.spoken(rows[place]).answer.encode())
            told[place] = replace(told[place], nll=nll, tokens=count, bytes=size)
        return told

    def _gold(self, spoken: Example) -> list[Tokens]:
        """The right answer after its question; in windows, each id scored once, where the model cannot hold it."""
        encoding = replace(self.encoding, target="answers")
        turns = (*(replace(turn, weight=0.0) for turn in spoken.prompt), replace(spoken.messages[-1], weight=1.0))
        try:
            return encoding.encode(replace(spoken, messages=turns))[0]
        except RowProblem:
            answer = encoding.answer_ids(turns, encoding.prompt_ids(turns[:-1]))
        size, one_sided = encoding.max_length - encoding.virtual, encoding.kind == "decoder"
        prompt = self.prompt_ids(replace(spoken, messages=turns[:-1]), size // 2 if one_sided else 0)[
            encoding.virtual :
        ]
        ids = np.array([*prompt, *answer] if one_sided else answer, np.int32)
        weights = np.ones(len(ids), np.float32)
        weights[: len(prompt) * one_sided] = 0.0
        source = None if one_sided else np.array(prompt, np.int32)
        pieces = []
        for start in range(0, len(ids) - one_sided, size - one_sided):
            part = slice(start, start + size)
            own = weights[part].copy()
            own[:one_sided] = 0.0  # nothing stands before it, or the window before has scored it
            pieces.append(led(Tokens(ids[part], own, spoken.id, str(spoken.where), source), encoding.virtual))
        return pieces

    def _read_text(self, prediction: Prediction) -> Prediction:
        """A written answer as a number or as several labels, where the goal wants one."""
        text = prediction.text or ""
        if self.contract.goal == "regress":
            value = read_number(text)
            if not math.isfinite(value):
                return replace(prediction, problem="no number in the answer")
            width = self.contract.high - self.contract.low
            if width and not self.contract.low - width <= value <= self.contract.high + width:
                return replace(prediction, problem=f"{value:g} is far beyond the training numbers")  # digits run on
            return replace(prediction, number=value)
        if self.contract.goal == "classify" and self.contract.multi:
            said = {part.strip().casefold() for part in text.split(ask.SEPARATOR.strip())}
            return replace(prediction, label=tuple(name for name in self.contract.labels if name.casefold() in said))
        return prediction


def read_number(text: str) -> float:
    """The first number in a text; NaN where there is none.  A single comma is read as a decimal point.

    >>> [read_number(text) for text in ("It is 3.5.", "-.5", "2,5 kg", "1,234.5", "1,234,567", "1e3")]
    [3.5, -0.5, 2.5, 1234.5, 1234567.0, 1000.0]
    """
    found = NUMBER.search(text)
    if not found:
        return math.nan
    written = found.group().replace("−", "-")
    thousands = written.count(",") > 1 or ("," in written and "." in written)
    return float(written.replace(",", "" if thousands else "."))


def read_head(contract: Contract, blank: Prediction, logits: np.ndarray) -> Prediction:
    """A head's (C,) logits as a class, several classes, or a number in the user's unit."""
    labels = contract.labels
    if contract.head == "number":
        return replace(blank, number=float(logits[0]) * contract.deviation + contract.mean)
    if contract.head == "multi":
        shares = 1 / (1 + np.exp(-logits))
        chosen = tuple(name for name, share in zip(labels, shares, strict=True) if share > 0.5)
        return replace(blank, label=chosen, probabilities=dict(zip(labels, shares.tolist(), strict=True)))
    return _chosen(blank, labels, logits)


def _chosen(blank: Prediction, labels: Sequence[str], scores: np.ndarray) -> Prediction:
    """The likeliest label and every label's share (softmax of log-probabilities)."""
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    return replace(
        blank,
        label=labels[int(np.argmax(scores))],
        probabilities={name: round(float(share), 6) for name, share in zip(labels, shares, strict=True)},
    )
