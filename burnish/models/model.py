"""The one wrapper that every method and rung calls: a transformers model, asked only where an answer is wanted.

In: a Batch, packed or padded.  Out: Outputs, which hold the features behind the supervised positions and not the
(T, V) logits; a loss that needs no logits never has them.
"""

from __future__ import annotations

import inspect as signatures
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from burnish.models import attention
from burnish.models.attention import Seat
from burnish.models.base import OFFSET, Base, Head
from burnish.models.layout import layout_of, rounded
from burnish.models.widened import widened
from burnish.tokens.batch import Batch, collate, filled, join
from burnish.tokens.rows import Tokens

LAYERS = {"full_attention", "sliding_attention"}  # what packed attention knows of a config's layer_types
LOCAL = (  # short probes do not see it
    *("attention_chunk_size", "attention_types", "attention_window", "expert_capacity", "local_attention"),
)
FIRST, OTHER, SECOND = (5, 9, 6, 8), (7, 6, 9, 5), (8, 5, 9)  # ids to prove packing with


class Outputs:
    """What a forward pass gives a method.

    hidden, head: (N, H) what the language head would read at the N supervised positions, and the head; both None where
    only the logits are known.  logits: (N, V), or (B, C) of a head; made when first asked for.
    targets, weights: (N,) what should have been predicted, and how much it counts (language only).
    row: (N,) which row of the batch each position is of (language only).
    """

    def __init__(
        self,
        logits: Tensor | None = None,
        targets: Tensor | None = None,
        weights: Tensor | None = None,
        row: Tensor | None = None,
        hidden: Tensor | None = None,
        head: nn.Linear | None = None,
    ) -> None:
        self.targets, self.weights, self.row = targets, weights, row
        self.hidden, self.head = hidden, head
        self._logits = logits

    @property
    def logits(self) -> Tensor:
        if self._logits is None:
            assert self.hidden is not None
            assert self.head is not None
            self._logits = head_of(self.head, self.hidden).float()
        return self._logits


class Model(nn.Module):
    """A transformers model and how Burnish asks it.

    hf: the transformers model; its parameter names are those of its files.  fresh: names of the head's parameters
    (and of a pooler that the base's files did not have), which are always trained and saved.
    states: within a pass, (1, T, H) what enters the first trained layer, if the batch brings it (bottom.py).
    """

    def __init__(self, hf: Any, base: Base, head: Head, fresh: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self.hf = hf
        self.base = base
        self.head = head
        self.fresh = fresh
        self.seat = Seat()
        self.states: Tensor | None = None
        accepted = signatures.signature(hf.forward).parameters
        self.takes_positions = "position_ids" in accepted
        self.takes_keep = "logits_to_keep" in accepted
        self.takes_segments = "token_type_ids" in accepted and base.kind == "encoder"
        try:
            attention.install(hf, self.seat)
        except ValueError:  # an architecture with attention of its own: its rows are padded
            self.packs = False

    @property
    def device(self) -> torch.device:
        return next(self.hf.parameters()).device

    def forward(self, batch: Batch) -> Outputs:
        """What the model says at the supervised positions (language), or its head of each row."""
        batch = self.even(batch)
        with self._seated(batch):
            if self.head.kind != "language":
                return Outputs(self._pooled(batch).float())
            return self._language(batch)

    def even(self, batch: Batch) -> Batch:
        """A pack of a round size, where a new size of product costs a compilation (bfloat16 on the CPU)."""
        low = any(value.dtype == torch.bfloat16 for value in self.hf.parameters())  # an adapter's may be float32
        if not batch.ends or not low or self.device.type != "cpu":
            return batch
        if batch.source_ends:
            return filled(batch, rounded(batch.ends[-1] + 1), rounded(batch.source_ends[-1] + 1))
        size = rounded(batch.ends[-1])
        return filled(batch, size) if size > batch.ends[-1] else batch

    def train(self, mode: bool = True) -> Model:
        self.seat.layout = self.states = None
        return super().train(mode)

    @contextmanager
    def _seated(self, batch: Batch) -> Iterator[None]:
        """Tell the attention how a pack is laid out; gradients keep it for the backward pass."""
        seat = self.seat
        seat.layout = layout_of(batch) if batch.ends else None
        if seat.layout is None:
            yield
            return
        seat.positions = batch.positions[0]
        self.states = batch.states
        seat.source_positions = None
        if batch.source_document is not None:
            ends = torch.tensor(batch.source_ends, device=batch.ids.device)
            seat.source_positions = torch.arange(len(batch.source_document[0]), device=ends.device)
            seat.source_positions = (seat.source_positions - ends[batch.source_document[0] - 1]).clamp_min(
                0
            )  # 0: padding
        try:
            with attention.unmasked():
                yield
        finally:
            self.states = None
            if not torch.is_grad_enabled():
                seat.layout = None

    def _language(self, batch: Batch) -> Outputs:
        if self.base.kind == "decoder":
            target, weight = batch.ids[:, 1:], batch.weights[:, 1:]
        else:
            target, weight = (batch.ids if batch.targets is None else batch.targets), batch.weights
        row, place = torch.nonzero(weight, as_tuple=True)  # (N,) each
        told = target[row, place], weight[row, place], (batch.document[0, place] - 1 if batch.ends else row)
        if not len(place):
            return Outputs(torch.zeros(0, self.base.vocabulary, device=self.device), *told)
        asked = place if batch.ends else torch.unique(place)
        at = 0 if batch.ends else (row, torch.searchsorted(asked, place))
        if self.lays_bare:
            with bare(self.hf.get_output_embeddings()) as head:
                return Outputs(None, *told, self._asked(batch, asked)[at], head)
        return Outputs(self._asked(batch, asked)[at].float(), *told)

    def logits(self, batch: Batch, places: Tensor) -> Tensor:
        """(B, K, V) logits at the K sorted distinct values of `places`."""
        with self._seated(batch):
            return self._asked(batch, torch.unique(places))

    def _asked(self, batch: Batch, asked: Tensor) -> Tensor:
        if self.base.kind == "encoder-decoder":
            shifted = torch.cat([batch.ids[:, :1], batch.ids[:, :-1]], dim=1)
            shifted[:, list(batch.ends[:-1]) or [0]] = self.start_id
            out = self.hf(
                input_ids=batch.source,
                attention_mask=None if batch.ends else batch.source_document,
                decoder_input_ids=shifted,
                use_cache=False,
            )
            return out.logits[:, asked]
        inputs: dict[str, Any] = {"input_ids": batch.ids}
        if not batch.ends and batch.padded:
            inputs["attention_mask"] = (batch.document > 0).long()
        inputs |= self._positions(batch)
        if self.base.kind == "decoder":
            inputs["use_cache"] = False
            if self.takes_keep:
                return self.hf(**inputs, logits_to_keep=asked).logits
        return self.hf(**inputs).logits[:, asked]

    def _positions(self, batch: Batch) -> dict[str, Tensor]:
        """Positions for those that take them; encoders count padded rows themselves, some from their padding id on."""
        if not self.takes_positions or (self.base.kind != "decoder" and not batch.ends):
            return {}
        start = self.base.config.get("pad_token_id", 1) + 1 if self.base.config["model_type"] in OFFSET else 0
        return {"position_ids": batch.positions + start}

    def _pooled(self, batch: Batch) -> Tensor:
        """(B, C): a decoder is read at its last real token, the others as transformers pools them."""
        if self.base.kind != "decoder":
            if batch.ends:
                with _first(self.hf.base_model, batch.ends[: batch.rows]):
                    return self.hf(input_ids=batch.ids, **self._positions(batch), **self._segments(batch)).logits
            mask = (batch.document > 0).long()
            return self.hf(input_ids=batch.ids, attention_mask=mask, **self._segments(batch)).logits
        hidden = self._features(batch)
        if batch.ends:
            return self.hf.score(hidden[0, [end - 1 for end in batch.ends[1 : batch.rows + 1]]])
        steps = torch.arange(batch.ids.shape[1], device=hidden.device)
        last = torch.where(batch.document > 0, steps, -1).amax(1)
        return self.hf.score(hidden[torch.arange(len(last), device=hidden.device), last])

    def _segments(self, batch: Batch) -> dict[str, Tensor]:
        """The ids that tell two texts apart, for encoders that learned them."""
        return {"token_type_ids": batch.segments} if self.takes_segments and batch.segments is not None else {}

    def features(self, batch: Batch) -> Tensor:
        """(B, T, H) last hidden states of a decoder or encoder without its head."""
        with self._seated(batch):
            return self._features(batch)

    def _features(self, batch: Batch) -> Tensor:
        inputs: dict[str, Any] = {"input_ids": batch.ids} | self._segments(batch)
        if not batch.ends:
            inputs["attention_mask"] = (batch.document > 0).long()
        if self.base.kind == "decoder":
            inputs["use_cache"] = False
        body = self.hf.base_model
        if self.base.kind == "encoder-decoder":
            body = body.get_encoder()
        else:
            inputs |= self._positions(batch)
        return body(**inputs).last_hidden_state

    @cached_property
    def packs(self) -> bool:
        """Whether packed documents are kept apart, shown on this very model with three short ones.

        A second document must say the same whatever stands before it, to the last bit, and what it says as a plain row.
        """
        assert not any(value.is_meta for value in self.hf.parameters()), (
            "nothing can be shown on a model without weights"
        )
        config = self.base.config
        if not set(config.get("layer_types") or LAYERS) <= LAYERS or any(config.get(key) for key in LOCAL):
            return False
        was = self.training
        self.eval()
        try:
            with torch.no_grad(), widened(self.hf):
                both, other, alone = (self._probe(*rows) for rows in ((FIRST, SECOND), (OTHER, SECOND), (SECOND,)))
                if self.base.kind == "decoder":
                    return torch.equal(both[-1], other[-1]) and _near(both[-1], alone[-1])
                turned = self._probe(SECOND, FIRST)
                return torch.equal(both[-1], other[-1]) and _near(both[-1], alone[-1]) and _near(turned[0], alone[-1])
        except Exception:  # whatever an unknown architecture raises: it is not for packs
            return False
        finally:
            self.train(was)

    @cached_property
    def shares(self) -> bool:
        """Whether the two answers of a pair may share what they begin with, shown on this very model.

        Each must say what it says alone after its whole prompt, and nothing of the other.
        """
        if self.base.kind != "decoder" or self.head.kind != "language" or not self.packs:
            return False
        size = self.base.vocabulary or 10
        chosen, rejected, other = (
            Tokens(np.array(ids, np.int32) % size, np.array([0, *[1] * (len(ids) - 1)], np.float32), "", "")
            for ids in ((*FIRST, 7, 5), (*FIRST, 9, 6, 8), (*FIRST, 6, 9))
        )
        was, layout, states = self.training, self.seat.layout, self.states
        self.eval()
        try:
            with torch.no_grad(), widened(self.hf):
                pair, changed_pair = replace(chosen, rejected=rejected), replace(other, rejected=rejected)
                ways = join([pair]), join([pair], shared=True), join([changed_pair], shared=True)
                apart, together, changed = (self(batch.to(self.device)).logits for batch in ways)
                # apart: the chosen row, then the rejected; together: what both begin with, then the rest of each
                start, end = len(FIRST) - 1, len(chosen.ids) - 1
                wanted = torch.cat([apart[:end], apart[end + start :]])
                last = len(rejected.ids) - len(FIRST)
                return _near(together, wanted) and torch.equal(together[-last:], changed[-last:])
        except Exception:  # as above
            return False
        finally:
            self.train(was)
            self.seat.layout, self.states = layout, states

    def _probe(self, *rows: tuple[int, ...]) -> list[Tensor]:
        """What the model says of each of some short rows in one pack; of a single row as transformers reads it."""
        size = self.base.vocabulary or 10
        made = []
        for row in rows:
            ids = np.asarray(row, np.int32) % size
            source = ids[::-1].copy() if self.base.kind == "encoder-decoder" else None
            made.append(Tokens(ids, np.ones(len(ids), np.float32), "", "", source))
        made[0].weights[0] = 0
        batch = (join(made) if len(made) > 1 else collate(made, 0)).to(self.device)
        with self._seated(batch):
            if self.head.kind in ("classes", "multi", "number"):
                return list(self._pooled(batch))
            every = torch.arange(batch.ids.shape[1])
            told = self._features(batch) if self.head.kind == "none" else self._asked(batch, every)
            return [told[0, a:b] for a, b in pairwise(batch.ends or (0, len(every)))]

    @cached_property
    def lays_bare(self) -> bool:
        """Whether the logits are the output embedding's and nothing else, shown on this very model.

        Then a loss may work from what that layer reads.  Soft caps, scales and biases added afterwards forbid it.
        """
        head = self.hf.get_output_embeddings()
        if type(head) is not nn.Linear:
            return False
        was, layout, states = self.training, self.seat.layout, self.states
        self.eval()
        try:
            ids = torch.tensor([[5, 9, 6]], device=self.device) % (self.base.vocabulary or 10)
            inputs: dict[str, Any] = {"input_ids": ids}
            if self.base.kind == "encoder-decoder":
                inputs["decoder_input_ids"] = ids
            with torch.no_grad():
                whole = self.hf(**inputs).logits
                with bare(head):
                    return torch.equal(head_of(head, self.hf(**inputs).logits), whole)
        except Exception:
            return False
        finally:
            self.train(was)
            self.seat.layout, self.states = layout, states

    @property
    def start_id(self) -> int:
        """What an encoder-decoder's decoder begins with."""
        start = self.hf.config.decoder_start_token_id
        return int(self.hf.generation_config.decoder_start_token_id if start is None else start)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters that training moves, by their file names (shared ones once)."""
        return {name: value for name, value in self.hf.named_parameters() if value.requires_grad}


def _near(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding, which other neighbours in a matrix product may change."""
    allowed = 1e-4 if a.dtype == torch.float32 else 5e-2
    return bool((a - b).abs().max() <= allowed * b.abs().max().clamp_min(1e-3))


@contextmanager
def bare(head: nn.Linear) -> Iterator[nn.Linear]:
    """Within it the output embedding hands on what it reads."""
    own = vars(head).get("forward")  # another `forward` of its own, not its class's (quicken.py)
    head.forward = lambda hidden: hidden
    try:
        yield head
    finally:
        del head.forward
        if own is not None:
            head.forward = own


def head_of(head: nn.Linear, hidden: Tensor) -> Tensor:
    """Logits, as the layer itself makes them."""
    return nn.functional.linear(hidden, head.weight, head.bias)


@contextmanager
def _first(body: Any, starts: tuple[int, ...]) -> Iterator[None]:
    """Within it an encoder gives each document of a pack as a row of one token, its first, pooled anew."""

    def narrowed(module: Any, told: Any, out: Any) -> Any:
        out.last_hidden_state = out.last_hidden_state[0, list(starts)][:, None]
        pooler = getattr(module, "pooler", None)
        if isinstance(pooler, nn.Linear):  # ALBERT
            out.pooler_output = module.pooler_activation(pooler(out.last_hidden_state[:, 0]))
        elif pooler is not None:
            out.pooler_output = pooler(out.last_hidden_state)
        return out

    hook = body.register_forward_hook(narrowed)
    try:
        yield
    finally:
        hook.remove()
