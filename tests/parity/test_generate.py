"""Greedy texts of real, downloaded models are those of plain transformers, id for id."""

import itertools
import random

import pytest
import torch
import transformers

from burnish.generate import engine
from burnish.generate.answer import Answerer
from burnish.models import base, load
from burnish.models.base import Head
from burnish.records import Example, Message, Where
from burnish.store import read_jsonl
from burnish.tokens.contract import Contract
from burnish.tokens.template import Template
from burnish.tokens.tokenizer import Tokenizer

pytestmark = pytest.mark.real


def ready(folder, most):
    tokenizer = Tokenizer.load(folder)
    found = base.inspect(str(folder))
    raw = Template.choose("raw", "prompt", tokenizer).text
    contract = Contract("answer", "prompt", "answers", "raw", raw, found.context, "error")
    return Answerer(load.load(found, Head("language")).eval(), tokenizer, contract, most)


def asked(text, answer="?"):
    return Example("prompt", Where("made", 1), (Message("user", text), Message("assistant", answer)))


def test_stories260k_goes_on_as_transformers_does(shared):
    told = ready(shared / "models/stories260k-llama", 60)
    hf = transformers.AutoModelForCausalLM.from_pretrained(told.tokenizer.folder).eval()
    prompts = [told.prompt_ids(asked(text)) for text in ("Once upon a time", "The dog", "Lily and Tom went to the")]
    made = engine.generate(told.model, prompts, told.stops, 60, 4096, pad=told.pad)
    for prompt, row in zip(prompts, made, strict=True):
        with torch.no_grad():
            said = hf.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=60, pad_token_id=0)
        assert [*prompt, *row.ids] == said[0].tolist()[: len(prompt) + len(row.ids)]


def test_g2p_bart_spells_as_transformers_does(shared):
    """Real words of the test file; the whole answer, its end included."""
    told = ready(shared / "models/g2p-bart-en-us", 40)
    hf = transformers.AutoModelForSeq2SeqLM.from_pretrained(told.tokenizer.folder).eval()
    rows = list(itertools.islice(read_jsonl(shared / "data/g2p-pronunciation/us-dev.jsonl"), 40))
    texts = [next(value for value in row.values() if isinstance(value, str)) for row in rows]
    for text, row in zip(texts, told.answer([asked(text) for text in texts]), strict=True):
        with torch.no_grad():
            source = torch.tensor([told.tokenizer.encode_plain(text)])
            said = hf.generate(source, do_sample=False, num_beams=1, max_new_tokens=40)[0].tolist()
        assert row.text == told.tokenizer.decode(said).strip()
        assert row.finished


def test_sort_gpt2_sorts_what_fills_its_context(shared):
    """Six letters in, six out, of a context of eleven: the last one is not read any more."""
    told = ready(shared / "models/sort-gpt2-nano", 6)
    draw = random.Random(0)
    texts = ["".join(draw.choices("ABC", k=6)) for _ in range(100)]
    answers = list(told.answer([asked(text, "".join(sorted(text))) for text in texts]))
    assert [row.text for row in answers] == ["".join(sorted(text)) for text in texts]
    assert not any(row.problem for row in answers)
