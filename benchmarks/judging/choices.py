"""Multiple choice on ARC-easy and HellaSwag: speed and scores, texts in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.judging.programs import LLAMA, ROUNDS, answerer, apart, clocked, plainly, untouched
from burnish import kinds
from burnish.generate.answer import Answerer
from burnish.records import LETTERS, Example, Message, Where

BENCHMARKS = ("bench-arc-easy", "bench-hellaswag")


def asked_choices(folder: Path, random: bool = False) -> Answerer:
    return answerer(folder, "choose", "choices", LETTERS, random=random)


def questions(shared: Path, name: str) -> list[Example]:
    """A benchmark's rows."""
    columns = {"context": "query", "choices": "choices", "index": "gold"}
    read, (path,) = kinds.load("data/shapes", "choices").to_example, (shared / "data" / name).glob("*.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines()
    return [read(json.loads(line), columns, Where(path.name, i + 1)) for i, line in enumerate(lines)]


def behind(shots: Sequence[Example], row: Example) -> Example:
    """A row behind solved ones, as one text: what lm-eval would ask."""
    solved = [f"{item.prompt[0].content} {item.answer}\n\n" for item in shots]
    return Example(
        "choices", row.where, (Message("user", "".join([*solved, row.prompt[0].content])),), choices=row.choices
    )


Picks = Callable[[Sequence[Example]], list[np.ndarray]]  # rows -> log-likelihood of each row's choices


def pickers(ready: Answerer, size: int) -> dict[str, Picks]:
    """The three, from rows on; transformers is given ids, a choice at a time."""
    from lm_eval.api.instance import Instance  # type: ignore[import-untyped]
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    hf, tokenizer = untouched(ready), AutoTokenizer.from_pretrained(ready.model.base.folder)
    bos = bool(ready.tokenizer.prefix)
    lm = HFLM(
        pretrained=hf, tokenizer=tokenizer, batch_size=size, max_length=ready.model.base.context, add_bos_token=bos
    )
    plain = plainly(hf)

    def burnish(rows: Sequence[Example]) -> list[np.ndarray]:
        return [np.array(item.loglikelihoods) for item in ready.answer(rows)]

    def harnessed(rows: Sequence[Example]) -> list[np.ndarray]:
        pairs = [(row.prompt[0].content, f" {choice}") for row in rows for choice in row.choices]
        asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
        told = np.array([value for value, _ in lm.loglikelihood(asked, disable_tqdm=True)])
        return np.split(told, np.cumsum([len(row.choices) for row in rows])[:-1])

    def alone(rows: Sequence[Example]) -> list[np.ndarray]:
        asked = [ready.choice_ids(row) for row in rows]
        return [np.concatenate([plain([prompt], [ids])[0] for ids in said]) for prompt, said in asked]

    return {"burnish": burnish, "lm-eval": harnessed, "transformers": alone}


def right(rows: Sequence[Example], told: Sequence[np.ndarray]) -> dict[str, float]:
    """acc and acc_norm as lm-eval's api/task.py has them."""
    gold = [LETTERS.index(str(row.label)) for row in rows]
    sizes = [np.array([len(choice) for choice in row.choices]) for row in rows]
    plain = [int(np.argmax(own)) == at for own, at in zip(told, gold, strict=True)]
    normed = [int(np.argmax(own / size)) == at for own, size, at in zip(told, sizes, gold, strict=True)]
    return {"acc": float(np.mean(plain)), "acc_norm": float(np.mean(normed))}


def scores(folder: Path, shared: Path, name: str, many: int) -> dict[str, Any]:
    """How far the three are apart on the first rows that a real model's context holds."""
    ready = asked_choices(folder)
    asked = [(row, *ready.choice_ids(row)) for row in questions(shared, name)]
    context = ready.encoding.max_length
    rows = [row for row, prompt, said in asked if len(prompt) + max(map(len, said)) < context][:many]
    told = {who: pick(rows) for who, pick in pickers(ready, 8).items()}
    flat = {who: np.concatenate(own) for who, own in told.items()}
    turned = np.concatenate(pickers(replace(ready, budget=64), 8)["burnish"](rows[::-1])[::-1])
    return {
        "rows": len(rows),
        "max_score_difference": {who: apart(flat["burnish"], flat[who]) for who in flat if who != "burnish"},
        "other_order_and_batch_size": apart(turned, flat["burnish"]),
        "right": {who: right(rows, own) for who, own in told.items()},
    }


def speed(ready: Answerer, rows: Sequence[Example], part: Sequence[Example]) -> dict[str, Any]:
    """Burnish on `rows` and the peers on `part` of them, in interleaved rounds; scores compared on the same rows."""
    trial = {size: clocked(lambda size=size: pickers(ready, size)["lm-eval"](part[:4]))[0] for size in (1, 4, 16)}
    size = min(trial, key=lambda size: trial[size])
    picks = pickers(ready, size)
    seconds, worst = dict.fromkeys(picks, 0.0), dict.fromkeys(picks, 0.0)
    picks["burnish"](rows[:4])
    for turn in range(ROUNDS):
        seconds["burnish"] += clocked(lambda: picks["burnish"](rows[turn::ROUNDS]))[0]  # noqa: B023
        others = part[turn::ROUNDS]
        wanted = np.concatenate(picks["burnish"](others))
        for who in ("lm-eval", "transformers"):
            took, said = clocked(lambda: picks[who](others))  # noqa: B023
            seconds[who] += took
            worst[who] = max(worst[who], apart(np.concatenate(said), wanted))
    rates = {who: (len(rows) if who == "burnish" else len(part)) / took for who, took in seconds.items()}
    asked = [ready.choice_ids(row) for row in part]
    told = {
        "tokens_per_question": round(float(np.mean([len(prompt) for prompt, _ in asked])), 1),
        "tokens_per_choice": round(float(np.mean([len(ids) for _, said in asked for ids in said])), 1),
        "rows": len(rows),
        "peer_rows": len(part),
        "lm_eval_batch_size": size,
        "rows_per_second": {who: round(rate, 3) for who, rate in rates.items()},
        "ratio": {who: round(rates["burnish"] / rates[who], 2) for who in rates if who != "burnish"},
        "max_score_difference": {who: worst[who] for who in rates if who != "burnish"},
    }
    print(json.dumps(told), flush=True)
    return told


def measured(shared: Path, models: Sequence[Path], rows: int, peer_rows: int, folder: Path) -> dict[str, Any]:
    """Multiple choice: scores on real models, speed on the random Llama, which is made in `folder`."""
    scored = {}
    for model in models:
        for name in BENCHMARKS:
            scored[f"{model.name}, {name}"] = told = scores(model, shared, name, rows)
            print(json.dumps({f"{model.name}, {name}": told}), flush=True)
    shutil.copytree(shared / "models/tokenizers/gpt2", folder, dirs_exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**LLAMA, "vocab_size": 50257}))  # the tokenizer's own
    ready, fast = asked_choices(folder, random=True), {}
    for name in BENCHMARKS:
        asked = questions(shared, name)
        for shots in (0, 5):
            some = [behind(asked[:shots], row) for row in asked[5 : rows + 5]]
            fast[f"{name}, {shots} shots"] = speed(ready, some, some[:: max(len(some) // peer_rows, 1)][:peer_rows])
    return {
        "rows_per_second_ratio": {
            who: min(part["ratio"][who] for part in fast.values()) for who in ("transformers", "lm-eval")
        },
        "max_score_difference": max(max(part["max_score_difference"].values()) for part in scored.values()),
        "speed": fast,
        "scores": scored,
    }
