"""What travels with Burnish: a base that is small, open and whole, and two data sets of the promised size."""

import csv
from pathlib import Path

import pytest
import torch
import transformers

from burnish.data.prepare import look
from burnish.models import base, load
from burnish.tokens.tokenizer import Tokenizer

ROOT = Path(__file__).parent.parent


def test_the_embedded_base_is_small_and_whole():
    found = base.inspect("burnish-tiny")
    assert found.kind == "decoder"
    assert sum(path.stat().st_size for path in found.folder.iterdir()) <= 16_000_000
    assert base.license_of(found.folder) == "apache-2.0"
    tokenizer = Tokenizer.load(found.folder)
    assert tokenizer.chat_template
    assert tokenizer.id("eos") in tokenizer.eos_ids


def test_plain_transformers_reads_it_as_we_do():
    found = base.inspect("burnish-tiny")
    ours = load.load(found, base.Head("language")).eval()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(str(found.folder), dtype=torch.float32).eval()
    told = transformers.AutoTokenizer.from_pretrained(str(found.folder))
    ids = told("Once upon a time there was a miller.", return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == Tokenizer.load(found.folder).encode("Once upon a time there was a miller.")
    with torch.no_grad():
        assert torch.equal(ours.hf(ids).logits, theirs(ids).logits)
        nll = theirs(ids, labels=ids).loss.item()
    assert nll < 5  # ln 4096 is 8.3: it has learned English, not much


def test_the_reviews_are_as_many_and_as_flawed_as_they_say():
    path = ROOT / "examples" / "reviews" / "reviews.csv"
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) >= 800
    assert len({row["text"] for row in rows}) < len(rows)
    assert {row["label"] for row in rows} == {"negative", "neutral", "positive"}
    assert look(path).task == "classify"


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "tales").glob("*.txt")), ids=lambda path: path.stem)
def test_a_tale_is_a_tale(path):
    assert 400 <= len(path.read_text(encoding="utf-8").split()) <= 900


def test_there_are_two_dozen_tales():
    assert len(list((ROOT / "examples" / "tales").glob("*.txt"))) >= 24
