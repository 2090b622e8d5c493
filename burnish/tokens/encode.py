"""The token contract: which ids a row becomes, and how much each of them counts as a target.

In: an Example and an Encoding (tokenizer, template, what is trained on, how long a row may be).  Out: Tokens, or a
Problem that names the row.  Nothing is cut silently, an answer never loses its end, and a row that would train
nothing is a Problem, not a zero loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from burnish.errors import TokenError
from burnish.records import Example, Message, Problem, Severity
from burnish.tokens.rows import VIRTUAL, Count, Tokens, led
from burnish.tokens.template import MARK, Rendered, Template, render
from burnish.tokens.tokenizer import Tokenizer

Target = Literal["answers", "all", "document", "label", "pairs"]


@dataclass(frozen=True)
class Encoding:
    """Everything that decides what ids a row becomes.

    kind: decoder, encoder or encoder-decoder.  target: answers (assistant turns), all (every token of the
    conversation), document (every token of a text), label (a head reads the text), pairs (two answers to a prompt).
    labels: class -> index; empty for a number, which is learned as (y - mean) / deviation.
    end: whether a document's end is taught.  virtual: how many virtual tokens stand before whatever is read.
    max_length counts them.  separator: between the two texts of a pair; '': the tokenizer's own control tokens.
    """

    tokenizer: Tokenizer
    template: Template
    kind: str
    target: Target
    max_length: int
    too_long: str = "error"
    labels: Mapping[str, int] = field(default_factory=dict)
    multi: bool = False
    mean: float = 0.0
    deviation: float = 1.0
    end: bool = True
    virtual: int = 0
    separator: str = ""

    @property
    def lead(self) -> list[int]:
        """The ids of the virtual tokens."""
        return list(range(VIRTUAL, VIRTUAL + self.virtual))

    @property
    def _most(self) -> int:
        """How many tokens of its own a row may have."""
        return self.max_length - self.virtual

    def encode(self, example: Example) -> tuple[list[Tokens], int]:
        """The row's Tokens (several when a document is split) and how many tokens were cut; raises RowProblem."""
        ways = {"label": self._label, "document": self._document, "pairs": self._pairs}
        way = ways.get(self.target, self._answers)
        try:
            pieces, cut = way(example)
        except RowProblem:
            raise
        except TokenError as problem:
            raise RowProblem(example, problem.what, problem.do) from None
        return [led(piece, self.virtual) for piece in pieces], cut

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """ids that are sent to the model so that it answers: equal to the start of the same row in training."""
        rendered = render(self.template, messages, self.tokenizer, generation_prompt=True)
        if self.kind == "encoder-decoder":
            return [*self.lead, *self._source(rendered)]
        return [*self.lead, *_aligned(rendered, len(rendered.text), self.tokenizer)[0]]

    def answer_ids(self, messages: Sequence[Message], prompt: Sequence[int]) -> list[int]:
        """ids of the last answer as training would teach them, after `prompt` = prompt_ids(messages[:-1])."""
        turns = [*(replace(turn, weight=0.0) for turn in messages[:-1]), replace(messages[-1], weight=1.0)]
        ids: list[int] = self._whole(turns).ids.tolist()
        if self.kind == "encoder-decoder":
            return ids
        ids = [*self.lead, *ids]
        if ids[: len(prompt)] != list(prompt):
            raise TokenError("This answer does not go on from that prompt", do="give prompt_ids of the turns before it")
        return ids[len(prompt) :]

    def choice_ids(self, messages: Sequence[Message], choices: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        """(prompt_ids of these turns, ids of each choice as it goes on from there, its end of turn left out).

        What the template writes before any answer (empty thoughts) is prompt; a space before it is the choice's.
        """
        before = render(self.template, messages, self.tokenizer, generation_prompt=True)
        if self.kind == "encoder-decoder":
            size = len(self.tokenizer.suffix)
            said = [self.tokenizer.encode_plain(choice) for choice in choices]
            return [*self.lead, *self._source(before)], [ids[: len(ids) - size] for ids in said]
        start, told = f"{before.text}{self._answer_lead()}", []
        edge = max(len(start.rstrip(" ")), len(before.text))
        for choice in choices:
            end = len(start) + len(choice)
            guarded = (*before.guarded, *([(len(start), end)] if self.tokenizer.spells_control(choice) else []))
            whole = Rendered(f"{start}{choice}", ((edge, end, 1.0),), guarded)
            ids, places = _aligned(whole, end, self.tokenizer)
            told.append(ids[places[edge] :])
        return [*self.lead, *ids[: places[edge]]], told

    def _answer_lead(self) -> str:
        """What the template writes between a prompt and its answer: often nothing, or a space."""
        asked = (Message("user", "a"),)
        before = render(self.template, asked, self.tokenizer, generation_prompt=True).text
        whole = render(self.template, (*asked, Message("assistant", MARK, 0.0)), self.tokenizer).text
        if not whole.startswith(before) or MARK not in whole:
            raise TokenError("The chat template rewrites what stands before an answer", do="set data.template to plain")
        return whole[len(before) : whole.index(MARK)]

    # --- the ways a row is read ---

    def _label(self, example: Example) -> tuple[list[Tokens], int]:
        text, pair = example.text or example.surface, example.pair
        if pair is not None and self.separator:
            text, pair = f"{text}{self.separator}{pair}", None
        ids = self.tokenizer.encode_plain(text, pair)
        over = len(ids) - self._most
        if over > 0:
            if self.too_long != "cut-prompt":
                raise _too_long(example, len(ids), self._most, self.too_long)
            inner = self.tokenizer.encode_text(text)
            if over >= len(inner) or example.pair is not None:
                raise _too_long(example, len(ids), self._most, "error")
            ids = [*self.tokenizer.prefix, *inner[:-over], *self.tokenizer.suffix]
        if len(ids) <= len(self.tokenizer.prefix) + len(self.tokenizer.suffix):
            raise RowProblem(example, "The text has no token", "remove the row")
        label = self._target(example)
        told, weights = np.asarray(ids, dtype=np.int32), np.zeros(len(ids), np.float32)
        tokens = Tokens(told, weights, example.id, str(example.where), None, label)
        if pair is not None:
            segments = self.tokenizer.segments(text, pair)
            tokens = replace(tokens, segments=np.asarray(segments, dtype=np.int32))
        return [tokens], max(over, 0)

    def _target(self, example: Example) -> Any:
        if self.multi:
            vector = np.zeros(len(self.labels), np.float32)
            given = example.label if isinstance(example.label, tuple) else (str(example.label),)
            for name in given:
                vector[self._index(name, example)] = 1.0
            return vector
        if self.labels:
            return self._index(str(example.label), example)
        if isinstance(example.label, float | int):
            return (float(example.label) - self.mean) / self.deviation
        return None

    def _index(self, name: str, example: Example) -> int:
        if name not in self.labels:
            raise RowProblem(example, f'The label "{name}" is not one of this model\'s classes')
        return self.labels[name]

    def _document(self, example: Example) -> tuple[list[Tokens], int]:
        tokenizer = self.tokenizer
        text = example.text or example.surface
        inner = tokenizer.encode_text(text)
        if not inner:
            raise RowProblem(example, "The text has no token", "remove the row")
        closing = list(tokenizer.suffix)
        eos = tokenizer.id("eos")
        if self.end and eos is not None and eos not in closing and self.kind == "decoder":
            closing.append(eos)
        ids = [*tokenizer.prefix, *inner, *closing]
        if len(ids) > self._most and self.too_long != "split":
            if self.too_long == "cut-prompt":
                raise RowProblem(example, "A document has no prompt to cut", "set data.too_long to split")
            raise _too_long(example, len(ids), self._most, self.too_long)
        pieces = []
        stride = max(self._most - (self.kind == "decoder"), 1)  # each id is predicted exactly once
        for start in range(0, max(len(ids) - (self.kind == "decoder"), 1), stride):
            told = np.asarray(ids[start : start + self._most], dtype=np.int32)
            weights = np.ones(len(told), np.float32)
            if self.kind == "decoder":
                weights[0] = 0.0  # nothing stands before it to predict it from
            else:
                weights[np.isin(told, list(tokenizer.special_ids))] = 0.0
            if weights.sum() or len(ids) == 1:
                pieces.append(Tokens(told, weights, example.id, str(example.where)))
        if not any(piece.weights.sum() for piece in pieces):
            raise _nothing_trained(example)
        return pieces, 0

    def _answers(self, example: Example) -> tuple[list[Tokens], int]:
        tokens, cut = self._whole(example.messages, example.id, str(example.where)), 0
        if tokens.length > self._limit(tokens):
            if self.too_long != "cut-prompt":
                raise _too_long(example, tokens.length, self._most, self.too_long)
            before = tokens.length
            tokens = self._whole(self.fit(example), example.id, str(example.where))
            cut = before - tokens.length
        if not tokens.weights.sum():
            raise _nothing_trained(example)
        return [tokens], cut

    def _pairs(self, example: Example) -> tuple[list[Tokens], int]:
        """The prompt with its chosen and with its rejected answer; a prompt that is too long is cut alike for both."""

        def read(prompt: Sequence[Message]) -> list[Tokens]:
            answers = [Message("assistant", text) for text in example.choices]
            return [self._whole((*prompt, answer), example.id, str(example.where)) for answer in answers]

        if len(example.choices) != 2:
            what = f"The row has {len(example.choices)} ranked answers, not two"
            raise RowProblem(example, what, "give a chosen and a rejected one")
        found = read(example.prompt)
        size = max(tokens.length for tokens in found)
        longer = int(found[1].length > found[0].length)
        if found[longer].length > self._limit(found[longer]):
            if self.too_long != "cut-prompt":
                raise _too_long(example, size, self._most, self.too_long)
            turns = (*example.prompt, Message("assistant", example.choices[longer]))
            found = read(self.fit(replace(example, messages=turns))[:-1])
        if not all(tokens.weights.sum() for tokens in found):
            raise _nothing_trained(example)
        return [replace(found[0], rejected=found[1])], size - max(tokens.length for tokens in found)

    def _limit(self, tokens: Tokens) -> int:
        """Encoder-decoders hold max_length tokens on each side."""
        if tokens.source is None:
            return self._most
        return self._most + min(len(tokens.source), len(tokens.ids), self._most)

    def fit(self, example: Example) -> tuple[Message, ...]:
        """The turns of a row, its longest questions shortened at their ends until all fits with the answers whole."""

        def over(turns: Sequence[Message]) -> int:
            tokens = self._whole(turns)
            return tokens.length - self._limit(tokens)

        return self._shortened(example, over)

    def fit_prompt(self, question: Example, limit: int) -> tuple[Message, ...]:
        """A question with its longest texts shortened at their ends until its prompt has at most `limit` ids.

        Answers before the question are texts like any other: none of them is learned here.
        """
        return self._shortened(question, lambda turns: len(self.prompt_ids(turns)) - limit, whole="")

    def _shortened(
        self, example: Example, over: Callable[[Sequence[Message]], int], whole: str = "assistant"
    ) -> tuple[Message, ...]:
        turns = list(example.messages)
        for _ in range(64):
            excess = over(turns)
            if excess <= 0:
                return tuple(turns)
            places = [i for i, turn in enumerate(turns) if turn.role != whole]
            longest = max(places, key=lambda i: len(turns[i].content), default=None)
            size = len(self.tokenizer.encode_text(turns[longest].content)) if longest is not None else 0
            if longest is None or size <= 1:
                break
            kept = max(size - excess, size // 2)  # half at most, so that several long turns share the loss
            turns[longest] = replace(turns[longest], content=self.tokenizer.cut(turns[longest].content, kept))
        what = f"The answer leaves no room for its prompt within {self._most} tokens"
        raise RowProblem(example, what, "raise data.max_length, shorten the row, or set data.too_long to drop")

    def _whole(self, messages: Sequence[Message], identity: str = "", where: str = "") -> Tokens:
        if self.kind == "encoder-decoder":
            return self._pair(messages, identity, where)
        rendered = render(self.template, messages, self.tokenizer)
        end, closed = len(rendered.text), True
        taught = [span for span in rendered.spans if span[2]]
        if taught and messages[-1].role == "assistant" and messages[-1].weight:
            last = taught[-1][1]
            closed = bool(rendered.text[last:].strip()) and self.target == "all"  # else it ends where the answer does
            end = end if closed else last
        elif taught and self.target in ("answers", "pairs"):  # what stands after the last answer can teach nothing
            end = taught[-1][1]
        ids, places = _aligned(rendered, end, self.tokenizer)
        weights = np.full(len(ids), float(self.target == "all"), np.float32)
        for start, stop, weight in rendered.spans:
            if stop <= end:
                weights[places[start] : places[stop]] = weight
        eos = self.tokenizer.id("eos")
        if not closed and eos is not None and not self.tokenizer.closing_ids.union([eos]).intersection(ids[-1:]):
            ids, weights = [*ids, eos], np.append(weights, np.float32(messages[-1].weight))
        weights[:1] = 0.0  # nothing stands before it to predict it from
        return Tokens(np.asarray(ids, dtype=np.int32), weights, identity, where)

    def _pair(self, messages: Sequence[Message], identity: str, where: str) -> Tokens:
        answered = bool(messages) and messages[-1].role == "assistant"
        question = render(
            self.template, messages[:-1] if answered else messages, self.tokenizer, generation_prompt=True
        )
        ids = self.tokenizer.encode_plain(messages[-1].content) if answered else []
        eos = self.tokenizer.id("eos")
        if answered and eos is not None and eos not in self.tokenizer.suffix:
            ids.append(eos)
        weights = np.full(len(ids), messages[-1].weight if answered else 0.0, np.float32)
        source = np.asarray(self._source(question), dtype=np.int32)
        return Tokens(np.asarray(ids, dtype=np.int32), weights, identity, where, source)

    def _source(self, rendered: Rendered) -> list[int]:
        """What an encoder reads: control tokens of the template count, and the model's own stand around the text."""
        text, tokenizer = rendered.text, self.tokenizer
        skipped = len(tokenizer.bos_text) if tokenizer.bos_text and text.startswith(tokenizer.bos_text) else 0
        guarded = [(start - skipped, end - skipped) for start, end in rendered.guarded]
        return [*tokenizer.prefix, *tokenizer.encode(text[skipped:], guarded), *tokenizer.suffix]


class RowProblem(TokenError):
    """One row cannot be encoded; carries the Problem."""

    def __init__(self, example: Example, what: str, do: str = "", severity: Severity = "error") -> None:
        super().__init__(what, str(example.where), do)
        self.problem = Problem(what, self.where, do, severity, example.id)


def encode_all(
    examples: Iterable[Example], encoding: Encoding
) -> tuple[list[Tokens], list[tuple[Example, Problem]], Count]:
    """Every row's Tokens, every row that has none and why, and the statement of tokens."""
    rows: list[Tokens] = []
    problems: list[tuple[Example, Problem]] = []
    count = Count()
    tokenizer = encoding.tokenizer
    unknown = tokenizer.id("unk")
    if unknown in (tokenizer.id("bos"), tokenizer.id("eos"), tokenizer.id("pad")):  # GPT-2 names one token thrice
        unknown = None
    for example in examples:
        try:
            pieces, cut = encoding.encode(example)
        except RowProblem as row:
            problems.append((example, row.problem))
            continue
        count.rows += 1
        count.pieces += len(pieces)
        count.cut += cut
        for piece in pieces:
            count.kept += piece.length
            count.trained += piece.supervised if encoding.target != "label" else 1
            count.unknown += 0 if unknown is None else int((piece.ids == unknown).sum())
            count.longest = max(count.longest, piece.length)
        rows.extend(pieces)
    return rows, problems, count


def _too_long(example: Example, length: int, limit: int, policy: str) -> RowProblem:
    what = f"The row has {length} tokens, more than the {limit} that the base or data.max_length allows"
    do = "shorten it, set data.too_long to drop, cut-prompt or (documents) split, or use a base that holds more"
    return RowProblem(example, what, do, "warning" if policy == "drop" else "error")


def _nothing_trained(example: Example) -> RowProblem:
    return RowProblem(example, "The row has no token to train on", "give it an answer with weight 1, or remove it")


def _aligned(rendered: Rendered, end: int, tokenizer: Tokenizer) -> tuple[list[int], dict[int, int]]:
    """ids of the first `end` characters of a text, and the token position of each edge of an answer within them.

    The text is cut only where a token would straddle an edge; elsewhere the ids are those any server makes of the
    whole.  What stands before an edge is settled without looking beyond it, so a prompt is a prefix of its row.
    """
    text, guarded = rendered.text, rendered.guarded
    edges = sorted({edge for start, stop, _ in rendered.spans for edge in (start, stop) if 0 < edge < end} | {end})
    ids: list[int] = []
    places = {0: 0}
    base = last = settled = 0  # text[:base] became ids[:settled] for good

    def encoded(stop: int) -> list[int]:
        inside = [(max(a, base) - base, min(b, stop) - base) for a, b in guarded if b > base and a < stop]
        before = [place for place in (tokenizer.controls_in(text[:base], guarded) if base else []) if place[1] == base]
        return tokenizer.encode(text[base:stop], inside, bool(base) and not before)

    for edge in edges:
        told = encoded(edge)
        if told[: len(ids) - settled] != ids[settled:]:
            base, settled = last, len(ids)
            told = encoded(edge)
        ids = [*ids[:settled], *told]
        places[edge], last = len(ids), edge
    return ids, places
