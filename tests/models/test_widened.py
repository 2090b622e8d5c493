"""A model of bfloat16 weights that computes in float32 for a while, a block at a time."""

import pytest
import tiny
import torch

from burnish.models import widened
from burnish.tokens.batch import collate

BLOCKS = {"llama": 2, "gpt2": 2, "bert": 2, "albert": 0, "bart": 4, "t5": 4}


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_it_computes_what_the_same_numbers_say_in_float32(kind, tmp_path_factory):
    low, high = (tiny.model(kind, "language", tmp_path_factory).eval() for _ in "ab")
    low.hf.to(torch.bfloat16)
    high.hf.to(torch.bfloat16).float()
    before = [value.data_ptr() for value in low.parameters()]
    batch = collate(tiny.rows(kind, "answers", tmp_path_factory), 0)
    most = []
    for block in widened.blocks(low.hf):
        block.register_forward_pre_hook(lambda *_: most.append(wide(low)))
    with torch.no_grad():
        with widened.widened(low.hf):
            own = low(batch).logits
        assert torch.equal(own, high(batch).logits)
        assert not torch.equal(own, low(batch).logits)
    assert [value.data_ptr() for value in low.parameters()] == before
    assert {value.dtype for value in low.parameters()} == {torch.bfloat16}
    assert len(set(widened.blocks(low.hf))) == BLOCKS[kind]
    largest = max((sum(value.numel() for value in block.parameters()) for block in widened.blocks(low.hf)), default=0)
    outside = sum(value.numel() for value in low.parameters()) - sum(
        value.numel() for block in widened.blocks(low.hf) for value in block.parameters()
    )
    assert all(count <= outside + largest for count in most)


def wide(model):
    return sum(value.numel() for value in model.parameters() if value.dtype == torch.float32)


def test_weights_come_back_when_a_pass_fails(tmp_path_factory):
    model = tiny.model("llama", "language", tmp_path_factory)
    model.hf.to(torch.bfloat16)

    def broken(*_):
        raise ValueError("broken")

    model.hf.model.layers[1].mlp.register_forward_hook(broken)
    with pytest.raises(ValueError, match="broken"), widened.widened(model.hf):
        model(collate(tiny.rows("llama", "answers", tmp_path_factory), 0))
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
