"""Every way in which an answer is read off a model."""

import math
from dataclasses import replace

import asking
import numpy as np
import pytest
import tiny
import torch

from burnish.generate import engine
from burnish.generate.answer import read_number
from burnish.generate.hidden import hidden
from burnish.records import Message
from burnish.tokens import ask
from burnish.tokens.batch import collate
from burnish.tokens.rows import Tokens

BASES = ("llama", "gpt2", "bart", "t5")


def log_probability(ready, prompt, answer):
    """By transformers alone."""
    with torch.no_grad():
        if ready.model.base.kind == "encoder-decoder":
            fed = torch.tensor([[ready.model.start_id, *answer[:-1]]])
            logits = ready.model.hf(input_ids=torch.tensor([prompt]), decoder_input_ids=fed).logits[0]
        else:
            logits = ready.model.hf(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        return float(torch.log_softmax(logits.double(), -1)[range(len(answer)), answer].sum())


def asked(ready, row):
    """(prompt ids, ids of the whole right answer) as the contract gives them."""
    turns = ask.as_messages(row, ready.contract.instruction).messages
    prompt = ready.encoding.prompt_ids(turns[:-1])
    return prompt, ready.encoding.answer_ids(turns, prompt)


class TestHeads:
    @pytest.mark.parametrize("kind", tiny.KINDS)
    def test_a_class_is_the_likeliest_and_shares_are_the_softmax(self, kind, tmp_path_factory):
        ready = asking.answerer(kind, tmp_path_factory, target="label", head="classes")
        rows = asking.labelled()
        for row, told in zip(rows, ready.answer(rows), strict=True):
            ids = torch.tensor([ready.tokenizer.encode_plain(row.text)])
            with torch.no_grad():
                row = Tokens(ids[0].numpy().astype(np.int32), np.zeros(len(ids[0]), np.float32), "", "")
                batch = collate([row], 0)
                shares = torch.softmax(ready.model(batch).logits[0].double(), -1)
            assert told.label == tiny.LABELS[int(shares.argmax())]
            assert list(told.probabilities.values()) == pytest.approx(shares.tolist(), abs=1e-5)

    def test_several_classes_are_those_with_more_than_half(self, tmp_path_factory):
        ready = asking.answerer("bert", tmp_path_factory, target="label", head="multi", multi=True)
        told = list(ready.answer(asking.labelled()))
        assert len({row.label for row in told}) > 1
        for row in told:
            assert row.label == tuple(name for name in tiny.LABELS if row.probabilities[name] > 0.5)

    def test_a_number_comes_in_the_users_unit(self, tmp_path_factory):
        bare = asking.answerer("bert", tmp_path_factory, "regress", target="label", head="number")
        scaled = replace(bare, contract=replace(bare.contract, mean=50.0, deviation=4.0))
        rows = asking.labelled(labels=(1.0, 2.0))
        for plain, row in zip(bare.answer(rows), scaled.answer(rows), strict=True):
            assert row.number == pytest.approx(50 + 4 * plain.number)

    def test_a_text_that_is_too_long_is_read_from_its_beginning(self, tmp_path_factory):
        ready = asking.answerer("bert", tmp_path_factory, target="label", head="classes")
        row = asking.labelled(1, words=60)[0]
        start = replace(row, text=row.text[:94])
        assert asking.same(list(ready.answer([row])), [replace(next(ready.answer([start])), id=row.id)])

    def test_a_row_that_cannot_be_read_says_so_and_spoils_no_other(self, tmp_path_factory):
        ready = asking.answerer("bert", tmp_path_factory, target="label", head="classes")
        rows = asking.labelled(4)
        bad = replace(rows[1], text="a" * 90, pair="b" * 90)  # neither of two texts may be cut
        told = list(ready.answer([rows[0], bad, *rows[2:]]))
        assert told[1].problem
        assert told[1].label is None
        assert asking.same([told[0], *told[2:]], list(ready.answer([rows[0], *rows[2:]])))
        assert next(ready.answer([bad])).problem


class TestChoices:
    @pytest.mark.parametrize("kind", BASES)
    @pytest.mark.parametrize("template", ["plain", "raw"])
    def test_shares_are_the_labels_likelihoods_by_plain_transformers(self, kind, template, tmp_path_factory):
        """labels of several tokens, their end included; shares are rounded to six digits."""
        ready = asking.answerer(kind, tmp_path_factory, template=template)
        rows = asking.labelled()
        for row, told in zip(rows, ready.answer(rows), strict=True):
            scores = [log_probability(ready, *asked(ready, replace(row, label=name))) for name in ready.contract.labels]
            shares = np.exp(scores) / np.exp(scores).sum()
            assert list(told.probabilities.values()) == pytest.approx(shares, abs=1e-5)
            assert told.label == tiny.LABELS[int(np.argmax(scores))]

    @pytest.mark.parametrize("kind", BASES)
    @pytest.mark.parametrize("template", ["plain", "raw"])
    def test_a_label_has_the_same_ids_after_every_prompt(self, kind, template, tmp_path_factory):
        ready = asking.answerer(kind, tmp_path_factory, template=template)
        for row in asking.labelled():
            for name, ids in zip(ready.contract.labels, ready.label_ids(), strict=True):
                assert asked(ready, replace(row, label=name))[1] == ids

    def test_a_long_text_is_shortened_and_the_prompt_still_ends_as_a_prompt(self, tmp_path_factory):
        ready = asking.answerer("llama", tmp_path_factory)
        row = asking.labelled(1, words=60)[0]
        ids = ready.prompt_ids(row, ready.room)
        assert len(ids) + max(map(len, ready.label_ids())) <= 96
        text = ready.tokenizer.decode(ids)
        assert text.endswith("\n\n### Answer:\n")
        assert f"Name the mood.\n\n{row.text[:20]}" in text
        assert next(ready.answer([row])).label in tiny.LABELS

    def test_nothing_depends_on_the_right_answer(self, tmp_path_factory):
        for kind in BASES:
            ready = asking.answerer(kind, tmp_path_factory)
            rows = asking.labelled(6)
            blank = [replace(row, label=None) for row in rows]
            assert asking.same(list(ready.answer(rows)), list(ready.answer(blank)))


class TestWriting:
    @pytest.mark.parametrize("kind", BASES)
    def test_text_and_likelihood_are_those_of_plain_transformers(self, kind, tmp_path_factory):
        ready = asking.answerer(kind, tmp_path_factory, "answer", "prompt", instruction="")
        rows = asking.spoken()
        for row, told in zip(rows, ready.answer(rows), strict=True):
            prompt, answer = asked(ready, row)
            made = ready.model.hf.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                do_sample=False,
                max_new_tokens=12,
                pad_token_id=0,
                eos_token_id=list(ready.stops),
                forced_eos_token_id=None,
            )[0].tolist()
            new = made[1:] if kind in tiny.PAIRS else made[len(prompt) :]
            assert told.text == ready.tokenizer.decode(new).strip()
            assert told.finished == (new[-1] in ready.stops)
            assert (told.tokens, told.bytes) == (len(answer), len(row.answer.encode()))
            assert told.nll == pytest.approx(-log_probability(ready, prompt, answer), abs=1e-4)

    def test_order_of_rows_is_order_of_answers(self, tmp_path_factory):
        ready = asking.answerer("gpt2", tmp_path_factory, "answer", "prompt", budget=60)
        rows = asking.spoken(12)
        told = list(ready.answer(rows))
        assert [row.id for row in told] == [row.id for row in rows]
        assert [row.where for row in told] == [str(row.where) for row in rows]
        assert asking.same(told[::-1], list(ready.answer(rows[::-1])))

    def test_nothing_but_the_likelihood_depends_on_the_right_answer(self, tmp_path_factory):
        ready = asking.answerer("llama", tmp_path_factory, "answer", "conversation")
        rows = asking.spoken(5)
        others = [replace(row, messages=(*row.prompt, Message("assistant", "no"))) for row in rows]
        unknown = [replace(row, messages=row.prompt) for row in rows]
        told = [row.text for row in ready.answer(rows)]
        assert told == [row.text for row in ready.answer(others)]
        assert told == [row.text for row in ready.answer(unknown)]
        assert [row.nll for row in ready.answer(unknown)] == [None] * 5

    @pytest.mark.parametrize("kind", BASES)
    def test_a_long_question_is_shortened_and_its_answer_still_scored(self, kind, tmp_path_factory):
        ready = asking.answerer(kind, tmp_path_factory, "answer", "instruction")
        rows = asking.spoken(3)
        long = replace(rows[1], messages=(Message("user", "snow " * 60), rows[1].messages[1]))
        told = list(ready.answer([rows[0], long, rows[2]]))
        assert told[1].problem == ""
        assert told[1].tokens == len(asked(ready, long)[1])
        assert asking.same([told[0], told[2]], list(ready.answer([rows[0], rows[2]])))
        if kind != "t5":  # whose positions have no end, so its limit is the contract's
            assert ready.tokenizer.decode(ready.prompt_ids(long, 12)).rstrip().endswith("### Answer:")

    @pytest.mark.parametrize("kind", BASES)
    def test_an_answer_longer_than_the_model_reads_is_scored_whole(self, kind, tmp_path_factory):
        """In windows, by hand: each id once, the first window behind the question."""
        ready = asking.answerer(kind, tmp_path_factory, "chat", "conversation", instruction="")
        row = replace(asking.spoken(1)[0], messages=(Message("user", "sun"), Message("assistant", "rain " * 50)))
        told = next(ready.answer([row]))
        prompt, answer = asked(ready, row)
        if kind in tiny.PAIRS:
            parts = [(prompt, answer[start : start + 96]) for start in range(0, len(answer), 96)]
        else:
            whole = [*prompt, *answer]
            cuts = [whole[start : start + 96] for start in range(0, len(whole) - 1, 95)]
            parts = [
                (cut[: len(prompt) if i == 0 else 1], cut[len(prompt) if i == 0 else 1 :]) for i, cut in enumerate(cuts)
            ]
        assert told.tokens == len(answer)
        assert told.nll == pytest.approx(-sum(log_probability(ready, *part) for part in parts), rel=1e-5)

    def test_a_last_turn_of_weight_0_is_scored_all_the_same(self, tmp_path_factory):
        ready = asking.answerer("llama", tmp_path_factory, "chat", "conversation")
        row = asking.spoken(1)[0]
        light = replace(row, messages=(*row.prompt, replace(row.messages[-1], weight=0.0)))
        assert asking.same(list(ready.answer([light])), list(ready.answer([row])))

    def test_a_template_that_refuses_a_row_is_that_rows_problem(self, tmp_path_factory):
        strict = (
            "{% for m in messages %}{% if m.content == 'bad' %}{{ raise_exception('no') }}{% endif %}"
            "{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
        )
        ready = asking.answerer("llama", tmp_path_factory, "answer", "conversation", template_text=strict)
        rows = asking.spoken(3)
        rows[1] = replace(rows[1], messages=(Message("user", "bad"), rows[1].messages[1]))
        told = list(ready.answer(rows))
        assert ["no" in row.problem for row in told] == [False, True, False]
        assert told[1].text is None

    def test_several_labels_are_read_from_a_text(self, tmp_path_factory):
        ready = asking.answerer("llama", tmp_path_factory, multi=True)
        blank = next(ready.answer(asking.labelled(1, labels=(("bad", "good"),))))
        for text, labels in (("good; bad", ("bad", "good")), ("GOOD ;fair;x", ("fair", "good")), ("none", ())):
            assert ready._read_text(replace(blank, text=text)).label == labels

    def test_a_number_is_read_from_a_text(self, tmp_path_factory):
        ready = asking.answerer("llama", tmp_path_factory, "regress")
        for row in ready.answer(asking.labelled(4, labels=(1.5, 2.0))):
            digits = any(letter.isdigit() for letter in row.text)
            assert (row.number is not None) == digits
            assert row.problem == ("" if digits else "no number in the answer")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3", 3.0),
        ("about -2.5 degrees", -2.5),
        (".5", 0.5),
        ("-.25", -0.25),
        ("+7", 7.0),
        ("2,5 kg", 2.5),
        ("1,234.5", 1234.5),
        ("1,234,567.25 in all", 1234567.25),
        ("$1,234,567", 1234567.0),
        ("1,2,3", 1.2),
        ("−2.5 degrees", -2.5),
        ("1e3", 1000.0),
        ("1.5E-2.", 0.015),
        ("two then 4 then 5", 4.0),
        ("", math.nan),
        ("none. of, this", math.nan),
        ("1e999", math.inf),
    ],
)
def test_numbers_as_they_are_written(text, number):
    assert read_number(text) == pytest.approx(number, nan_ok=True)


def test_a_number_beyond_all_measure_is_no_number(tmp_path_factory):
    ready = asking.answerer("llama", tmp_path_factory, "regress")
    row = next(ready.answer(asking.labelled(1, labels=(1.0,))))
    assert ready._read_text(replace(row, text="1e999", number=None)).problem == "no number in the answer"


def test_digits_that_run_on_are_no_answer(tmp_path_factory):
    ready = asking.answerer("llama", tmp_path_factory, "regress", low=1.0, high=5.0)
    row = next(ready.answer(asking.labelled(1, labels=(1.0,))))
    for text, number in (("9", 9.0), ("-3", -3.0), ("9.5", None), ("-3.1", None), ("1111111111111", None)):
        read = ready._read_text(replace(row, text=text, number=None, problem=""))
        assert read.number == number
        assert ("far beyond" in read.problem) == (number is None)


class TestOwnChoices:
    """Choices that each row brings: ARC, HellaSwag and their like."""

    @pytest.mark.parametrize("kind", BASES)
    @pytest.mark.parametrize("template", ["plain", "raw", "spaced"])
    def test_each_has_the_likelihood_by_plain_transformers_and_its_end_is_not_counted(
        self, kind, template, tmp_path_factory
    ):
        ready = asking.answerer(kind, tmp_path_factory, "choose", "choices", template=template)
        rows = asking.questions(6)
        for row, told in zip(rows, ready.answer(rows), strict=True):
            scores = []
            for choice in row.choices:
                whole = replace(row, messages=(*row.prompt, Message("assistant", choice)))
                prompt, answer = asked(ready, whole)
                while answer[-1] in ready.tokenizer.closing_ids:
                    answer.pop()
                scores.append(log_probability(ready, prompt, answer))
            assert told.loglikelihoods == pytest.approx(scores, rel=1e-5, abs=2e-6)
            assert told.label == "ABCD"[int(np.argmax(scores))]
            shares = np.exp(scores) / np.exp(scores).sum()
            assert list(told.probabilities.values()) == pytest.approx(shares, abs=1e-5)
            assert list(told.probabilities) == list("ABCD"[: len(scores)])

    @pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
    def test_neither_batch_size_nor_batch_mates_nor_order_matter(self, kind, tmp_path_factory):
        ready = asking.answerer(kind, tmp_path_factory, "choose", "choices")
        rows = asking.questions(12, most=6)
        told = [item.loglikelihoods for item in ready.answer(rows)]
        turned = [item.loglikelihoods for item in replace(ready, budget=40).answer(rows[::-1])][::-1]
        single = [next(ready.answer([row])).loglikelihoods for row in rows]
        for one, other, third in zip(told, turned, single, strict=True):
            assert one == pytest.approx(other, rel=1e-6, abs=1e-6)
            assert one == pytest.approx(third, rel=1e-6, abs=1e-6)

    def test_the_question_runs_once_for_all_its_choices(self, tmp_path_factory):
        ready = asking.answerer("llama", tmp_path_factory, "choose", "choices")
        row = asking.questions(1)[0]
        row = replace(row, choices=("fog", "fog or rain", "rain", "hail"))
        next(ready.answer([row]))  # what the model can do is tried once
        read = []
        hook = ready.model.hf.get_input_embeddings().register_forward_hook(
            lambda *told: read.append(told[1][0].numel())
        )
        next(ready.answer([row] * 1))
        hook.remove()
        prompt, said = ready.choice_ids(row)
        nodes = {tuple(ids[:end]) for ids in said for end in range(1, len(ids))}
        assert sum(read) < len(prompt) + len(nodes) + 4
        assert sum(read) < (4 * len(prompt) + sum(map(len, said))) / 2

    def test_a_long_question_is_shortened_and_what_cannot_be_read_is_that_rows_problem(self, tmp_path_factory):
        ready = asking.answerer("llama", tmp_path_factory, "choose", "choices")
        rows = asking.questions(4)
        long = replace(rows[1], messages=(Message("user", "snow " * 60), rows[1].messages[1]))
        bad = replace(rows[2], choices=("fog", "snow " * 40))
        told = list(ready.answer([rows[0], long, bad, replace(rows[3], choices=())]))
        assert [bool(row.problem) for row in told] == [False, False, True, True]
        assert "A choice has" in told[2].problem
        assert asking.same(told[:1], list(ready.answer(rows[:1])))
        prompt, said = ready.choice_ids(long)
        assert len(prompt) + max(map(len, said)) <= 96

    def test_a_control_token_spelt_in_a_choice_stays_text(self, tmp_path_factory):
        ready = asking.answerer("llama", tmp_path_factory, "choose", "choices")
        row = replace(asking.questions(1)[0], choices=("fog", "fog </s>"))
        assert ready.tokenizer.id("eos") not in ready.choice_ids(row)[1][1]


class TestDocuments:
    @pytest.mark.parametrize("kind", tiny.DECODERS)
    def test_windows_give_the_sum_by_hand(self, kind, tmp_path_factory):
        """Every id but the first is scored once: 96 read, and the last of one window is the first of the next."""
        ready = asking.answerer(kind, tmp_path_factory, "write", "document")
        rows = asking.documents()
        for row, told in zip(rows, ready.answer(rows), strict=True):
            ids = ready.tokenizer.encode_plain(row.text)
            assert len(ids) > 150
            cuts = [ids[start : start + 96] for start in range(0, len(ids) - 1, 95)]
            total = -sum(log_probability(ready, cut[:1], cut[1:]) for cut in cuts)
            assert (told.tokens, told.bytes) == (len(ids) - 1, len(row.text.encode()))
            assert told.nll == pytest.approx(total, rel=1e-5)

    @pytest.mark.parametrize("kind", tiny.KINDS)
    def test_a_model_that_knows_nothing_gives_ln_v_a_token(self, kind, tmp_path_factory):
        ready = asking.answerer(kind, tmp_path_factory, "write", "document")
        with torch.no_grad():
            for value in ready.model.hf.parameters():
                value.zero_()
        for told in ready.answer(asking.documents(2)):
            assert told.nll == pytest.approx(told.tokens * math.log(ready.model.base.vocabulary), rel=1e-6)

    @pytest.mark.parametrize("kind", [*tiny.ENCODERS, *tiny.PAIRS])
    def test_what_is_scored_was_hidden_and_every_letter_is_scored_once(self, kind, tmp_path_factory, monkeypatch):
        """Else a model would be praised for copying what it sees."""
        ready = asking.answerer(kind, tmp_path_factory, "write", "document")
        asked = []
        real = engine.likelihood
        monkeypatch.setattr(
            engine, "likelihood", lambda model, rows, *more: asked.extend(rows) or real(model, rows, *more)
        )
        row = asking.documents(1, words=30)[0]
        told = next(ready.answer([row]))
        letters = ready.tokenizer.encode_text(row.text)
        assert told.tokens == len(letters)
        scored = []
        for part in asked:
            wanted = part.ids if part.targets is None else part.targets
            scored += wanted[part.weights > 0].tolist()
            shown = part.ids if part.source is None else part.source
            assert sum(int(i) in ready.tokenizer.special_ids for i in shown) > 0
            assert len([i for i in shown if i not in ready.tokenizer.special_ids]) + int(part.weights.sum()) <= 96
        assert sorted(scored) == sorted(letters)

    def test_no_sentinel_stands_for_two_spans(self, tmp_path_factory):
        """Eight sentinels, and a text of a hundred spans: then less is hidden at once."""
        ready = asking.answerer("t5", tmp_path_factory, "write", "document")
        row = Tokens(np.arange(300, dtype=np.int32) % 50 + 20, np.ones(300, np.float32), "", "")
        copies = hidden(row, "encoder-decoder", ready.tokenizer)
        assert sum(int(copy.weights.sum()) for copy in copies) == 300
        for copy in copies:
            markers = [i for i in copy.source.tolist() if i in ready.tokenizer.special_ids]
            assert 1 <= len(markers) == len(set(markers)) <= 8

    def test_a_text_without_a_token_is_a_problem(self, tmp_path_factory):
        ready = asking.answerer("llama", tmp_path_factory, "write", "document")
        rows = asking.documents(3)
        empty = replace(rows[1], text=" ")
        told = list(ready.answer([rows[0], replace(empty, text=""), rows[2]]))
        assert [bool(row.problem) for row in told] == [False, True, False]
        assert asking.same([told[0], told[2]], list(ready.answer([rows[0], rows[2]])))

    def test_a_prefix_is_read_before_every_window_and_not_scored(self, tmp_path_factory):
        ready = asking.answerer("llama", tmp_path_factory, "write", "document")
        row, prefix = asking.documents(1)[0], ready.tokenizer.encode_plain("fog fog fog")
        told = ready.documents([row], prefix)[0]
        ids, size = ready.tokenizer.encode_plain(row.text), 96 - len(prefix)
        cuts = [ids[start : start + size] for start in range(0, len(ids) - 1, size - 1)]
        total = -sum(log_probability(ready, [*prefix, *cut[:1]], cut[1:]) for cut in cuts)
        assert (told.nll, told.tokens) == (pytest.approx(total, rel=1e-5), len(ids) - 1)


class TestStops:
    @pytest.mark.parametrize("kind", BASES)
    @pytest.mark.parametrize("template", ["plain", "raw"])
    def test_what_ends_a_taught_answer_ends_a_written_one(self, kind, template, tmp_path_factory):
        ready = asking.answerer(kind, tmp_path_factory, "answer", "conversation", template=template)
        assert asked(ready, asking.spoken(1)[0])[1][-1] in ready.stops

    def test_a_template_with_its_own_end_of_turn_is_stopped_by_it(self, tmp_path_factory):
        own = "{% for m in messages %}{{ m.role + ':' + m.content + '<s>' }}{% endfor %}"
        own += "{% if add_generation_prompt %}assistant:{% endif %}"
        ready = asking.answerer("llama", tmp_path_factory, "answer", "conversation", template_text=own)
        assert ready.tokenizer.id("bos") in ready.stops
