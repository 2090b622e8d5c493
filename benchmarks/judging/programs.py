"""What both races need: a random Llama, the three programs on the same weights, a clock, and a difference."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from burnish.generate.answer import Answerer
from burnish.models import base, load
from burnish.models.base import Head
from burnish.tokens.contract import Contract
from burnish.tokens.template import Template
from burnish.tokens.tokenizer import Tokenizer

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


def answerer(
    folder: Path, goal: str, shape: str, labels: Sequence[str], instruction: str = "", random: bool = False
) -> Answerer:
    """A base, real or random, that is asked for one of `labels`, or of a row's own choices."""
    tokenizer, found = Tokenizer.load(folder), base.inspect(str(folder), random=random)
    template = Template.choose("auto", shape, tokenizer)
    contract = Contract(
        goal, shape, "answers", template.name, template.text, found.context, "error", "language", tuple(labels),
        instruction=instruction,
    )  # fmt: skip
    return Answerer(load.load(found, Head("language")).eval(), tokenizer, contract)


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
    """(seconds of the processor, so that other processes do not count; what it gave)."""
    start = time.process_time()
    told = score()
    return time.process_time() - start, told
