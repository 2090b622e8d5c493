"""What is said to be kept for the backward pass is what autograd keeps of real packs."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import Tensor

from burnish import taskfile
from burnish.models import base as models
from burnish.models import quicken
from burnish.tokens.batch import join
from burnish.train import describe, keeps


@pytest.mark.parametrize("rung", ["full", "lora", "partial"])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_skeleton_says_what_a_pack_keeps(kind: str, rung: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Storage that autograd saves of a pack, weights aside.  Within 10 %: the head and sums of rows are not said."""
    own = {"layers": 1} if rung == "partial" else {}
    model = tiny.model(kind, "language", tmp_path_factory, rung, None, **own)
    quicken.install(model.hf)
    made = tiny.rows(kind, "answers" if kind in tiny.PAIRS else "document", tmp_path_factory)
    for row in made:
        row.weights[4:] = 0  # the head, whose logits are not said, reads little
    weights = {value.untyped_storage().data_ptr() for value in model.hf.parameters()}
    seen: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights and (value.is_floating_point() or value.dtype == torch.bool):
            seen[storage.data_ptr()] = storage.nbytes()
        return value

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        outputs = model(join(made))
    assert outputs is not None
    base = models.inspect(str(tiny.folder(kind, tmp_path_factory)))
    skeleton = describe.skeleton(base, tiny.HEADS["language"], rung, taskfile.resolve({"rungs": [rung], rung: own}))
    told = keeps.kept(skeleton, 4)
    said = told.bytes["ids"] * sum(len(row.ids) for row in made)
    said += told.bytes["source"] * sum(0 if row.source is None else len(row.source) for row in made)
    assert sum(seen.values()) == pytest.approx(said, rel=0.1)


def test_attention_with_dropout_is_told_apart_and_the_model_is_left_as_it_was(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    base = models.inspect(str(tiny.folder("bert", tmp_path_factory)))
    for dropout, hidden in ((None, 8), (0.0, 0)):
        task = taskfile.resolve({"train": {"dropout": dropout}})
        model = describe.skeleton(base, tiny.HEADS["language"], "full", task)
        was = model.training
        half, whole = keeps.kept(model, 2), keeps.kept(model, 4)
        assert half.hidden["ids"] == hidden
        assert 1.8 < whole.bytes["ids"] / half.bytes["ids"] < 2.01
        assert (whole.drawn["ids"] > 0) == (hidden > 0)
        assert {value.dtype for value in model.hf.parameters()} == {torch.float32}
        assert model.training == was


def test_an_architecture_that_cannot_run_without_weights_is_weighed_by_its_widths(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = models.inspect(str(tiny.folder("llama", tmp_path_factory)))
    model = describe.skeleton(base, tiny.HEADS["language"], "full", taskfile.resolve({}))
    known = describe.shape(model).ids

    def refuse(*_: object) -> None:
        raise RuntimeError("nonzero is not supported on meta")

    monkeypatch.setattr(keeps, "kept", refuse)
    told = describe.shape(model).ids
    assert told.kept == 1.5 * told.widths
    assert 0.6 < told.kept / known.kept < 1.7


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_it_is_known_where_all_logits_are_held_at_once(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    base = models.inspect(str(tiny.folder(kind, tmp_path_factory)))
    model = tiny.model(kind, "language", tmp_path_factory)
    told = keeps.whole(describe.skeleton(base, tiny.HEADS["language"], "full", taskfile.resolve({})))
    assert told == (not model.lays_bare)
