"""How fast rows are judged, and that the scores are the peers': eight-shot classification of SST-2, multiple choice.

    BURNISH_SHARED=FOLDER python benchmarks/evaluate.py [--rows N] [--peer-rows N] [--dtype float32] [--json]

Speed: a Llama of 135M parameters with random weights (its scores are compared too); the programs work in turns in one
process, on the same weights and ids; the peers' model is transformers' own.  Burnish is timed from the rows on,
rendering and tokenising included; the peers are given finished ids.  "transformers" is one plain pass for
each row and label (one for each row where labels have one token), logits asked at the last places only; lm-eval is its
HFLM with the batch size that was fastest.  Peers answer every n-th row (`--peer-rows`), and rates are per row.
The ratio is the smaller of two cases: labels of one token, the peers' best, and labels with their end, as rungs ask.
Scores: real small models, as many shots as their context holds, every label of every row, in float32, and again in
float64 to tell rounding from mistakes: how far each program is from its own model in float64.  Differences are of a
score where it is more than one nat (1e-5 of it is then a float32's last two digits), else in nats.

Multiple choice: ARC-easy and HellaSwag, every choice of a row scored behind its question.  All three are given texts,
and lm-eval makes ids of them itself, so that the requests are equal and not only the arithmetic; zero-shot on the real
models for the scores, and on the random Llama, also five-shot, for the speed.

FOLDER holds data/sentiment-sst2, data/bench-arc-easy, data/bench-hellaswag, models/tokenizers/gpt2 and
models/stories260k-llama.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from burnish import kinds
from burnish.generate import engine
from burnish.generate.answer import Answerer
from burnish.models import base, load
from burnish.models.base import Head
from burnish.records import LETTERS, Example, Message, Where
from burnish.tokens import ask
from burnish.tokens.contract import Contract
from burnish.tokens.template import Template
from burnish.tokens.tokenizer import Tokenizer

LABELS = ("bad", "good")
INSTRUCTION = "Is this review bad or good?"
VOCABULARY = 49152
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
ROUNDS = 4
Ids = list[int]
Score = Callable[[Sequence[Ids], Sequence[Ids]], np.ndarray]  # prompts, answers -> (N, C) log-probabilities


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


def answerer(folder: Path, random: bool = False, choosing: bool = False) -> Answerer:
    tokenizer, found = Tokenizer.load(folder), base.inspect(str(folder), random=random)
    goal, shape = ("choose", "choices") if choosing else ("classify", "labelled")
    labels, told = (tuple(LETTERS), "") if choosing else (LABELS, INSTRUCTION)
    template = Template.choose("auto", shape, tokenizer)
    contract = Contract(
        goal, shape, "answers", template.name, template.text, found.context, "error", "language", labels,
        instruction=told,
    )  # fmt: skip
    return Answerer(load.load(found, Head("language")).eval(), tokenizer, contract)


def ours(ready: Answerer) -> Score:
    return lambda prompts, answers: engine.choices(ready.model, prompts, answers, ready.budget, ready.pad)


def plainly(hf: Any) -> Score:
    """transformers, a row at a time."""

    @torch.no_grad()
    def score(prompts: Sequence[Ids], answers: Sequence[Ids]) -> np.ndarray:
        told = np.zeros((len(prompts), len(answers)))
        for i, prompt in enumerate(prompts):
            if all(len(answer) == 1 for answer in answers):
                logits = hf(torch.tensor([prompt]), use_cache=False, logits_to_keep=1).logits[0, -1]
                told[i] = torch.log_softmax(logits.float(), -1)[[answer[0] for answer in answers]].numpy()
                continue
            for j, answer in enumerate(answers):
                ids = torch.tensor([prompt + answer[:-1]])
                logits = hf(ids, use_cache=False, logits_to_keep=len(answer)).logits[0]
                odds = torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), -1)
                told[i, j] = float(odds[range(len(answer)), answer].double().sum())
        return told

    return score


def harness(hf: Any, tokenizer: Any, size: int) -> Score:
    """lm-eval's HFLM around the same model, given ids."""
    from lm_eval.models.huggingface import HFLM  # type: ignore[import-untyped]

    told = HFLM(pretrained=hf, tokenizer=tokenizer, batch_size=size, max_length=hf.config.max_position_embeddings)

    def score(prompts: Sequence[Ids], answers: Sequence[Ids]) -> np.ndarray:
        asked = [((str(i), str(j)), p, a) for i, p in enumerate(prompts) for j, a in enumerate(answers)]
        scores = [value for value, _ in told._loglikelihood_tokens(asked, disable_tqdm=True)]
        return np.array(scores).reshape(len(prompts), len(answers))

    return score


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference, of a score where it is more than one nat."""
    return float((np.abs(a - b) / np.maximum(np.abs(b), 1)).max())


def untouched(ready: Answerer) -> Any:
    """The same weights in a model that transformers made."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = ready.model.hf.dtype
    hf = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(ready.model.base.folder), dtype=kind).eval()
    hf.load_state_dict(ready.model.hf.state_dict())
    return hf.requires_grad_(False)


def clocked(score: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    told = score()
    return time.perf_counter() - start, told


def speed(shared: Path, rows: int, peer_rows: int, dtype: str, folder: Path) -> dict[str, Any]:
    """Rows a second of all three on the random Llama, in interleaved rounds, and how far their scores are apart."""
    from transformers import AutoTokenizer

    shutil.copytree(shared / "models/tokenizers/gpt2", folder, dirs_exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    ready = answerer(folder, random=True)
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
    trial = {size: clocked(lambda score=score: score(given[:8], answers))[0] for size, score in trials.items()}
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

    ready = answerer(folder)
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


def choice_scores(folder: Path, shared: Path, name: str, many: int) -> dict[str, Any]:
    """How far the three are apart on the first rows that a real model's context holds."""
    ready = answerer(folder, choosing=True)
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


def choice_speed(ready: Answerer, rows: Sequence[Example], part: Sequence[Example]) -> dict[str, Any]:
    """Burnish on `rows` and the peers on `part` of them, in interleaved rounds; scores compared on the same rows."""
    trial = {size: clocked(lambda size=size: pickers(ready, size)["lm-eval"](part[:8]))[0] for size in (1, 4, 16)}
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


BENCHMARKS = ("bench-arc-easy", "bench-hellaswag")


def choices(shared: Path, models: Sequence[Path], rows: int, peer_rows: int, folder: Path) -> dict[str, Any]:
    """Multiple choice: scores on real models, speed on the random Llama, which is made in `folder`."""
    scored = {}
    for model in models:
        for name in BENCHMARKS:
            scored[f"{model.name}, {name}"] = told = choice_scores(model, shared, name, rows)
            print(json.dumps({f"{model.name}, {name}": told}), flush=True)
    shutil.copytree(shared / "models/tokenizers/gpt2", folder, dirs_exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**LLAMA, "vocab_size": 50257}))  # the tokenizer's own
    ready, fast = answerer(folder, random=True, choosing=True), {}
    for name in BENCHMARKS:
        asked = questions(shared, name)
        for shots in (0, 5):
            some = [behind(asked[:shots], row) for row in asked[5 : rows + 5]]
            fast[f"{name}, {shots} shots"] = choice_speed(
                ready, some, some[:: max(len(some) // peer_rows, 1)][:peer_rows]
            )
    return {
        "rows_per_second_ratio": {
            who: min(part["ratio"][who] for part in fast.values()) for who in ("transformers", "lm-eval")
        },
        "max_score_difference": max(max(part["max_score_difference"].values()) for part in scored.values()),
        "speed": fast,
        "scores": scored,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--peer-rows", type=int, default=250, help="the peers' rows, evenly taken from those")
    parser.add_argument("--score-rows", type=int, default=200, help="rows whose scores are compared; choices' rows")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on a line of its own")
    told = parser.parse_args()
    if "BURNISH_SHARED" not in os.environ:
        print("Set BURNISH_SHARED to a folder that holds data/ and models/", file=sys.stderr)
        return 2
    import lm_eval  # type: ignore[import-untyped]
    import transformers

    shared = Path(os.environ["BURNISH_SHARED"])
    models = (base.find("burnish-tiny"), shared / "models/stories260k-llama")
    real = {folder.name: scores(folder, shared, told.score_rows) for folder in models}
    for name, part in real.items():
        print(json.dumps({name: part}), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        fast = speed(shared, told.rows, min(told.peer_rows, told.rows), told.dtype, Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        picked = choices(shared, models, told.score_rows, max(told.peer_rows // 8, ROUNDS), Path(folder))
    least = {who: min(part["ratio"][who] for part in fast.values()) for who in ("transformers", "lm-eval")}
    report = {
        "rows_per_second_ratio": least,
        "max_score_difference": max(max(part["max_score_difference"].values()) for part in real.values()),
        "dtype": told.dtype,
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "lm_eval": lm_eval.__version__,
        },
        "speed": fast,
        "scores": real,
        "choices": picked,
    }
    print(json.dumps(report if told.json else {name: report[name] for name in list(report)[:2]}))
    ahead = all(value >= 5 for value in least.values())
    return 0 if ahead and max(report["max_score_difference"], picked["max_score_difference"]) <= 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())
