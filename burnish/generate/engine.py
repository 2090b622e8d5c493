"""Running a language model forward: likelihoods, choices, and text, in batches, with a KV cache.

In: a Model and token ids.  Out: numbers and ids that depend on neither batch size, nor batch-mates, nor order
(to float32 rounding).  Nothing here knows of examples, templates or metrics.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from burnish.generate import shared
from burnish.generate.packed import TOGETHER
from burnish.generate.shared import Behind, Prefix, Tree
from burnish.models.model import Model
from burnish.models.quicken import answering
from burnish.tokens.batch import by_budget, collate, join, pack
from burnish.tokens.rows import Tokens

CLOSE = 1e-4  # of the largest logit: differences below this are rounding's (float32 keeps 1e-7, summed over layers)


Told = TypeVar("Told")
Given = ParamSpec("Given")


def _answering(function: Callable[Concatenate[Model, Given], Told]) -> Callable[Concatenate[Model, Given], Told]:
    """Run it without gradient, the model's steps fused."""

    @wraps(function)
    def run(model: Model, *told: Given.args, **named: Given.kwargs) -> Told:
        with torch.no_grad(), answering(model.hf):
            return function(model, *told, **named)

    return run  # type: ignore[return-value]


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


@_answering
def likelihood(model: Model, rows: Sequence[Tokens], budget: int, pad: int = 0) -> list[tuple[float, int]]:
    """(minus log-likelihood in nats, how many tokens) of the weighted tokens of each row, in row order."""
    told: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    asked = [np.flatnonzero(row.weights[1:]) for row in rows]  # the places in a decoder that predict them
    scored = [i for i, places in enumerate(asked) if len(places)]
    if size := _begun(model, [rows[i].ids for i in scored], [int(asked[i][0]) for i in scored]):
        prefix = shared.read(model, rows[scored[0]].ids[:size].tolist())
        own = [rows[i].ids[size : asked[i][-1] + 1] for i in scored]
        places = [asked[i] - size for i in scored]
        for group, said in shared.passes(model, Behind(prefix, own, places, pad=pad), budget):
            wanted = np.concatenate([rows[scored[j]].ids[asked[scored[j]] + 1] for j in group])
            odds = said.odds(torch.arange(len(said)), torch.from_numpy(wanted).long())
            for j, part in zip(group, odds.split([len(places[j]) for j in group]), strict=True):
                told[scored[j]] = (-float(part.sum()), len(part))
        return told
    for group in by_budget(rows, budget):
        batch = collate([rows[i] for i in group], pad).to(model.device)
        out = model(batch)
        assert out.targets is not None
        assert out.row is not None
        nll = _nll(out.logits, out.targets)
        sums = torch.zeros(len(group), dtype=torch.float64, device=nll.device).index_add_(0, out.row, nll)
        counts = torch.bincount(out.row, minlength=len(group))
        for place, i in enumerate(group):
            told[i] = (float(sums[place]), int(counts[place]))
    return told


def _nll(logits: Tensor, targets: Tensor) -> Tensor:
    """(N,) minus log-probability of each target, float64."""
    return torch.nn.functional.cross_entropy(logits, targets.to(logits.device), reduction="none").double()


def _begun(model: Model, rows: Sequence[np.ndarray], ends: Sequence[int]) -> int:
    """How many ids of the rows are to be run once for all."""
    size = shared.common(rows, ends) if rows and model.base.kind == "decoder" else 0
    return size if size and shared.ability(model, max(map(len, rows))) != "none" else 0


@_answering
def head(model: Model, rows: Sequence[Tokens], budget: int, pad: int = 0) -> np.ndarray:
    """(N, C) logits of a model with a classification or regression head, in row order; rows in packs where it can."""
    told: list[Tensor | None] = [None] * len(rows)
    for group in pack(rows, min(budget, TOGETHER)) if model.packs else by_budget(rows, budget):
        some = [rows[i] for i in group]
        logits = model((join(some) if model.packs else collate(some, pad)).to(model.device)).logits.cpu()
        for place, i in enumerate(group):
            told[i] = logits[place]
    return torch.stack([row for row in told if row is not None]).numpy()


@_answering
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


def choices(
    model: Model, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], budget: int, pad: int = 0
) -> np.ndarray:
    """(N, C) log-probability in nats of each of C answers after each of N prompts."""
    told = continuations(model, prompts, [answers] * len(prompts), budget, pad)
    return np.array(told).reshape(len(prompts), len(answers))


@_answering
def continuations(
    model: Model,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[Sequence[int]]],
    budget: int,
    pad: int = 0,
) -> list[np.ndarray]:
    """For each prompt the (C,) log-probabilities in nats of its own answers.

    What all prompts begin with runs once; a prompt runs once for all its answers, and what several answers begin with
    once a prompt; the last id of an answer is not read.
    """
    if not prompts:
        return []
    if model.base.kind == "encoder-decoder":
        return _continuations_seq2seq(model, prompts, answers, budget, pad)
    distinct = {id(own): own for own in answers}  # rows may share one list of answers
    made = {key: Tree.of(own) for key, own in distinct.items()}
    trees = [made[id(own)] for own in answers]
    longest = max(len(prompt) + max(map(len, own)) for prompt, own in zip(prompts, answers, strict=True))
    able = shared.ability(model, longest)
    if able == "none" or (able == "chain" and any(map(len, trees))):
        pairs = [(prompt, answer) for prompt, own in zip(prompts, answers, strict=True) for answer in own]
        joined = [_row([*prompt, *answer], len(answer)) for prompt, answer in pairs]
        told = -np.array([nll for nll, _ in likelihood(model, joined, budget, pad)])
        return np.split(told, np.cumsum([len(own) for own in answers])[:-1])
    rows = [np.asarray(prompt, np.int32) for prompt in prompts]
    size = shared.common(rows, [len(row) - 1 for row in rows])
    prefix = shared.read(model, rows[0][:size].tolist()) if size else shared.NOTHING
    own = [row[size:] for row in rows]
    ends = [np.array([len(row) - 1]) for row in own]
    scores: dict[int, np.ndarray] = {}
    for group, said in shared.passes(model, Behind(prefix, own, ends, trees, pad), budget):
        scores |= zip(group, shared.scores([trees[i] for i in group], said), strict=True)
    return [scores[i] for i in range(len(rows))]


def _continuations_seq2seq(
    model: Model,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[Sequence[int]]],
    budget: int,
    pad: int,
) -> list[np.ndarray]:
    """The encoder reads a prompt once for all its answers."""
    sides = [[_row(answer, len(answer)) for answer in own] for own in answers]
    rows = [replace(own[0], source=np.asarray(prompt, np.int32)) for prompt, own in zip(prompts, sides, strict=True)]
    scores: dict[int, np.ndarray] = {}
    for group in by_budget(rows, max(budget // max(map(len, answers)), 1)):
        batch = collate([rows[i] for i in group], pad).to(model.device)
        said = collate([side for i in group for side in sides[i]], pad).to(model.device)
        before = torch.cat([torch.full_like(said.ids[:, :1], model.start_id), said.ids[:, :-1]], 1)
        assert batch.source is not None
        assert batch.source_document is not None
        mask = (batch.source_document > 0).long()
        encoded = model.hf.get_encoder()(input_ids=batch.source, attention_mask=mask)
        many = torch.tensor([len(sides[i]) for i in group], device=model.device)
        encoded.last_hidden_state = encoded.last_hidden_state.repeat_interleave(many, 0)
        out = model.hf(
            encoder_outputs=encoded,
            attention_mask=mask.repeat_interleave(many, 0),
            decoder_input_ids=before,
            use_cache=False,
        )
        nll = _nll(out.logits.float().flatten(0, 1), said.ids.flatten()).view(said.ids.shape)
        sums = -(nll * (said.document > 0)).sum(1).cpu()
        scores |= zip(group, (part.numpy() for part in sums.split(many.tolist())), strict=True)
    return [scores[i] for i in range(len(rows))]


@_answering
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
    size = 0
    if rows and shared.ability(model, max(row.length for row in whole)) in ("tree", "packed"):  # it reads past gaps
        size = shared.common([row.ids for row in rows], [len(row.ids) - 1 for row in rows])
    prefix = shared.read(model, rows[0].ids[:size].tolist()) if size else shared.NOTHING
    for group in by_budget(whole, budget):
        new: list[list[int]] = [[] for _ in group]
        finished = [False] * len(group)
        rooms = [_room(model, rows[i], most) for i in group]
        for column in _decode(model, [rows[i] for i in group], max(rooms), sampling or Sampling(), pad, prefix):
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


def _decode(
    model: Model, rows: Sequence[Tokens], most: int, sampling: Sampling, pad: int, prefix: Prefix = shared.NOTHING
) -> Iterator[list[int]]:
    """One id for every row at each step, `most` times."""
    draws = [_generator(row, sampling.seed) for row in rows]
    said: list[list[int]] = [[] for _ in rows]
    with torch.no_grad():
        for logits in _steps(model, rows, said, pad, prefix):
            if not most:
                return
            ids = _draw(logits, sampling, draws)
            if sampling.temperature <= 0 and logits.dtype == torch.float32:
                for i in _close(logits):
                    ids[i] = _alone(model, rows[i], said[i], pad).argmax() if _fits(model, rows[i], said[i]) else ids[i]
            for new, token in zip(said, ids.tolist(), strict=True):
                new.append(token)
            most -= 1
            yield ids.tolist()


def _steps(
    model: Model, rows: Sequence[Tokens], said: Sequence[Sequence[int]], pad: int, prefix: Prefix
) -> Iterator[Tensor]:
    """(B, V) logits of the next id; before each further step the caller adds the last one to `said`."""
    if model.base.kind == "encoder-decoder":
        batch = collate(rows, pad).to(model.device)
        mask = (batch.document > 0).long()
        encoded = model.hf.get_encoder()(input_ids=batch.ids, attention_mask=mask)
        fixed: dict[str, Any] = {"encoder_outputs": encoded, "attention_mask": mask, "use_cache": True}
        ids, cache = torch.full((len(rows), 1), model.start_id, device=model.device), None
        while True:
            out = model.hf(**fixed, decoder_input_ids=ids, past_key_values=cache)
            yield out.logits[:, -1]
            cache, ids = out.past_key_values, torch.tensor([[new[-1]] for new in said], device=model.device)
    before = len(prefix.ids)
    batch = collate([replace(row, ids=row.ids[before:], weights=row.weights[before:]) for row in rows], pad, left=True)
    batch = batch.to(model.device)
    ids, positions, cache = batch.ids, batch.positions + before, prefix.grown(len(rows))
    mask = torch.nn.functional.pad((batch.document > 0).long(), (before, 0), value=1)
    keep: dict[str, Any] = {"logits_to_keep": 1} if model.takes_keep else {}
    while True:
        places = {"position_ids": positions} if model.takes_positions else {}
        out = model.hf(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **places, **keep)
        yield out.logits[:, -1]
        cache = getattr(out, "past_key_values", None)
        while cache is None:  # a recurrent model, whose memory is none of these: it reads its rows anew
            yield torch.stack([_alone(model, row, new, pad) for row, new in zip(rows, said, strict=True)])
        ids = torch.tensor([[new[-1]] for new in said], device=model.device)
        mask, positions = torch.nn.functional.pad(mask, (0, 1), value=1), positions[:, -1:] + 1
        if model.base.context:  # a row that is full runs on beside the others, unheard
            positions = positions.clamp(max=model.base.context - 1)


def _close(logits: Tensor) -> list[int]:
    """Rows whose two likeliest ids are as near as rounding can turn round."""
    first, second = logits.topk(2).values.T
    return torch.nonzero(first - second <= CLOSE * logits.abs().amax(-1))[:, 0].tolist()


def _fits(model: Model, row: Tokens, new: Sequence[int]) -> bool:
    return not model.base.context or _room(model, row, len(new) + 1) > len(new)


def _alone(model: Model, row: Tokens, new: Sequence[int], pad: int) -> Tensor:
    """(V,) logits after a row and its new ids, in a pass of its own: they hang on nothing else, to the last bit."""
    if model.base.kind == "encoder-decoder":
        source = torch.from_numpy(row.ids).long()[None].to(model.device)
        ids = torch.tensor([[model.start_id, *new]], device=model.device)
        return model.hf(input_ids=source, decoder_input_ids=ids, use_cache=False).logits[0, -1]
    whole = np.append(row.ids, np.asarray(new, np.int32))
    rows = Behind(shared.NOTHING, [whole], [np.array([len(whole) - 1])], pad=pad)
    ((_, told),) = shared.passes(model, rows, 1)
    return told.logits()[0]


def _draw(logits: Tensor, sampling: Sampling, draws: Sequence[torch.Generator]) -> Tensor:
    """(B,) next ids from (B, V) logits."""
    if sampling.temperature <= 0:
        return logits.argmax(-1)
    shares = torch.softmax(logits.float() / sampling.temperature, -1)
    if sampling.top_p < 1:
        order = shares.sort(-1, descending=True)
        outside = order.values.cumsum(-1) - order.values >= sampling.top_p
        shares = shares.masked_fill(outside.gather(-1, order.indices.argsort(-1)), 0)
    return torch.cat([torch.multinomial(row, 1, generator=draw) for row, draw in zip(shares, draws, strict=True)])


def _generator(row: Tokens, seed: int) -> torch.Generator:
    """Luck that hangs on the prompt and the seed alone, so that batch-mates and order change nothing."""
    told = hashlib.blake2b(row.ids.tobytes() + seed.to_bytes(8, "little", signed=True), digest_size=7)
    return torch.Generator().manual_seed(int.from_bytes(told.digest(), "little"))


def _row(ids: Sequence[int], scored: int = 0) -> Tokens:
    """A row of these ids; the last `scored` of them count."""
    weights = np.zeros(len(ids), np.float32)
    weights[len(ids) - scored :] = 1
    return Tokens(np.asarray(ids, np.int32), weights, "", "")
