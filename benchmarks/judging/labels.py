"""Eight-shot classification of SST-2: how fast labels are scored, and that the scores are the peers'."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.judging.programs import (
    LLAMA,
    ROUNDS,
    VOCABULARY,
    Ids,
    Score,
    answerer,
    apart,
    clocked,
    harness,
    plainly,
    untouched,
)
from burnish.generate import engine
from burnish.generate.answer import Answerer
from burnish.records import Example, Where
from burnish.tokens import ask

LABELS = ("bad", "good")
INSTRUCTION = "Is this review bad or good?"


def reviews(shared: Path, file: str) -> list[Example]:
    lines = (shared / "data/sentiment-sst2" / file).read_text(encoding="utf-8").splitlines()
    return [
        Example("labelled", Where(file, i + 1), text=line[2:], label=LABELS[int(line[0])])
        for i, line in enumerate(lines)
    ]


def shown(ready: Answerer, demonstrations: Sequence[Example], row: Example) -> Example:
    """A row behind its demonstrations, as the few-shot rung asks it."""
    turns = [turn for item in demonstrations for turn in ask.as_messages(item, ready.contract.instruction).messages]
    spoken = ask.as_messages(row, ready.contract.instruction)
    return Example("conversation", row.where, (*turns, *spoken.messages))


def asked_labels(folder: Path, random: bool = False) -> Answerer:
    return answerer(folder, "classify", "labelled", LABELS, INSTRUCTION, random)


def ours(ready: Answerer) -> Score:
    return lambda prompts, answers: engine.choices(ready.model, prompts, answers, ready.budget, ready.pad)


def speed(shared: Path, rows: int, peer_rows: int, dtype: str, folder: Path) -> dict[str, Any]:
    """Rows a second of all three on the random Llama, in interleaved rounds, and how far their scores are apart."""
    from transformers import AutoTokenizer

    shutil.copytree(shared / "models/tokenizers/gpt2", folder, dirs_exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    ready = asked_labels(folder, random=True)
    ready.model.hf.to(getattr(torch, dtype))
    train, test = reviews(shared, "train.txt"), reviews(shared, "dev.txt")
    asked = (test + train[8:])[:rows]
    few = [shown(ready, train[:8], row) for row in asked]
    peer = few[:: max(len(few) // peer_rows, 1)][:peer_rows]

    def prompts(some: Sequence[Example]) -> list[Ids]:
        return [[i % VOCABULARY for i in ready.prompt_ids(row, ready.room)] for row in some]

    ends = [[i % VOCABULARY for i in ids] for ids in ready.label_ids()]
    words, tokenizer = [ids[:1] for ids in ends], AutoTokenizer.from_pretrained(folder)
    cases = {"labels of one token": (words, peer), "labels with their end": (ends, peer[: max(len(peer) // 4, 8)])}
    return {name: race(ready, tokenizer, few, part, prompts, answers) for name, (answers, part) in cases.items()}


def race(
    ready: Answerer,
    tokenizer: Any,
    rows: Sequence[Example],
    part: Sequence[Example],
    prompts: Callable[[Sequence[Example]], list[Ids]],
    answers: Sequence[Ids],
) -> dict[str, Any]:
    """Burnish on `rows` and the peers on `part` of them, in four interleaved rounds."""
    hf, mine, given = untouched(ready), ours(ready), prompts(part)
    trials = {size: harness(hf, tokenizer, size) for size in (1, 4, 16)}
    trial = {size: clocked(lambda score=score: score(given[:4], answers))[0] for size, score in trials.items()}
    size = min(trial, key=lambda size: trial[size])
    peers = {"transformers": plainly(hf), "lm-eval": trials[size]}
    seconds, worst = dict.fromkeys(["burnish", *peers], 0.0), dict.fromkeys(peers, 0.0)
    for turn in range(ROUNDS):
        some, others = rows[turn::ROUNDS], given[turn::ROUNDS]
        seconds["burnish"] += clocked(lambda: mine(prompts(some), answers))[0]  # noqa: B023 - called at once
        wanted = mine(others, answers)
        for name, score in peers.items():
            took, scores = clocked(lambda: score(others, answers))  # noqa: B023
            seconds[name] += took
            worst[name] = max(worst[name], apart(scores, wanted))
    rates = {who: (len(rows) if who == "burnish" else len(part)) / took for who, took in seconds.items()}
    told = {
        "tokens_per_prompt": round(float(np.mean([len(ids) for ids in given])), 1),
        "rows": len(rows),
        "peer_rows": len(part),
        "lm_eval_batch_size": size,
        "rows_per_second": {who: round(rate, 3) for who, rate in rates.items()},
        "ratio": {who: round(rates["burnish"] / rates[who], 2) for who in peers},
        "max_score_difference": worst,
    }
    print(json.dumps(told), flush=True)
    return told


def scores(folder: Path, shared: Path, rows: int) -> dict[str, Any]:
    """How far the three are apart on a real model with as many shots as its context holds, and Burnish from itself."""
    from transformers import AutoTokenizer

    ready = asked_labels(folder)
    train, test = reviews(shared, "train.txt"), reviews(shared, "dev.txt")[:rows]
    most = ready.encoding.max_length - ready.room
    shots = 0
    while shots < 32 and all(
        len(ready.encoding.prompt_ids(shown(ready, train[: shots + 1], row).messages[:-1])) <= most for row in test
    ):
        shots += 1
    prompts = [ready.prompt_ids(shown(ready, train[:shots], row), ready.room) for row in test]
    answers, mine = ready.label_ids(), ours(ready)
    told = mine(prompts, answers)
    turned = engine.choices(ready.model, prompts[::-1], answers, ready.budget // 16, ready.pad)[::-1]
    single = np.concatenate([mine([prompt], answers) for prompt in prompts])
    hf = untouched(ready)
    peers = {"transformers": plainly(hf), "lm-eval": harness(hf, AutoTokenizer.from_pretrained(folder), 8)}
    said = {"burnish": told, **{name: score(prompts, answers) for name, score in peers.items()}}
    ready.model.double()
    exact = {"burnish": mine(prompts, answers), "transformers": plainly(hf.double())(prompts, answers)}
    return {
        "shots": shots,
        "rows": len(prompts),
        "tokens_per_prompt": round(float(np.mean([len(ids) for ids in prompts])), 1),
        "score_mean": round(float(told.mean()), 3),
        "max_score_difference": {name: apart(told, said[name]) for name in peers},
        "max_nats": {name: float(np.abs(told - said[name]).max()) for name in peers},
        "from_float64": {name: apart(part, exact["transformers"]) for name, part in said.items()},
        "max_score_difference_float64": apart(exact["burnish"], exact["transformers"]),
        "other_order_and_batch_size": apart(turned, told),
        "row_by_row": apart(single, told),
    }
