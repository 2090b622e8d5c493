"""Rows become ids and weights: too long rows, documents, labels, sources of an encoder-decoder, and what adds up."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_tokens import (
    CHATS,
    byte_level,
    conversations,
    document,
    encoding,
    example,
    pieces,
    template,
    tokenizer_for,
    word_pieces,
)

from burnish.records import Example, Message, Where
from burnish.tokens.encode import RowProblem, encode_all
from burnish.tokens.rows import Tokens
from burnish.tokens.tokenizer import Tokenizer

RAW = template("raw")
LONG = [Message("system", "Be brief."), Message("user", "What is the capital? " * 30), Message("assistant", "Paris.")]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(byte_level(tmp_path_factory.mktemp("bytes")))


@pytest.fixture(scope="module")
def with_bos(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(byte_level(tmp_path_factory.mktemp("bos"), "<s>"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(word_pieces(tmp_path_factory.mktemp("bert")))


@pytest.fixture(scope="module")
def seq2seq(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(pieces(tmp_path_factory.mktemp("pieces")))


def refused(ours: Tokenizer, row: Example, **changes: object) -> RowProblem:
    told = changes.pop("template", RAW)
    with pytest.raises(RowProblem) as problem:
        encoding(ours, told, **changes).encode(row)  # type: ignore[arg-type]
    assert problem.value.problem.example == row.id
    assert problem.value.problem.where == str(row.where)
    return problem.value


# --- rows longer than the model ---


@pytest.mark.parametrize(("policy", "severity"), [("error", "error"), ("drop", "warning"), ("split", "error")])
def test_a_conversation_too_long_is_a_problem(ours: Tokenizer, policy: str, severity: str) -> None:
    told = refused(ours, example(LONG), max_length=60, too_long=policy, template=template("plain"))
    assert told.problem.severity == severity
    assert "60" in told.what
    assert told.do


@pytest.mark.parametrize("name", [*CHATS, "plain", "raw", "spaced"])
@pytest.mark.parametrize("limit", [50, 60, 97])
def test_cut_prompt_keeps_the_structure_and_the_whole_answer(name: str, limit: int, tmp_path: Path) -> None:
    tokenizer = tokenizer_for(name, tmp_path)
    whole = encoding(tokenizer, template(name)).encode(example(LONG))[0][0]
    short = encoding(tokenizer, template(name), max_length=limit, too_long="cut-prompt")
    ((row,), cut) = short.encode(example(LONG))
    assert row.length <= limit
    assert row.length + cut == whole.length
    taught, before = row.weights > 0, whole.weights > 0
    assert row.ids[taught].tolist() == whole.ids[before].tolist()
    controls = tokenizer.special_ids
    assert [i for i in row.ids if i in controls] == [i for i in whole.ids if i in controls]
    assert "Be brief." in tokenizer.decode(row.ids.tolist())
    assert "What is the" in tokenizer.decode(row.ids.tolist())
    prompt = short.prompt_ids(short.fit(example(LONG))[:-1])
    assert row.ids[: len(prompt)].tolist() == prompt


def test_several_long_turns_share_the_cut(ours: Tokenizer) -> None:
    turns = [Message("user", "one " * 60), Message("assistant", "A."), Message("user", "two " * 60)]
    turns += [Message("assistant", "B.")]
    row = encoding(ours, template("plain"), max_length=70, too_long="cut-prompt").encode(example(turns))[0][0]
    told = ours.decode(row.ids.tolist())
    assert row.length <= 70
    assert "one" in told
    assert "two" in told
    assert ours.decode(row.ids[row.weights > 0].tolist(), special=True) == "A.<|endoftext|>B.<|endoftext|>"


def test_a_cut_falls_between_characters(ours: Tokenizer) -> None:
    turns = [Message("user", "日本語🙂" * 40), Message("assistant", "はい")]
    for limit in range(60, 70):
        row = encoding(ours, RAW, max_length=limit, too_long="cut-prompt").encode(example(turns))[0][0]
        assert row.length <= limit
        assert "�" not in ours.decode(row.ids.tolist())


def test_a_prompt_is_shortened_in_answers_before_it_too(ours: Tokenizer) -> None:
    turns = (Message("user", "x"), Message("assistant", "fox " * 300), Message("user", "y"))
    told = encoding(ours, template("plain"), max_length=150)
    fitted = told.fit_prompt(example(turns), 100)
    assert len(told.prompt_ids(fitted)) <= 100
    assert [turn.content for turn in fitted[::2]] == ["x", "y"]
    assert turns[1].content.startswith(fitted[1].content)


def test_an_answer_is_never_cut(ours: Tokenizer) -> None:
    turns = [Message("user", "Why?"), Message("assistant", "because " * 100)]
    told = refused(ours, example(turns), max_length=50, too_long="cut-prompt")
    assert "no room" in told.what


@settings(max_examples=40, deadline=None)
@given(text=st.text(min_size=1, max_size=200), limit=st.integers(2, 30), end=st.booleans())
def test_a_split_document_teaches_every_token_but_the_first_once(
    ours: Tokenizer, with_bos: Tokenizer, text: str, limit: int, end: bool
) -> None:
    for tokenizer in (ours, with_bos):
        wanted = [*tokenizer.prefix, *tokenizer.encode_text(text)] + ([tokenizer.id("eos")] if end else [])
        if len(wanted) < 2:
            continue
        rows, cut = encoding(tokenizer, RAW, target="document", max_length=limit, too_long="split", end=end).encode(
            document(text)
        )
        assert cut == 0
        assert all(row.length <= limit for row in rows)
        assert np.concatenate([row.ids[row.weights > 0] for row in rows]).tolist() == wanted[1:]
        for left, right in itertools.pairwise(rows):
            assert right.ids[0] == left.ids[-1]  # what the first target of a piece is predicted from
        assert sum(int(tokenizer.id("bos") in row.ids) for row in rows) == (tokenizer is with_bos)


def test_an_encoders_document_is_split_without_overlap_and_hides_no_control_token(bert: Tokenizer) -> None:
    text = "the capital of france is paris " * 20
    rows, _ = encoding(bert, RAW, kind="encoder", target="document", max_length=16, too_long="split").encode(
        document(text)
    )
    assert np.concatenate([row.ids for row in rows]).tolist() == bert.encode_plain(text)
    assert not any(np.isin(row.ids[row.weights > 0], list(bert.special_ids)).any() for row in rows)


def test_a_document_has_no_prompt_to_cut(ours: Tokenizer) -> None:
    told = refused(ours, document("a b c d e f g h"), target="document", max_length=4, too_long="cut-prompt")
    assert "split" in told.do
    refused(ours, document("a b c d e f g h"), target="document", max_length=4, too_long="error")
    assert (
        refused(ours, document("a b c d e"), target="document", max_length=2, too_long="drop").problem.severity
        == "warning"
    )


# --- documents and labels ---


def test_a_control_token_in_a_document_is_text(ours: Tokenizer, with_bos: Tokenizer) -> None:
    for tokenizer in (ours, with_bos):
        row = encoding(tokenizer, RAW, target="document").encode(document("a <|im_end|> b</s><|endoftext|>"))[0][0]
        controls = [i for i in row.ids.tolist() if i in tokenizer.special_ids]
        assert controls == [*tokenizer.prefix, tokenizer.id("eos")]


@pytest.mark.parametrize("forged", ["[SEP]", "[CLS] x [MASK]"])
def test_a_control_token_in_a_labelled_text_is_text(bert: Tokenizer, forged: str) -> None:
    row = Example("labelled", Where("t.csv", 2), text=f"paris {forged}", label="yes")
    tokens = encoding(bert, RAW, kind="encoder", target="label", labels={"no": 0, "yes": 1}).encode(row)[0][0]
    known = {bert.id("cls"), bert.id("sep"), bert.id("mask")}
    assert [i for i in tokens.ids.tolist() if i in known] == [bert.id("cls"), bert.id("sep")]
    assert tokens.label == 1


def test_labels_become_indices_vectors_and_standard_numbers(bert: Tokenizer) -> None:
    row = Example("labelled", Where("t.csv", 2), text="paris", label="yes")
    told = {"kind": "encoder", "target": "label"}
    labels = {"no": 0, "yes": 1, "so": 2}
    assert encoding(bert, RAW, labels=labels, **told).encode(row)[0][0].label == 1
    many = replace(row, label=("yes", "so"))
    assert encoding(bert, RAW, labels=labels, multi=True, **told).encode(many)[0][0].label.tolist() == [0, 1, 1]
    none = replace(row, label=())
    assert encoding(bert, RAW, labels=labels, multi=True, **told).encode(none)[0][0].label.tolist() == [0, 0, 0]
    number = encoding(bert, RAW, mean=2.0, deviation=4.0, **told).encode(replace(row, label=10.0))[0][0].label
    assert number == 2.0
    assert '"maybe"' in refused(bert, replace(row, label="maybe"), labels=labels, **told).what


def test_a_labelled_text_too_long_is_cut_at_its_end_or_refused(bert: Tokenizer) -> None:
    row = Example("labelled", Where("t.csv", 2), text="the capital of france " * 20, label="yes")
    told = {"kind": "encoder", "target": "label", "labels": {"yes": 0}, "max_length": 12}
    ((tokens,), cut) = encoding(bert, RAW, too_long="cut-prompt", **told).encode(row)
    assert len(tokens.ids) == 12
    assert tokens.ids[0] == bert.id("cls")
    assert tokens.ids[-1] == bert.id("sep")
    assert cut + 12 == len(bert.encode_plain(row.text))
    refused(bert, row, **told)
    refused(bert, replace(row, pair="x"), too_long="cut-prompt", **told)


def test_two_texts_are_parted_by_the_tokenizer_or_else_by_the_contract(ours: Tokenizer, bert: Tokenizer) -> None:
    row = Example("labelled", Where("p.csv", 2), text="A plane is taking off.", pair="An air plane", label="a")

    def told(tokenizer: Tokenizer, separator: str) -> Tokens:
        given = {"kind": "decoder", "target": "label", "labels": {"a": 0}, "separator": separator}
        return encoding(tokenizer, RAW, **given).encode(row)[0][0]

    assert (ours.separator, bert.separator) == ("\n", "")
    assert ours.decode(told(ours, ours.separator).ids.tolist()) == f"{row.text}\n{row.pair}"
    assert ours.decode(told(ours, "").ids.tolist()) == f"{row.text}{row.pair}"  # what older artifacts learned
    assert told(bert, bert.separator).ids.tolist() == bert.encode_plain(row.text, row.pair)


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_a_text_without_a_token_is_a_problem(bert: Tokenizer, text: str) -> None:
    row = Example("labelled", Where("t.csv", 2), text=text, label="yes")
    assert "no token" in refused(bert, row, kind="encoder", target="label", labels={"yes": 0}).what
    assert "no token" in refused(bert, document(text), kind="encoder", target="document").what


# --- what adds up ---


def test_counts_add_up(ours: Tokenizer) -> None:
    talks = [example(messages, line) for line, messages in enumerate(conversations())]
    talks += [example(LONG, 98), example([Message("user", "x"), Message("assistant", "because " * 200)], 99)]
    told = encoding(ours, template("plain"), max_length=150, too_long="cut-prompt")
    rows, problems, count = encode_all(talks, told)
    assert count.rows + len(problems) == len(talks)
    assert count.pieces == len(rows)
    assert count.kept == sum(row.length for row in rows)
    assert count.trained == sum(int((row.weights > 0).sum()) for row in rows)
    assert count.masked + count.trained == count.kept
    assert count.longest == max(row.length for row in rows) <= 150
    failed = {problem.example for _, problem in problems}
    free = [replace(told, max_length=10**6).encode(row)[0][0].length for row in talks if row.id not in failed]
    assert count.kept + count.cut == sum(free)
    assert count.cut > 0
    assert problems
    assert set(count.to_json()) >= {"tokens_kept", "tokens_cut", "tokens_masked", "tokens_trained"}


def test_unknown_tokens_are_counted_and_an_end_of_text_is_not_one(bert: Tokenizer, tmp_path: Path) -> None:
    rows = [document("paris ☃ ☂")]
    _, _, count = encode_all(rows, encoding(bert, RAW, kind="encoder", target="document"))
    assert count.unknown == 2
    gpt2 = Tokenizer.load(byte_level(tmp_path, bos_token="<|endoftext|>", unk_token="<|endoftext|>"))
    _, _, count = encode_all(rows, encoding(gpt2, RAW, target="document"))
    assert count.unknown == 0


@pytest.mark.parametrize("name", ["plain", "chatml"])
def test_a_row_that_teaches_nothing_is_a_problem(ours: Tokenizer, name: str) -> None:
    told = template(name)
    for turns in ([Message("user", "a")], [Message("user", "a"), Message("assistant", "b", weight=0.0)]):
        assert "no token to train on" in refused(ours, example(turns), template=told).what


def test_weight_marks_what_is_taught(ours: Tokenizer) -> None:
    turns = [
        Message("user", "a"),
        Message("assistant", "one", 0.0),
        Message("user", "b"),
        Message("assistant", "two", 0.5),
    ]
    row = encoding(ours, template("plain")).encode(example(turns))[0][0]
    assert set(row.weights.tolist()) == {0.0, 0.5}
    assert ours.decode(row.ids[row.weights > 0].tolist(), special=True) == "two<|endoftext|>"
    ends = [*turns[:3], replace(turns[3], weight=0.0)]
    ends[1] = replace(turns[1], weight=1.0)
    row = encoding(ours, template("plain")).encode(example(ends))[0][0]
    assert ours.decode(row.ids.tolist()).endswith("one")  # what follows the last taught answer is left out
    every = encoding(ours, template("plain"), target="all").encode(example(turns))[0][0]
    assert every.weights[0] == 0.0
    assert (every.weights > 0).sum() == len(every.ids) - 1 - len(ours.encode("one<|endoftext|>"))


def test_an_answer_from_another_prompt_is_refused(ours: Tokenizer) -> None:
    told = encoding(ours, template("plain"))
    turns = [Message("user", "a"), Message("assistant", "b")]
    with pytest.raises(Exception, match="does not go on"):
        told.answer_ids(turns, told.prompt_ids([Message("user", "c")]))
    context = [replace(turn, weight=0.0) for turn in turns]  # weights do not matter to what an answer is
    assert told.answer_ids(context, told.prompt_ids(turns[:1])) == ours.encode("b<|endoftext|>")


@pytest.mark.parametrize("name", [*CHATS, "plain", "raw", "spaced"])
def test_choices_are_the_answers_of_the_same_rows_without_their_end(ours: Tokenizer, name: str) -> None:
    told = encoding(ours, template(name))
    asked = (Message("user", "Where does the heron wait?"),)
    said = ("by the river", "by the river, late", "in <|endoftext|>", "今天")
    prompt, choices = told.choice_ids(asked, said)
    opened = told.prompt_ids(asked)
    assert prompt[: len(opened)] == opened
    assert prompt == opened or name == "qwen3"  # empty thoughts are no choice's; a space before it is
    for text, ids in zip(said, choices, strict=True):
        whole = [*opened, *told.answer_ids((*asked, Message("assistant", text)), opened)]
        assert whole[: len(prompt) + len(ids)] == [*prompt, *ids]
        assert not ours.decode(whole[len(prompt) + len(ids) :]).strip()
        assert ours.decode(ids, special=True).strip() == text


def test_choices_of_an_encoder_decoder_are_written_by_its_decoder(seq2seq: Tokenizer) -> None:
    told = encoding(seq2seq, RAW, kind="encoder-decoder")
    prompt, choices = told.choice_ids((Message("user", "the capital"),), ("Paris", "capital"))
    assert prompt == seq2seq.encode_plain("the capital")
    assert choices == [seq2seq.encode_plain("Paris"), seq2seq.encode_plain("capital")]


# --- encoder-decoder ---


def test_an_encoder_decoder_reads_the_prompt_and_writes_the_answer_and_its_end(seq2seq: Tokenizer) -> None:
    told = encoding(seq2seq, RAW, kind="encoder-decoder")
    turns = [Message("user", "the capital"), Message("assistant", "Paris")]
    row = told.encode(example(turns))[0][0]
    assert row.source is not None
    assert row.source.tolist() == told.prompt_ids(turns[:1]) == seq2seq.encode_plain("the capital")
    assert row.ids.tolist() == told.answer_ids(turns, told.prompt_ids(turns[:1]))
    assert row.ids.tolist() == [*seq2seq.encode_plain("Paris"), seq2seq.id("eos")]
    assert (row.weights == 1).all()


def test_a_sources_control_tokens_are_the_templates_alone(seq2seq: Tokenizer) -> None:
    told = encoding(seq2seq, template("plain"), kind="encoder-decoder")
    turns = [Message("user", "a </s>"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d </s>")]
    row = told.encode(example(turns))[0][0]
    assert row.source is not None
    ends = [seq2seq.id("bos"), seq2seq.id("eos")]
    assert [i for i in row.source.tolist() if i in ends] == ends  # one BOS; one end, of the first answer
    assert [i for i in row.ids.tolist() if i in ends] == ends


def test_each_side_of_an_encoder_decoder_has_its_own_room(seq2seq: Tokenizer) -> None:
    turns = [Message("user", "the capital of France " * 10), Message("assistant", "Paris")]
    told = encoding(seq2seq, RAW, kind="encoder-decoder", max_length=20, too_long="cut-prompt")
    ((row,), cut) = told.encode(example(turns))
    assert row.source is not None
    assert len(row.source) <= 20
    assert cut == len(seq2seq.encode_plain(turns[0].content)) - len(row.source)
    refused(seq2seq, example(turns), kind="encoder-decoder", max_length=20)


def test_length_counts_both_sides() -> None:
    zeros = np.zeros(3, np.float32)
    assert Tokens(np.arange(3), zeros, "", "", np.arange(4)).length == 7
