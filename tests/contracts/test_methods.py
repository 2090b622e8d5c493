"""What every file in methods/ must keep to, on every kind of model it trains: a new one is checked by being there."""

import ast
import dataclasses
import itertools

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish import kinds
from burnish.tokens.batch import Batch, Batches, collate, join

METHODS = kinds.names("methods")
PAIRINGS = pytest.mark.parametrize(("method", "head", "target", "kind"), tiny.PAIRINGS)


def module(method):
    return kinds.load("methods", method)


def told(model, method, batch, **own):
    """(logits by row, loss, weight) of one batch."""
    with torch.no_grad():
        out = model(batch)
        loss = module(method).loss(out, batch, module(method).Settings(**own))
    row = torch.arange(batch.rows) if out.row is None else out.row // batch.each
    return [out.logits[row == i] for i in range(batch.rows)], float(loss), module(method).weight(batch)


def stretched(batch: Batch, by: int, token: int) -> Batch:
    """The same rows with `by` more columns of padding, written with another token."""

    def wide(value, fill):
        return None if value is None else torch.nn.functional.pad(value, (0, by), value=fill)

    filler = {name: wide(getattr(batch, name), 0) for name in ("weights", "positions", "document", "source_document")}
    ids = {name: wide(getattr(batch, name), token) for name in ("ids", "targets", "source")}
    for name in ("ids", "source"):
        if ids[name] is not None:
            real = filler["document" if name == "ids" else "source_document"] > 0
            ids[name] = torch.where(real, ids[name], token)
    return dataclasses.replace(batch, **filler, **ids)


@pytest.mark.parametrize("method", METHODS)
def test_declares_what_it_needs(method):
    told = module(method)
    assert told.__doc__
    assert set(told.MODELS) <= {"decoder", "encoder", "encoder-decoder"}
    assert told.MODELS
    assert told.HEAD in ("language", "classes", "number")
    assert told.TARGET in ("answers", "document", "label", "pairs")
    assert dataclasses.is_dataclass(told.Settings)
    assert method in [case[0] for case in tiny.CASES], "give the new method its rows in tests/tiny.py"


@PAIRINGS
def test_gradients_reach_every_tensor(method, head, target, kind, tmp_path_factory):
    model = tiny.model(kind, head, tmp_path_factory)
    rows = tiny.ready_rows(method, kind, target, tmp_path_factory)
    found = tiny.gradient(model, method, [collate(rows, 0)])
    assert found.keys() == model.trainable().keys()
    assert [name for name, value in found.items() if not value.abs().sum()] == []


@PAIRINGS
def test_padding_order_and_mates_change_nothing(method, head, target, kind, tmp_path_factory):
    """1e-5 on logits of size 1 to 10: float32 sums in another order."""
    model = tiny.model(kind, head, tmp_path_factory).eval()
    rows = tiny.ready_rows(method, kind, target, tmp_path_factory)
    pad = tiny.tokenizer(kind, tmp_path_factory).id("pad") or 0
    alone = [told(model, method, collate([row], pad)) for row in rows]
    ways = {
        "together": collate(rows, pad),
        "more padding": stretched(collate(rows, pad), 11, pad),
        "padding of another token": stretched(collate(rows, pad), 5, 20),
    }
    if kind in tiny.DECODERS:
        ways["left"] = collate(rows, pad, left=True)
    for way, batch in ways.items():
        logits, loss, weight = told(model, method, batch)
        for i, (one, _, _) in enumerate(alone):
            torch.testing.assert_close(
                logits[i], one[0], rtol=1e-5, atol=1e-5, msg=lambda m, w=way, i=i: f"{w} {i} {m}"
            )
        assert loss == pytest.approx(sum(one[1] for one in alone), rel=1e-5), way
        assert weight == sum(one[2] for one in alone), way
    back = told(model, method, collate(rows[::-1], pad))
    for i, (one, _, _) in enumerate(alone):
        torch.testing.assert_close(back[0][len(rows) - 1 - i], one[0], rtol=1e-5, atol=1e-5)
    assert back[1] == pytest.approx(sum(one[1] for one in alone), rel=1e-5)


CUT = [(m, h, t, k, s) for m, h, t, k in tiny.PAIRINGS for s in (0.0, 0.1) if not s or m in ("sft", "classify")]


@pytest.mark.parametrize(("method", "head", "target", "kind", "smoothing"), CUT)
def test_a_step_cut_anywhere_has_the_same_gradient(method, head, target, kind, smoothing, tmp_path_factory):
    """1e-6 of the gradient's length is float32 rounding; the mean of micro-batch means would be off by 0.1 to 1."""
    model = tiny.model(kind, head, tmp_path_factory)
    rows = tiny.rows(kind, target, tmp_path_factory)
    noise = tiny.corruption(method, kind, tmp_path_factory)
    own = {"label_smoothing": smoothing} if smoothing else {}
    found, cuts = [], []
    for budget in (10**6, 64, 1):
        micro = Batches(rows, 8, budget, 0, 0, noise).step(1)
        cuts.append(len(micro))
        found.append(tiny.gradient(model, method, micro, **own))
    eight = Batches(rows, 8, 10**6, 0, 0, noise)
    drawn = [eight._row(epoch, i) for epoch, i in eight.drawn(1)]
    found.append(tiny.gradient(model, method, [collate(drawn[i : i + 2], 0) for i in range(0, 8, 2)], **own))
    assert cuts[0] == 1 < cuts[1] < cuts[2] == 8
    for other in found[1:]:
        assert tiny.distance(found[0], other) < 1e-6


@pytest.mark.parametrize(("method", "head", "target"), [case[:3] for case in tiny.CASES])
@settings(max_examples=12, deadline=None)
@given(cuts=st.sets(st.integers(1, 7)), order=st.permutations(range(8)))
def test_sum_and_weight_add_up_over_any_cut(method, head, target, tmp_path_factory, cuts, order):
    kind = "t5" if method == "selfsupervised" else "gpt2"
    model = tiny.model(kind, head, tmp_path_factory).eval()
    rows = tiny.ready_rows(method, kind, target, tmp_path_factory)
    _, loss, weight = told(model, method, collate(rows, 0))
    edges = [0, *sorted(cuts), 8]
    parts = [[rows[i] for i in order[a:b]] for a, b in itertools.pairwise(edges)]
    cut = [told(model, method, collate(part, 0)) for part in parts]
    assert sum(one[1] for one in cut) == pytest.approx(loss, rel=1e-5)
    assert sum(one[2] for one in cut) == weight


@PAIRINGS
def test_the_validation_loss_does_not_move_with_the_batch_size(method, head, target, kind, tmp_path_factory):
    from burnish.train.loop import validation_loss

    model = tiny.model(kind, head, tmp_path_factory)
    rows = tiny.rows(kind, target, tmp_path_factory)
    noise = tiny.corruption(method, kind, tmp_path_factory)
    own = module(method).Settings()
    sizes = [
        validation_loss(model, module(method), own, Batches(rows, 8, budget, 0, 0, noise).once())
        for budget in (10**6, 64, 1)
    ]
    assert sizes == pytest.approx([sizes[0]] * 3, rel=1e-6)
    assert model.training


OWN = [(method, item.name) for method in METHODS for item in kinds.settings("methods", method)]


@pytest.mark.parametrize(("method", "name"), OWN)
def test_every_setting_changes_something(method, name, tmp_path_factory):
    """Somewhere among the models a method trains: `span` means nothing to a decoder."""
    item = next(item for item in kinds.settings("methods", method) if item.name == name)
    other = {
        name: ast.literal_eval(item.type.removeprefix("Literal"))[-1]
        if item.high is None
        else (item.default + item.high) / 2
    }

    def losses(own):
        for case, head, target, kind in tiny.PAIRINGS:
            if case == method:
                noise = tiny.corruption(method, kind, tmp_path_factory, **own)
                rows = tiny.rows(kind, target, tmp_path_factory)
                rows = [noise(row, np.random.default_rng(0)) for row in rows] if noise else rows
                yield told(tiny.model(kind, head, tmp_path_factory).eval(), method, collate(rows, 0), **own)[1]

    assert list(losses({})) != list(losses(other))


PACKS = {(kind, head) for kind in (*tiny.DECODERS, *tiny.ENCODERS) for head in tiny.HEADS} | {
    ("bart", "language"),
    ("t5", "language"),
}


@PAIRINGS
def test_a_pack_is_its_documents_one_by_one(method, head, target, kind, tmp_path_factory):
    """Logits to 1e-5, gradients to 1e-6 of the largest: what packing may change is the order of float32 sums."""
    model = tiny.model(kind, head, tmp_path_factory)
    assert model.packs == ((kind, head) in PACKS)
    if not model.packs:
        pytest.skip("padded: transformers reads its head at a token it looks for in each row")
    rows = tiny.ready_rows(method, kind, target, tmp_path_factory)
    model.eval()
    logits, loss, weight = told(model, method, join(rows))
    alone = [told(model, method, collate([row], 0)) for row in rows]
    for one, packed in zip(alone, logits, strict=True):
        torch.testing.assert_close(packed, one[0][0], rtol=1e-5, atol=1e-5)
    assert loss == pytest.approx(sum(one[1] for one in alone), rel=1e-5)
    assert weight == sum(one[2] for one in alone)
    model.train()
    packed, apart = (tiny.gradient(model, method, cut) for cut in ([join(rows)], [collate([row], 0) for row in rows]))
    most = max(float(value.abs().max()) for value in apart.values())
    for name, value in apart.items():
        torch.testing.assert_close(packed[name], value, rtol=0, atol=1e-6 * most, msg=lambda m, n=name: f"{n} {m}")
