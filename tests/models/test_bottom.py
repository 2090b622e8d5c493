"""Frozen lower layers keep nothing, run no backward, and can be left out without a bit's difference."""

import weakref
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import tiny
import torch

from burnish.models import bottom, quicken
from burnish.models.bottom import Bottom
from burnish.models.recompute import recompute
from burnish.tokens.batch import collate, join


def ready(kind, head, tmp_path_factory, **own):
    model = tiny.model(kind, head, tmp_path_factory, "partial", layers=1, **own)
    quicken.install(model.hf)
    assert model.packs
    return model


def target(kind, head):
    return "classes" if head == "classes" else "answers" if kind in tiny.DECODERS else "document"


CASES = [("llama", "language"), ("llama", "classes"), ("gpt2", "language"), ("bert", "classes")]


@dataclass(eq=False)
class Saved:
    value: torch.Tensor


@contextmanager
def noting(layers):
    """What each layer's run keeps for backward: one set per layer, and one for what is outside; it lives while kept."""
    kept = [weakref.WeakSet() for _ in (*layers, "outside")]
    inside = [len(layers)]
    hooks = []
    for number, layer in enumerate(layers):
        hooks.append(layer.register_forward_pre_hook(lambda *told, number=number: inside.__setitem__(0, number)))
        hooks.append(layer.register_forward_hook(lambda *told: inside.__setitem__(0, len(layers))))

    def pack(value):
        saved = Saved(value)
        kept[inside[0]].add(saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.value):
        yield kept
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize(("kind", "head"), CASES)
def test_frozen_layers_keep_nothing_and_run_no_backward(kind, head, packed, again, tmp_path_factory):
    model = ready(kind, head, tmp_path_factory)
    model.lays_bare  # noqa: B018  # probed beforehand: what counts is a pass of training
    if again:
        recompute(model.hf)
    model.train()
    rows = tiny.rows(kind, target(kind, head), tmp_path_factory)
    layers = bottom.stack(model.hf.base_model)[1]
    reached = []
    for number, layer in enumerate(layers):
        layer.register_full_backward_hook(lambda *told, number=number: reached.append(number))
    with noting(layers) as kept:
        out = model(join(rows) if packed else collate(rows, 0))
    assert not kept[0]
    assert kept[1]  # what a trained layer keeps is seen
    out.logits.sum().backward()
    assert reached == [1]
    assert all(value.grad is None for value in layers[0].parameters())


@pytest.mark.parametrize(("kind", "head"), CASES)
def test_a_batch_with_states_says_and_teaches_the_same(kind, head, tmp_path_factory):
    model = ready(kind, head, tmp_path_factory)
    below = Bottom(model, 1)
    assert below.install()
    model.train()
    ran = []
    lowest = bottom.stack(model.hf.base_model)[1][0]
    inner = next(item for item in lowest.modules() if isinstance(item, torch.nn.Dropout | torch.nn.Linear))
    inner.register_forward_hook(lambda *told: ran.append(1))
    batch = join(tiny.rows(kind, target(kind, head), tmp_path_factory))
    told = []
    with torch.no_grad():
        states = below.states(batch)
    for one in (batch, replace(batch, states=states)):
        ran.clear()
        model.zero_grad(set_to_none=True)
        logits = model(one).logits
        logits.square().sum().backward()
        told.append([logits, *(value.grad for value in model.trainable().values())])
    assert not ran  # the second time nothing below ran
    assert all(a is b or torch.equal(a, b) for a, b in zip(*told, strict=True))
    assert model.states is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_what_they_say_of_a_row_depends_on_no_other(kind, dtype, tmp_path_factory):
    """float32: 1e-6 of the largest, for a product of another height may sum in another order; bfloat16: to the bit."""
    model = ready(kind, "language", tmp_path_factory)
    model.hf.to(dtype)
    below = Bottom(model, 1)
    rows = tiny.rows(kind, "answers", tmp_path_factory)
    with torch.no_grad():
        whole, ends = below.states(join(rows))[0], join(rows).ends
        for number, row in enumerate(rows):
            mine, alone = whole[ends[number] : ends[number + 1]], below.states(join([row]))[0, : row.length]
            assert (mine - alone).abs().max() <= (1e-6 if dtype == torch.float32 else 0) * alone.abs().max()


def test_what_learns_or_is_random_below_is_refused(tmp_path_factory):
    noisy = tiny.model("gpt2", "language", tmp_path_factory, "partial", dropout=0.1, layers=1)
    assert not Bottom(noisy, 1).install()
    whole = tiny.model("llama", "language", tmp_path_factory)
    assert not Bottom(whole, 1).install()
    odd = ready("llama", "language", tmp_path_factory)
    lowest = bottom.stack(odd.hf.base_model)[1][0]
    plain = lowest.forward

    def strange(hidden, **named):  # the next layer hears of the lowest by another way than its output
        odd.hf.model.layers[1].extra = hidden.sum() * 1e-3
        return plain(hidden, **named)

    upper = odd.hf.model.layers[1].forward
    lowest.forward = strange
    odd.hf.model.layers[1].forward = lambda hidden, **named: (
        upper(hidden, **named) + odd.hf.model.layers[1].__dict__.pop("extra")
    )
    assert not Bottom(odd, 1).install()
    assert lowest.forward is strange


def test_the_fingerprint_knows_every_frozen_number_and_no_trained_one(tmp_path_factory):
    model = ready("llama", "language", tmp_path_factory)
    told = {Bottom(model, 1).fingerprint()}
    with torch.no_grad():
        for value in model.trainable().values():
            value.add_(1)
        assert {Bottom(model, 1).fingerprint()} == told
        layers = bottom.stack(model.hf.base_model)[1]
        for value in (layers[0].mlp.up_proj.weight, model.hf.model.embed_tokens.weight):
            value[0, 0] += 1
            told.add(Bottom(model, 1).fingerprint())
    assert len(told) == 3
