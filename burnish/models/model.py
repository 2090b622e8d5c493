"""The one wrapper that every method and rung calls: a transformers model, asked only where an answer is wanted."""

from __future__ import annotations

import inspect as signatures
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from burnish.models.base import Base, Head
from burnish.tokens.batch import Batch


@dataclass(frozen=True)
class Outputs:
    """What a forward pass gives a method.

    logits: (N, V) at the N supervised positions for language, (B, C) for heads.
    targets, weights: (N,) what should have been predicted, and how much it counts (language only).
    row: (N,) which row of the batch each position is of (language only).
    """

    logits: Tensor
    targets: Tensor | None = None
    weights: Tensor | None = None
    row: Tensor | None = None


class Model(nn.Module):
    """A transformers model and how Burnish asks it.

    hf: the transformers model; its parameter names are those of its files.  fresh: names of the head's parameters
    (and of a pooler that the base's files did not have), which are always trained and saved.
    """

    def __init__(self, hf: Any, base: Base, head: Head, fresh: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self.hf = hf
        self.base = base
        self.head = head
        self.fresh = fresh
        self.precision: torch.dtype | None = None
        accepted = signatures.signature(hf.forward).parameters
        self.takes_positions = "position_ids" in accepted
        self.takes_keep = "logits_to_keep" in accepted
        self.takes_segments = "token_type_ids" in accepted and base.kind == "encoder"

    @property
    def device(self) -> torch.device:
        return next(self.hf.parameters()).device

    def forward(self, batch: Batch) -> Outputs:
        """Logits at the supervised positions (language) or of the head."""
        with torch.autocast(
            self.device.type, dtype=self.precision or torch.bfloat16, enabled=self.precision is not None
        ):
            if self.head.kind != "language":
                return Outputs(self._pooled(batch).float())
            return self._language(batch)

    def _language(self, batch: Batch) -> Outputs:
        if self.base.kind == "decoder":
            target, weight = batch.ids[:, 1:], batch.weights[:, 1:]
        else:
            target, weight = (batch.ids if batch.targets is None else batch.targets), batch.weights
        row, place = torch.nonzero(weight, as_tuple=True)  # (N,) each
        logits = self.logits(batch, place) if len(place) else torch.zeros(0, self.base.vocabulary, device=self.device)
        if len(place):
            asked = torch.unique(place)
            logits = logits[row, torch.searchsorted(asked, place)]
        return Outputs(logits.float(), target[row, place], weight[row, place], row)

    def logits(self, batch: Batch, places: Tensor) -> Tensor:
        """(B, K, V) logits at the K sorted distinct values of `places`."""
        asked = torch.unique(places)
        if self.base.kind == "encoder-decoder":
            start = self.start_id
            shifted = torch.cat([torch.full_like(batch.ids[:, :1], start), batch.ids[:, :-1]], dim=1)
            out = self.hf(
                input_ids=batch.source,
                attention_mask=batch.source_document,
                decoder_input_ids=shifted,
                use_cache=False,
            )
            return out.logits[:, asked]
        inputs: dict[str, Any] = {"input_ids": batch.ids}
        if batch.padded:
            inputs["attention_mask"] = (batch.document > 0).long()
        if self.base.kind == "decoder":
            inputs["use_cache"] = False
            if self.takes_positions:
                inputs["position_ids"] = batch.positions
            if self.takes_keep:
                return self.hf(**inputs, logits_to_keep=asked).logits
        return self.hf(**inputs).logits[:, asked]

    def _pooled(self, batch: Batch) -> Tensor:
        """(B, C): a decoder is read at its last real token, the others as transformers pools them."""
        mask = (batch.document > 0).long()
        if self.base.kind != "decoder":
            return self.hf(input_ids=batch.ids, attention_mask=mask, **self._segments(batch)).logits
        hidden = self.features(batch)
        last = torch.where(batch.document > 0, torch.arange(mask.shape[1], device=mask.device), -1).amax(1)
        return self.hf.score(hidden[torch.arange(len(last), device=mask.device), last])

    def _segments(self, batch: Batch) -> dict[str, Tensor]:
        """The ids that tell two texts apart, for encoders that learned them."""
        return {"token_type_ids": batch.segments} if self.takes_segments and batch.segments is not None else {}

    def features(self, batch: Batch) -> Tensor:
        """(B, T, H) last hidden states of a decoder or encoder without its head."""
        inputs: dict[str, Any] = {"input_ids": batch.ids, "attention_mask": (batch.document > 0).long()}
        inputs |= self._segments(batch)
        if self.base.kind == "decoder":
            inputs["use_cache"] = False
            if self.takes_positions:
                inputs["position_ids"] = batch.positions
        body = self.hf.base_model
        if self.base.kind == "encoder-decoder":
            body = body.get_encoder()
        return body(**inputs).last_hidden_state

    @property
    def start_id(self) -> int:
        """What an encoder-decoder's decoder begins with."""
        start = self.hf.config.decoder_start_token_id
        return int(self.hf.generation_config.decoder_start_token_id if start is None else start)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters that training moves, by their file names (shared ones once)."""
        return {name: value for name, value in self.hf.named_parameters() if value.requires_grad}
