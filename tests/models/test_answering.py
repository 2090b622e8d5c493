"""While answering, steps are fused and products are oneDNN's: the same numbers, and nothing of it stays."""

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from burnish.generate.tree import Blocks, Tree
from burnish.models import kernels
from burnish.models.branches import Branches
from burnish.models.quicken import answering, install, product

kernel = pytest.mark.skipif(kernels.compiled() is None, reason="no C++ compiler")


def forwards(hf):
    return {name: module.forward for name, module in hf.named_modules() if "forward" in vars(module)}


class TestAnswering:
    @pytest.mark.parametrize("kind", tiny.KINDS)
    def test_leaves_nothing_behind_and_changes_rounding_only(self, kind, tmp_path_factory):
        model = tiny.model(kind, "language" if kind not in tiny.ENCODERS else "classes", tmp_path_factory).eval()
        ids = torch.arange(10, 34)[None]
        inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if kind in tiny.PAIRS else {})
        before = forwards(model.hf)
        with torch.no_grad():
            plain = model.hf(**inputs).logits
            with answering(model.hf):
                assert forwards(model.hf).keys() > before.keys()
                quick = model.hf(**inputs).logits
        assert forwards(model.hf) == before
        assert quick == pytest.approx(plain, rel=1e-5, abs=1e-5)

    def test_within_another_and_in_a_model_that_trains(self, tmp_path_factory):
        hf = tiny.model("llama", "language", tmp_path_factory).hf
        install(hf)
        trained = forwards(hf)
        with answering(hf), answering(hf):
            pass
        assert forwards(hf) == trained

    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("rows", [1, 7, 8, 100])
    def test_a_product_is_a_linear_layer(self, rows, bias):
        layer = nn.Linear(48, 32, bias)
        x = torch.randn(2, rows, 48)
        with torch.no_grad():
            assert product(x, layer.weight, layer.bias) == pytest.approx(layer(x), rel=1e-5, abs=1e-5)
        product(x, layer.weight, layer.bias).sum().backward()
        assert layer.weight.grad is not None

    def test_a_row_of_a_product_hangs_on_itself_alone(self):
        weight, x = torch.randn(96, 256), torch.randn(300, 256)
        with torch.no_grad():
            whole = product(x, weight)
            assert all(torch.equal(product(x[:size], weight), whole[:size]) for size in (8, 9, 15, 16, 64, 77, 200))


@kernel
class TestBranches:
    @settings(deadline=None, max_examples=40)
    @given(
        own=st.integers(1, 40),
        before=st.integers(0, 70),
        said=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=30), min_size=1, max_size=12),
        depth=st.sampled_from([4, 8, 12, 32]),
        shape=st.sampled_from([(4, 4), (4, 2), (6, 2), (3, 1)]),
        kind=st.sampled_from([torch.float32, torch.bfloat16]),
    )
    def test_attention_is_that_of_a_mask(self, own, before, said, depth, shape, kind):
        """To float32's rounding; bfloat16 keeps three digits of what comes out."""
        tree, (heads, shared) = Tree.of(said), shape
        size = own + len(tree)
        draw = torch.Generator().manual_seed(own)

        def random(many, count):
            return torch.randn(1, many, count, depth, generator=draw).to(kind)

        q, k, v, first = random(heads, size), random(shared, size), random(shared, size), random(2 * shared, before)
        sees = np.zeros((size, size), bool)
        sees[:own, :own] = np.tri(own)
        sees[own:, :own] = True
        sees[own:, own:] = tree.sees
        whole = Blocks.of(sees)
        starts = 16 * np.arange(len(whole.many))
        blocks = np.stack([starts, whole.many, 0 * starts, 0 * starts], 1)
        lists = [torch.from_numpy(part.astype(np.int64)) for part in (blocks, whole.keys, whole.masks)]
        ends = torch.from_numpy(np.cumsum([0, *whole.counts]))
        prefix = [(first[:, :shared], first[:, shared:])] if before else ()
        module = nn.Module()
        module.layer_idx = 0
        told = Branches(prefix, lists[0], ends, *lists[1:]).attend(module, q, k, v, 0.3)[0]
        keys, values = (
            torch.cat([old, new], 2)[0].repeat_interleave(heads // shared, 0).double()
            for old, new in ((first[:, :shared], k), (first[:, shared:], v))
        )
        mask = torch.from_numpy(np.concatenate([np.ones((size, before), bool), sees], 1))
        odds = (q[0].double() @ keys.transpose(1, 2) * 0.3).masked_fill(~mask, -torch.inf).softmax(-1)
        wanted = (odds @ values).transpose(0, 1)
        room = 3e-6 if kind == torch.float32 else 2e-2
        assert told.double() == pytest.approx(wanted, rel=room, abs=room)

    @given(size=st.integers(1, 70))
    def test_a_chain_tells_what_its_stretches_leave_out(self, size):
        made, sees = Blocks.chain(size), np.zeros((size, size), bool)
        block = np.repeat(np.arange(len(made.many)), made.counts)
        for at, key, mask in zip(block, made.keys, made.masks, strict=True):
            for lane in range(made.many[at]):
                sees[16 * at + lane, key] |= bool(mask >> lane & 1)
        for at in range(len(made.many)):
            sees[16 * at : 16 * at + 16, : 16 * at] = True
        assert (sees == np.tri(size, dtype=bool)).all()
