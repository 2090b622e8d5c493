"""Activations made again in the backward pass: the same loss and gradients to the bit, and only inputs are kept."""

from typing import Any

import pytest
import tiny
import torch

from burnish import kinds
from burnish.models import recompute
from burnish.tokens.batch import collate, join
from burnish.train import loop

KINDS = [(kind, head) for kind in tiny.KINDS if kind != "albert" for head in ("language", "classes")]


def ready(kind: str, head: str, dropout: float, tmp_path_factory: Any) -> Any:
    model = tiny.model(kind, head, tmp_path_factory, dropout=dropout)
    tiny.redraw(model.trainable())
    return model.train()


def learned(model: Any, batch: Any) -> list[torch.Tensor]:
    torch.manual_seed(3)
    model.zero_grad(set_to_none=True)
    logits = model(batch).logits
    logits.square().mean().backward()
    return [logits.detach(), *(value.grad for value in model.trainable().values())]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize(("kind", "head"), KINDS)
def test_loss_and_gradients_are_the_same_to_the_bit(kind, head, packed, dropout, tmp_path_factory):
    """T5 hands a learned bias from layer to layer, decoders read an encoder's output: both gradients come back.

    There what several layers send back is added up in another order: 1e-6 of the largest of all.
    """
    model = ready(kind, head, dropout, tmp_path_factory)
    rows = tiny.rows(kind, "answers" if head == "language" else "classes", tmp_path_factory)
    batch = join(rows) if packed and model.packs else collate(rows, 0)
    model.train()
    plain = learned(model, batch)
    recompute.recompute(model.hf)
    told = learned(model, batch)
    most = max(value.abs().max() for value in plain if value is not None)
    room = 1e-6 * most if model.base.kind == "encoder-decoder" else 0.0
    assert all(a is b or (a - b).abs().max() <= room for a, b in zip(plain, told, strict=True))
    assert any(value is not None and value.abs().max() > 0 for value in told[1:])


@pytest.mark.parametrize("rung", ["lora", "prompt-tuning", "partial"])
def test_adapters_learn_the_same_over_frozen_layers(rung, tmp_path_factory):
    told = []
    for again in (False, True):
        model = ready("llama", "language", 0.0, tmp_path_factory)
        kinds.load("adapters", rung).attach(model, {}, 0.0, 0)
        for value in model.trainable().values():
            torch.nn.init.normal_(value, std=0.1, generator=torch.Generator().manual_seed(1))
        if again:
            recompute.recompute(model.hf)
        told.append(learned(model.train(), join(tiny.rows("llama", "answers", tmp_path_factory))))
    assert all(torch.equal(a, b) for a, b in zip(*told, strict=True))


def test_of_a_layer_only_its_input_is_kept(tmp_path_factory):
    """What autograd saves by itself outside; inside a layer nothing, so that the heap has no gaps."""
    model = ready("llama", "language", 0.0, tmp_path_factory)
    batch = join(tiny.rows("llama", "answers", tmp_path_factory))
    nodes = []
    for again in (False, True):
        if again:
            recompute.recompute(model.hf)
        seen, waiting = set(), [model(batch).hidden.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is not None and node not in seen:
                seen.add(node)
                waiting += [other for other, _ in node.next_functions]
        nodes.append([type(node).__name__ for node in seen])
    assert nodes[1].count("_AgainBackward") == model.hf.config.num_hidden_layers
    assert len(nodes[1]) < len(nodes[0]) / 3


def test_memory_that_runs_out_between_layers_is_told_as_such(monkeypatch):
    """mmap says OSError, which the loop would take for a broken disk and not try again with less."""

    def full(*told: Any, **named: Any) -> Any:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(recompute.heap.mmap, "mmap", full)
    with pytest.raises(MemoryError) as problem:
        recompute.heap.apart(torch.zeros(4))
    assert loop.memory.ran_out(problem.value)
