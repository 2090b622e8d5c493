"""Log-likelihoods of choices, and what is right by them, are those of the Language Model Evaluation Harness.

It is given texts and makes its own ids.  Tolerance 1e-5 of a score (of a nat where it is smaller): float32 keeps 6e-8
of each sum, a score adds a hundred logits' worth of them, and ours are told to six decimals.
"""

import numpy as np
import pytest
import transformers

from burnish.data.shapes import choices
from burnish.evaluate.scores import Scoring
from burnish.generate.answer import Answerer
from burnish.models import base, load
from burnish.models.base import Head
from burnish.records import LETTERS, Where
from burnish.store import read_jsonl
from burnish.tokens.contract import Contract
from burnish.tokens.template import Template
from burnish.tokens.tokenizer import Tokenizer

pytest.importorskip("lm_eval", reason="lm-eval is not installed")
pytestmark = pytest.mark.slow  # it takes seconds to import
MADE = [
    {
        "query": "Question: What fell on the hill?\nAnswer:",
        "choices": ["old snow", "old snow, and then rain"],
        "gold": 0,
    },
    {"query": "The miller's daughter could", "choices": ["hear the river think.", "fly", "café Łódź 今天"], "gold": 2},
    {"query": "One day", "choices": ["a", "b", "c", "a dog came by."], "gold": 3},
]


def compared(folder, rows, bos):
    """Ours and lm-eval's: log-likelihoods, acc and acc_norm as its `process_results` has them."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    tokenizer, found = Tokenizer.load(folder), base.inspect(str(folder))
    template = Template.choose("auto", "choices", tokenizer)
    told = ("answers", template.name, template.text, found.context, "error", "language", tuple(LETTERS))
    ready = Answerer(load.load(found, Head("language")).eval(), tokenizer, Contract("choose", "choices", *told))
    columns = {"context": "query", "choices": "choices", "index": "gold"}
    read = [choices.to_example(row, columns, Where("a.jsonl", i + 1)) for i, row in enumerate(rows)]
    said = list(ready.answer(read))
    hf = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    own = transformers.AutoTokenizer.from_pretrained(folder)
    peer = HFLM(pretrained=hf, tokenizer=own, batch_size=4, max_length=found.context, add_bos_token=bos)
    right: dict[str, list[bool]] = {"accuracy": [], "accuracy-norm": []}
    for row, item in zip(read, said, strict=True):
        pairs = [(row.prompt[0].content, f" {choice}") for choice in row.choices]
        asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
        lls = np.array([value for value, _ in peer.loglikelihood(asked, disable_tqdm=True)])
        assert item.loglikelihoods == pytest.approx(lls, rel=1e-5, abs=1e-5)
        gold = LETTERS.index(row.label)
        right["accuracy"].append(np.argmax(lls) == gold)
        right["accuracy-norm"].append(np.argmax(lls / [float(len(choice)) for choice in row.choices]) == gold)
    for metric, wanted in right.items():
        assert Scoring(metric, read, tuple(LETTERS)).value(said) == np.mean(wanted)


def test_the_embedded_base():
    compared(base.find("burnish-tiny"), MADE, bos=bool(Tokenizer.load(base.find("burnish-tiny")).prefix))


@pytest.mark.real
@pytest.mark.parametrize("name", ["bench-arc-easy/train.jsonl", "bench-hellaswag/data.jsonl"])
def test_a_real_model_on_the_benchmarks_of_the_field(shared, name):
    """A tokenizer of whole words and a model with a BOS; rows that its 512 places hold."""
    rows = [row for row in read_jsonl(shared / "data" / name) if len(row["query"]) < 300][:20]
    compared(shared / "models/stories260k-llama", rows, bos=True)
