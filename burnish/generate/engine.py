"""Running a language model forward: likelihoods, choices, and text, in batches, with a KV cache.

In: a Model and token ids.  Out: numbers and ids that depend on neither batch size, nor batch-mates, nor order
(to float32 rounding).  Nothing here knows of examples, templates or metrics.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from burnish.models.model import Model
from burnish.tokens.batch import by_budget, collate
from burnish.tokens.encode import Tokens


@dataclass(frozen=True)
class Generated:
    """New ids after a prompt (without the one that ended them), and whether it ended by itself."""

    ids: list[int]
    finished: bool


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: greedy at temperature 0, else from the top-p share of probability.

    A prompt and a seed give one text; for several texts of one prompt, vary the seed.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@torch.no_grad()
def likelihood(model: Model, rows: Sequence[Tokens], budget: int, pad: int = 0) -> list[tuple[float, int]]:
    """(minus log-likelihood in nats, how many tokens) of the weighted tokens of each row, in row order."""
    told: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    for group in by_budget(rows, budget):
        batch = collate([rows[i] for i in group], pad).to(model.device)
        out = model(batch)
        assert out.targets is not None
        assert out.row is not None
        nll = torch.nn.functional.cross_entropy(out.logits, out.targets, reduction="none").double()
        sums = torch.zeros(len(group), dtype=torch.float64, device=nll.device).index_add_(0, out.row, nll)
        counts = torch.bincount(out.row, minlength=len(group))
        for place, i in enumerate(group):
            told[i] = (float(sums[place]), int(counts[place]))
    return told


@torch.no_grad()
def head(model: Model, rows: Sequence[Tokens], budget: int, pad: int = 0) -> np.ndarray:
    """(N, C) logits of a model with a classification or regression head, in row order."""
    told: list[Tensor | None] = [None] * len(rows)
    for group in by_budget(rows, budget):
        logits = model(collate([rows[i] for i in group], pad).to(model.device)).logits.cpu()
        for place, i in enumerate(group):
            told[i] = logits[place]
    return torch.stack([row for row in told if row is not None]).numpy()


@torch.no_grad()
def features(model: Model, rows: Sequence[Tokens], budget: int, pad: int = 0) -> Tensor:
    """(N, H) last hidden states averaged over real tokens, in row order."""
    told: list[Tensor | None] = [None] * len(rows)
    for group in by_budget(rows, budget):
        batch = collate([rows[i] for i in group], pad).to(model.device)
        mask = (batch.document > 0).unsqueeze(-1)
        mean = (model.features(batch) * mask).sum(1) / mask.sum(1)
        for place, i in enumerate(group):
            told[i] = mean[place].float().cpu()
    return torch.stack([row for row in told if row is not None]) if rows else torch.zeros(0, model.base.width)


@torch.no_grad()
def choices(
    model: Model, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], budget: int, pad: int = 0
) -> np.ndarray:
    """(N, C) log-probability in nats of each of C answers after each of N prompts.

    The prompt runs once and its cache serves every answer; one-token answers cost nothing more.
    """
    if model.base.kind == "encoder-decoder":
        return _choices_seq2seq(model, prompts, answers, budget, pad)
    longest = max(map(len, answers))
    starts = torch.tensor([answer[0] for answer in answers])
    rows = [_row(prompt) for prompt in prompts]
    told = np.zeros((len(prompts), len(answers)))
    for group in by_budget(rows, max(budget // (1 if longest == 1 else len(answers)), 1)):
        batch = collate([rows[i] for i in group], pad, left=True).to(model.device)
        out = _step(model, batch.ids, batch.document, batch.positions, None, keep=longest > 1)
        scores = torch.log_softmax(out.logits[:, -1].float(), -1)[:, starts].double()
        if longest > 1:
            scores += _rest(model, batch.document, out.past_key_values, answers, pad)
        told[group] = scores.cpu().numpy()
    return told


def _rest(model: Model, mask: Tensor, cache: Any, answers: Sequence[Sequence[int]], pad: int) -> Tensor:
    """(B, C) log-probability of every answer's tokens after its first."""
    rows, many, longest = len(mask), len(answers), max(map(len, answers))
    ids = torch.full((many, longest), pad)
    real = torch.zeros((many, longest), dtype=torch.long)
    for i, answer in enumerate(answers):
        ids[i, : len(answer)] = torch.tensor(answer)
        real[i, : len(answer)] = 1
    cache.batch_repeat_interleave(many)
    lengths = mask.sum(1).repeat_interleave(many)
    inputs, inner = ids[:, :-1].repeat(rows, 1), real[:, :-1].repeat(rows, 1)
    positions = lengths[:, None] + torch.arange(longest - 1)[None]
    whole = torch.cat([mask.repeat_interleave(many, 0), inner], 1)
    logits = _step(model, inputs, whole, positions, cache).logits
    scores = torch.log_softmax(logits.float(), -1).gather(2, ids[:, 1:].repeat(rows, 1).unsqueeze(-1)).squeeze(-1)
    return (scores.double() * real[:, 1:].repeat(rows, 1)).sum(1).view(rows, many)


def _choices_seq2seq(
    model: Model, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], budget: int, pad: int
) -> np.ndarray:
    rows = [
        Tokens(np.asarray(answer, np.int32), np.ones(len(answer), np.float32), "", "", np.asarray(prompt, np.int32))
        for prompt in prompts
        for answer in answers
    ]
    scores = [-nll for nll, _ in likelihood(model, rows, budget, pad)]
    return np.asarray(scores).reshape(len(prompts), len(answers))


@torch.no_grad()
def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    stops: Sequence[int],
    most: int,
    budget: int,
    sampling: Sampling | None = None,
    pad: int = 0,
) -> list[Generated]:
    """Up to `most` new ids for each prompt, ending at any of `stops` or where the model's context is full."""
    rows = [_row(prompt) for prompt in prompts]
    told: list[Generated] = [Generated([], False)] * len(rows)
    whole = [_row([0] * (len(row.ids) + _room(model, row, most))) for row in rows]  # what its cache will come to
    for group in by_budget(whole, budget):
        new: list[list[int]] = [[] for _ in group]
        finished = [False] * len(group)
        rooms = [_room(model, rows[i], most) for i in group]
        for column in _decode(model, [rows[i] for i in group], max(rooms), sampling or Sampling(), pad):
            for place, token in enumerate(column):
                if not finished[place] and len(new[place]) < rooms[place]:
                    finished[place] = token in stops
                    if not finished[place]:
                        new[place].append(token)
            if all(end or len(ids) == room for end, ids, room in zip(finished, new, rooms, strict=True)):
                break
        for place, i in enumerate(group):
            told[i] = Generated(new[place], finished[place])
    return told


def stream(model: Model, prompt: Sequence[int], stops: Sequence[int], most: int, sampling: Sampling) -> Iterator[int]:
    """New ids one by one."""
    row = _row(prompt)
    for (token,) in _decode(model, [row], _room(model, row, most), sampling, 0):
        if token in stops:
            return
        yield token


def _room(model: Model, row: Tokens, most: int) -> int:
    """How many ids may follow a prompt: the last one is not read any more, so it may stand beyond the context."""
    read = 1 if model.base.kind == "encoder-decoder" else len(row.ids)
    return max(min(most, model.base.context + 1 - read), 0) if model.base.context else most


def _decode(model: Model, rows: Sequence[Tokens], most: int, sampling: Sampling, pad: int) -> Iterator[list[int]]:
    """One id for every row at each step, `most` times."""
    draws = [_generator(row, sampling.seed) for row in rows]
    with torch.no_grad():
        if model.base.kind == "encoder-decoder":
            batch = collate(rows, pad).to(model.device)
            encoded = model.hf.get_encoder()(input_ids=batch.ids, attention_mask=batch.document)
            ids, cache = torch.full((len(rows), 1), model.start_id), None
            for _ in range(most):
                out = model.hf(
                    encoder_outputs=encoded,
                    attention_mask=batch.document,
                    decoder_input_ids=ids,
                    past_key_values=cache,
                    use_cache=True,
                )
                cache = out.past_key_values
                ids = _draw(out.logits[:, -1], sampling, draws)
                yield ids[:, 0].tolist()
            return
        batch = collate(rows, pad, left=True).to(model.device)
        ids, mask, positions, cache = batch.ids, batch.document, batch.positions, None
        for _ in range(most):
            out = _step(model, ids, mask, positions, cache, keep=True)
            ids, cache = _draw(out.logits[:, -1], sampling, draws), out.past_key_values
            yield ids[:, 0].tolist()
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            positions = positions[:, -1:] + 1
            if model.base.context:  # a row that is full runs on beside the others, unheard
                positions = positions.clamp(max=model.base.context - 1)


def _step(model: Model, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any, keep: bool = False) -> Any:
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": keep or cache is not None}
    if cache is not None:
        inputs["past_key_values"] = cache
    if model.takes_positions:
        inputs["position_ids"] = positions
    if cache is None and model.takes_keep:
        inputs["logits_to_keep"] = 1
    return model.hf(**inputs)


def _draw(logits: Tensor, sampling: Sampling, draws: Sequence[torch.Generator]) -> Tensor:
    """(B, 1) next ids from (B, V) logits."""
    if sampling.temperature <= 0:
        return logits.argmax(-1, keepdim=True)
    shares = torch.softmax(logits.float() / sampling.temperature, -1)
    if sampling.top_p < 1:
        order = shares.sort(-1, descending=True)
        outside = order.values.cumsum(-1) - order.values >= sampling.top_p
        shares = shares.masked_fill(outside.gather(-1, order.indices.argsort(-1)), 0)
    return torch.stack([torch.multinomial(row, 1, generator=draw) for row, draw in zip(shares, draws, strict=True)])


def _generator(row: Tokens, seed: int) -> torch.Generator:
    """Luck that hangs on the prompt and the seed alone, so that batch-mates and order change nothing."""
    told = hashlib.blake2b(row.ids.tobytes() + seed.to_bytes(8, "little", signed=True), digest_size=7)
    return torch.Generator().manual_seed(int.from_bytes(told.digest(), "little"))


def _row(ids: Sequence[int]) -> Tokens:
    return Tokens(np.asarray(ids, np.int32), np.zeros(len(ids), np.float32), "", "")
