"""A preference row becomes two rows with one prompt, of which only the answers count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from burnish.records import Example, Message, Where
from burnish.tokens import cache
from burnish.tokens.encode import Encoding, RowProblem, encode_all
from burnish.tokens.rows import VIRTUAL
from burnish.tokens.template import Template

TURNS = (Message("user", "Is it a heron?"), Message("assistant", "Yes.", 0.0), Message("user", "Why?"))
BETTER, WORSE = "It is grey, and stands in water.", "It is."
ROW = Example("preference", Where("pairs.jsonl", 3), (*TURNS, Message("assistant", BETTER)), choices=(BETTER, WORSE))


def encoding(kind: str, factory: Any, **own: Any) -> Encoding:
    told = tiny.tokenizer(kind, factory)
    family = "decoder" if kind in tiny.DECODERS else "encoder-decoder"
    template = Template.choose("plain", "preference", told)
    return replace(Encoding(told, template, family, "pairs", 400), **own)


def test_only_the_two_answers_count(tmp_path_factory: Any) -> None:
    how = encoding("llama", tmp_path_factory)
    (row,), cut = how.encode(ROW)
    assert cut == 0
    assert row.rejected is not None
    for one, answer in ((row, BETTER), (row.rejected, WORSE)):
        taught = one.ids[one.weights > 0].tolist()
        assert how.tokenizer.decode(taught).strip() == answer
        assert taught[-1] in how.tokenizer.closing_ids
        prompt = how.prompt_ids(TURNS)
        assert one.ids[: len(prompt)].tolist() == prompt
        assert not one.weights[: len(prompt)].any()
    assert row.shared >= len(how.prompt_ids(TURNS)) - 1


def test_a_long_prompt_is_cut_alike_for_both(tmp_path_factory: Any) -> None:
    long = replace(ROW, messages=(Message("user", "word " * 40), *ROW.messages[1:]), id="")
    how = encoding("llama", tmp_path_factory, max_length=160)
    with pytest.raises(RowProblem, match="more than the 160"):
        how.encode(long)
    (row,), cut = replace(how, too_long="cut-prompt").encode(long)
    assert cut > 0
    assert row.rejected is not None
    assert len(row.ids) <= 160
    size = int(np.argmax(row.weights > 0))
    assert row.ids[:size].tolist() == row.rejected.ids[:size].tolist()
    assert how.tokenizer.decode(row.ids[row.weights > 0].tolist()).strip() == BETTER


def test_virtual_tokens_stand_before_both(tmp_path_factory: Any) -> None:
    (row,), _ = encoding("llama", tmp_path_factory, virtual=3).encode(ROW)
    assert row.rejected is not None
    for one in (row, row.rejected):
        assert one.ids[:3].tolist() == [VIRTUAL, VIRTUAL + 1, VIRTUAL + 2]
        assert len(one.ids) == len(one.weights)


def test_one_answer_is_no_pair(tmp_path_factory: Any) -> None:
    with pytest.raises(RowProblem, match="1 ranked answers"):
        encoding("llama", tmp_path_factory).encode(replace(ROW, choices=(BETTER,), id=""))


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_pairs_come_back_from_the_cache(
    kind: str, tmp_path: Path, tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BURNISH_HOME", str(tmp_path))
    made = encode_all([ROW], encoding(kind, tmp_path_factory))
    (row,), (kept,) = made[0], cache.rows("key", lambda: made).rows
    assert kept.rejected is not None
    assert row.rejected is not None
    for one, other in ((row, kept), (row.rejected, kept.rejected)):
        assert (one.example, one.where) == (other.example, other.where)
        assert one.ids.tolist() == other.ids.tolist()
        assert one.weights.tolist() == other.weights.tolist()
        assert (one.source is None) == (other.source is None)
        assert one.source is None or one.source.tolist() == other.source.tolist()
    assert made[2].trained == row.supervised
