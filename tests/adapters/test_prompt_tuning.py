"""A soft prompt is tokens: it begins as a text, stands before every row, and packs, caches and cuts as tokens do."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from burnish.adapters import prompt_tuning
from burnish.errors import TaskError
from burnish.generate import engine
from burnish.models import base, load
from burnish.records import Example, Message, Where
from burnish.tokens.batch import collate, join
from burnish.tokens.contract import Contract
from burnish.tokens.encode import Encoding
from burnish.tokens.rows import VIRTUAL, Tokens, led
from burnish.tokens.template import Template
from burnish.train import optim

TEXT = "Or is it?"
KINDS = pytest.mark.parametrize("kind", tiny.KINDS)


def tuned(kind, made, head="language", stir=True, **own):
    model = tiny.model(kind, head, made, "prompt-tuning", **own)
    if stir:
        with torch.no_grad():
            prompt_tuning.prompt_of(model).normal_(generator=torch.Generator().manual_seed(2))
    return model.eval()


def rows(kind, made, virtual=0):
    told = tiny.ready_rows("selfsupervised", kind, "document", made)
    return [led(row, virtual) for row in told]


def logits(model, batch):
    with torch.no_grad():
        return model(batch).logits


@KINDS
def test_it_begins_as_its_text(kind, tmp_path_factory):
    """A new soft prompt says what the base says after that text."""
    words = tiny.tokenizer(kind, tmp_path_factory).encode_text(TEXT)
    model = tuned(kind, tmp_path_factory, stir=False, init=TEXT, length=len(words))
    plain = load.load(model.base, tiny.HEADS["language"]).eval()

    def spelt(row: Tokens) -> Tokens:
        soft = led(row, len(words))
        name = "ids" if row.source is None else "source"
        ids = getattr(soft, name).copy()
        ids[: len(words)] = words
        return replace(soft, **{name: ids})

    ours = logits(model, collate(rows(kind, tmp_path_factory, len(words)), 0))
    assert torch.equal(ours, logits(plain, collate([spelt(row) for row in rows(kind, tmp_path_factory)], 0)))


@pytest.mark.parametrize(("length", "wanted"), [(4, "Or i"), (20, "Or is it?Or is it?Or")])
def test_a_text_is_cut_or_repeated(length, wanted, tmp_path_factory):
    model = tuned("llama", tmp_path_factory, stir=False, init=TEXT, length=length)
    ids = tiny.tokenizer("llama", tmp_path_factory).encode_text(wanted)
    assert torch.equal(prompt_tuning.prompt_of(model), model.hf.get_input_embeddings().weight[ids])


def test_random_starts_are_tokens_that_the_seed_draws(tmp_path_factory):
    def start(seed):
        model = load.load(base.inspect(str(tiny.folder("llama", tmp_path_factory))), tiny.HEADS["language"])
        prompt_tuning.attach(model, {"init": "random", "length": 6}, 0.0, seed)
        return prompt_tuning.prompt_of(model).detach(), model.hf.get_input_embeddings().weight

    drawn, table = start(1)
    assert torch.equal(drawn, start(1)[0])
    assert not torch.equal(drawn, start(2)[0])
    assert all((table == row).all(1).any() for row in drawn)


@KINDS
def test_packed_rows_each_have_their_own_prompt(kind, tmp_path_factory):
    """In a pack as in padded rows, to rounding."""
    model = tuned(kind, tmp_path_factory)
    made = rows(kind, tmp_path_factory, 20)
    padded, packed = logits(model, collate(made, 0)), logits(model, join(made))
    torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(padded, logits(model, collate(rows(kind, tmp_path_factory), 0)), atol=1e-2)


@KINDS
@pytest.mark.parametrize("together", [lambda rows: collate(rows, 0), join])
def test_taken_off_it_leaves_the_rows_as_they_were(together, kind, tmp_path_factory):
    with_, without = together(rows(kind, tmp_path_factory, 7)), together(rows(kind, tmp_path_factory))
    cut = prompt_tuning.bare(with_)
    for name in ("ids", "weights", "positions", "document", "targets", "segments", "source", "source_document"):
        ours, wanted = getattr(cut, name), getattr(without, name)
        assert (ours is None and wanted is None) or torch.equal(ours, wanted), name
    assert (cut.ends, cut.source_ends) == (without.ends, without.source_ends)
    assert prompt_tuning.bare(without) is without


def test_in_a_bf16_model_the_prompt_stays_float32(tmp_path_factory):
    model = tuned("llama", tmp_path_factory)
    prompt = prompt_tuning.prompt_of(model)
    masters = optim.Masters(model.hf, model.trainable(), torch.bfloat16)
    assert list(masters.values.values()) == [prompt]
    model(collate(rows("llama", tmp_path_factory, 20), 0)).logits.sum().backward()
    assert prompt.dtype == prompt.grad.dtype == torch.float32
    assert (prompt.grad.abs().sum(1) > 0).all()


def test_dropout_hides_parts_of_the_prompt_in_training(tmp_path_factory):
    model = load.load(base.inspect(str(tiny.folder("llama", tmp_path_factory))), tiny.HEADS["language"], dropout=0.0)
    prompt_tuning.attach(model, {}, 0.5, 0)
    batch = collate(rows("llama", tmp_path_factory, 20), 0)
    assert not torch.equal(logits(model.train(), batch), logits(model, batch))
    assert torch.equal(logits(model.eval(), batch), logits(model, batch))


def test_generation_with_a_cache_reads_it_once(tmp_path_factory):
    """Token by token with a cache as in whole forwards, and the ids that come out are real."""
    model = tuned("llama", tmp_path_factory)
    prompt = [*range(VIRTUAL, VIRTUAL + 20), 5, 9, 11]
    (made,) = engine.generate(model, [prompt], [], 8, 4096)
    wanted = list(prompt)
    for _ in range(8):
        with torch.no_grad():
            wanted.append(int(model.hf(input_ids=torch.tensor([wanted])).logits[0, -1].argmax()))
    assert made.ids == wanted[len(prompt) :]


# --- the token contract ---------------------------------------------------------------------------------------


def encoding(kind, target, made, virtual=6, **own):
    template = Template("raw", "{% for m in messages %}{{ m.content }} {% endfor %}")
    family = "decoder" if kind in tiny.DECODERS else "encoder" if kind in tiny.ENCODERS else "encoder-decoder"
    return Encoding(tiny.tokenizer(kind, made), template, family, target, 40, virtual=virtual, **own)


def example(text="why is it so", label="good"):
    turns = (Message("user", text), Message("assistant", "because"))
    return Example("x", Where("rows.csv", 1), text=text, label=label, messages=turns)


TARGETS = [("llama", "answers"), ("llama", "all"), ("llama", "document"), ("llama", "label"), ("bert", "document")]
TARGETS += [("bert", "label"), ("t5", "answers"), ("bart", "label")]


@pytest.mark.parametrize(("kind", "target"), TARGETS)
def test_virtual_tokens_stand_before_whatever_is_read(kind, target, tmp_path_factory):
    own = {"labels": {"good": 0}} if target == "label" else {}
    soft, plain = (encoding(kind, target, tmp_path_factory, virtual, **own) for virtual in (6, 0))
    (ours,), _ = soft.encode(example())
    (wanted,), _ = plain.encode(example())
    name = "ids" if wanted.source is None else "source"
    assert getattr(ours, name).tolist() == [*range(VIRTUAL, VIRTUAL + 6), *getattr(wanted, name)]
    assert ours.weights.tolist() == [0.0] * (6 if wanted.source is None else 0) + wanted.weights.tolist()


def test_a_prompt_is_the_beginning_of_its_row(tmp_path_factory):
    soft = encoding("llama", "answers", tmp_path_factory)
    turns = example().messages
    prompt = soft.prompt_ids(turns[:-1])
    (row,), _ = soft.encode(example())
    assert prompt[:6] == soft.lead
    assert [*prompt, *soft.answer_ids(turns, prompt)] == row.ids.tolist()


def test_they_take_room(tmp_path_factory):
    """40 tokens hold 34 of a row's own; each window of a document has its own prompt; each id is scored once."""
    soft = encoding("llama", "document", tmp_path_factory, too_long="split")
    pieces, _ = soft.encode(example("a" * 100))
    assert all(len(piece.ids) <= 40 and piece.ids[:6].tolist() == soft.lead for piece in pieces)
    assert sum(piece.weights.sum() for piece in pieces) == 101
    cut, lost = encoding("llama", "label", tmp_path_factory, too_long="cut-prompt", labels={"good": 0}).encode(
        example("a" * 100)
    )
    assert (len(cut[0].ids), lost) == (40, 67)


def contract(**own):
    told = {"goal": "classify", "shape": "labelled", "target": "answers", "template": "raw", "template_text": "x"}
    return Contract(**told | {"max_length": 64, "too_long": "error", "instruction": "Is it good?"} | own)


def test_the_task_tells_where_to_start():
    for settings, instruction, wanted in (
        ({}, "Is it good?", "Is it good?"),
        ({"init": "Well?"}, "Is it good?", "Well?"),
        ({}, "", prompt_tuning.PLAIN),
    ):
        made, own = prompt_tuning.fitted(contract(instruction=instruction), "decoder", settings)
        assert own["init"] == wanted
        assert made.virtual == 20


def test_what_cannot_be_is_refused(tmp_path_factory):
    with pytest.raises(TaskError, match="leaves too little"):
        prompt_tuning.fitted(contract(), "decoder", {"length": 32})
    with pytest.raises(TaskError, match="raw text"):
        prompt_tuning.fitted(contract(target="document"), "encoder-decoder", {})
    bare = load.load(base.inspect(str(tiny.folder("llama", tmp_path_factory)), random=True), tiny.HEADS["language"])
    with pytest.raises(TaskError, match="pre-trained"):
        prompt_tuning.attach(bare, {}, 0.0, 0)


def test_virtual_ids_fit_the_type_of_rows():
    assert np.int32(VIRTUAL + 1000) == VIRTUAL + 1000
