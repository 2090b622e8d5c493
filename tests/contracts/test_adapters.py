"""What every file in adapters/ must keep to, on every kind of model and head: a new one is checked by being there."""

import pytest
import tiny
import torch

from burnish import kinds
from burnish.models import base, load
from burnish.tokens.batch import collate
from burnish.tokens.rows import led

ADAPTERS = kinds.names("adapters")
HEADS = [("language", "document"), ("classes", "classes"), ("multi", "multi"), ("number", "number")]
CASES = [(a, k, h, t) for a in ADAPTERS for k in tiny.KINDS for h, t in HEADS]
EVERY = pytest.mark.parametrize(("adapter", "kind", "head", "target"), CASES)


def stirred(model, seed=1, by=0.1):
    """The model as if it had been trained: every trainable tensor has moved."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.trainable().values():
            value.add_(torch.randn(value.shape, generator=draw) * by)
    return model.eval()


def logits(model, kind, head, target, made):
    """Of eight rows, as the model is asked: after its virtual tokens, where it has any."""
    method = "selfsupervised" if head == "language" else "classify"
    soft = [item.prompt for item in model.hf.modules() if hasattr(item, "prompt")]
    rows = [led(row, len(soft[0]) if soft else 0) for row in tiny.ready_rows(method, kind, target, made)]
    with torch.no_grad():
        return model(collate(rows, 0)).logits


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_declares_what_it_is(adapter):
    told = kinds.load("adapters", adapter)
    assert told.__doc__
    assert told.COST > 0
    assert 0 < told.RATE < 1
    for name in ("attach", "merge", "tensors", "disabled", "save"):
        assert callable(getattr(told, name))
    assert isinstance(told.MERGES, bool)
    assert hasattr(told, "load") != told.CARRIES_BASE


OWN_NAMES = {"full": "", "lora": ".lora_", "qlora": ".lora_", "prompt-tuning": ".prompt"}


@EVERY
def test_only_what_it_says_is_trained(adapter, kind, head, target, tmp_path_factory):
    model = tiny.model(kind, head, tmp_path_factory, adapter)
    before = {name: value.detach().clone() for name, value in model.hf.named_parameters()}
    trained = set(model.trainable())
    if adapter in OWN_NAMES:
        assert trained == {name for name in before if OWN_NAMES[adapter] in name} | model.fresh
    assert model.fresh <= trained
    stirred(model)
    assert trained == {name for name, value in model.hf.named_parameters() if not torch.equal(value, before[name])}


@EVERY
def test_a_new_adapter_leaves_the_base_as_it_was(adapter, kind, head, target, tmp_path_factory):
    found = base.inspect(str(tiny.folder(kind, tmp_path_factory)))
    if adapter == "prompt-tuning":
        pytest.skip("a soft prompt begins as a text: tests/adapters/test_prompt_tuning.py")
    quantised = getattr(kinds.load("adapters", adapter), "QUANTISED", False)
    plain = load.load(found, tiny.HEADS[head], dropout=0.0, quantised=quantised).eval()
    model = tiny.model(kind, head, tmp_path_factory, adapter).eval()
    told = [logits(each, kind, head, target, tmp_path_factory) for each in (plain, model)]
    assert torch.equal(*told)


@EVERY
def test_merged_equals_unmerged(adapter, kind, head, target, tmp_path_factory):
    model = stirred(tiny.model(kind, head, tmp_path_factory, adapter))
    before = logits(model, kind, head, target, tmp_path_factory)
    names = set(load.load(model.base, tiny.HEADS[head]).hf.state_dict())
    if not kinds.load("adapters", adapter).MERGES:
        with pytest.raises(ValueError, match="cannot be merged"):
            kinds.load("adapters", adapter).merge(model)
        return
    kinds.load("adapters", adapter).merge(model)
    torch.testing.assert_close(logits(model, kind, head, target, tmp_path_factory), before, rtol=1e-5, atol=1e-5)
    assert set(model.hf.state_dict()) == names


@EVERY
def test_saved_and_loaded_agree_bit_for_bit(adapter, kind, head, target, tmp_path_factory, tmp_path):
    model = stirred(tiny.model(kind, head, tmp_path_factory, adapter))
    module = kinds.load("adapters", adapter)
    module.save(model, tmp_path, str(model.base.folder))
    again = load.load(model.base, tiny.HEADS[head], files=tmp_path if module.CARRIES_BASE else None)
    if not module.CARRIES_BASE:
        module.load(again, tmp_path)
    told = [logits(each.eval(), kind, head, target, tmp_path_factory) for each in (model, again)]
    assert torch.equal(*told)
    first, second = (module.tensors(each) for each in (model, again))
    if not module.CARRIES_BASE:
        assert first.keys() == second.keys()
        assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_disabled_is_the_base(adapter, kind, tmp_path_factory):
    model = stirred(tiny.model(kind, "language", tmp_path_factory, adapter))
    module = kinds.load("adapters", adapter)
    case = (kind, "language", "document", tmp_path_factory)
    if module.CARRIES_BASE:
        with pytest.raises(ValueError, match="no copy"), module.disabled(model):
            pass
        return
    quantised = getattr(module, "QUANTISED", False)
    plain = load.load(model.base, tiny.HEADS["language"], quantised=quantised).eval()
    tuned = logits(model, *case)
    with module.disabled(model):
        assert torch.equal(logits(model, *case), logits(plain, *case))
    assert torch.equal(logits(model, *case), tuned)
    assert not torch.equal(tuned, logits(plain, *case))


OWN = [(adapter, item.name) for adapter in ADAPTERS for item in kinds.settings("adapters", adapter)]
OTHER = {
    ("lora", "targets"): ["q_proj"],
    ("qlora", "targets"): ["q_proj"],
    ("partial", "layers"): 1,
    ("prompt-tuning", "init"): "Or is it?",
}


@pytest.mark.parametrize(("adapter", "name"), OWN)
def test_every_setting_changes_something(adapter, name, tmp_path_factory):
    item = next(item for item in kinds.settings("adapters", adapter) if item.name == name)
    other = not item.default if item.type == "bool" else OTHER.get((adapter, name)) or item.default * 2
    told = []
    for own in ({}, {name: other}):
        model = stirred(tiny.model("llama", "language", tmp_path_factory, adapter, **own))
        told.append(
            (
                {name: value.shape for name, value in model.trainable().items()},
                logits(model, "llama", "language", "document", tmp_path_factory).tolist(),
            )
        )
    assert told[0] != told[1]
