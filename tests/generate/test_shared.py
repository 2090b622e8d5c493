"""Sharing changes nothing but the work: plain transformers' scores row by row, fewer tokens run, no logits unasked."""

from contextlib import contextmanager

import numpy as np
import pytest
import tiny
import torch
import transformers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from burnish.generate import engine, packed, padded, shared
from burnish.generate.shared import Behind, Tree
from burnish.models import base, kernels, load
from burnish.models.base import Head
from burnish.models.layout import rounded
from burnish.models.model import Model
from burnish.tokens.rows import Tokens

EXACT = {"rel": 1e-6, "abs": 1e-6}  # float32 keeps 6e-8 of a sum; the tiny models' wide weights lose one digit
FAMILIES = {  # what a prompt of 40 ids with answers behind it can be run as; windows are wider than what is tried
    "qwen2": ({}, "packed"),
    "mistral": ({"sliding_window": 24}, "chain"),
    "gemma2": ({"head_dim": 8, "sliding_window": 24}, "chain"),  # and its logits are capped after the head
    "opt": ({"ffn_dim": 48, "word_embed_proj_dim": 16, "num_key_value_heads": None}, "packed"),
    "gpt_neox": ({}, "packed"),
    "bloom": ({"n_layer": 2, "n_head": 4}, ""),
    "gpt_neo": (
        {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "num_heads": 4, "window_size": 24},
        "chain",
    ),
    "falcon": ({"num_kv_heads": 4, "alibi": True}, ""),
    "mamba": ({"state_size": 4}, "none"),
}
ids = st.integers(10, 60)
answers = st.lists(st.lists(ids, min_size=1, max_size=5), min_size=1, max_size=6)


KERNELS = kernels.compiled() is not None
MADE: dict[str, Model] = {}


@pytest.fixture(params=["llama, packed", "gpt2, packed", "llama, padded", "gpt2, padded"])
def model(request, tmp_path_factory, monkeypatch):
    """The tests hold of both ways; "packed" needs a compiler, and is the padded way where there is none."""
    kind, way = request.param.split(", ")
    if way == "padded":
        monkeypatch.setattr(packed, "fits", lambda model: False)
    if kind not in MADE:
        MADE[kind] = tiny.model(kind, "language", tmp_path_factory).eval()
    assert shared.ability(MADE[kind], 90) == ("packed" if way == "packed" and KERNELS else "tree")
    return MADE[kind]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.model("llama", "language", tmp_path_factory).eval()


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def kind_in_double(request, tmp_path_factory):
    return tiny.model(request.param, "language", tmp_path_factory).eval().double()


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    own, able = FAMILIES[request.param]
    hf = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(request.param, **tiny.SMALL | own)
    )
    tiny.redraw(dict(hf.named_parameters()))
    hf.save_pretrained(made := tmp_path_factory.mktemp(request.param))
    return load.load(base.inspect(str(made)), Head("language"), dropout=0.0).eval(), able


def alone(model, prompt, answer):
    """Sum of the answer's log-probabilities, by transformers alone, one row and no cache."""
    with torch.no_grad():
        whole = torch.tensor([[*prompt, *answer]])
        logits = model.hf(whole, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return float(torch.log_softmax(logits.double(), -1)[range(len(answer)), answer].sum())


def by_hand(model, prompts, said):
    return np.array([[alone(model, prompt, answer) for answer in said] for prompt in prompts])


def rows(many, begins=30, seed=0, longest=20):
    draw = np.random.default_rng(seed)
    first = draw.integers(10, 60, begins).tolist()
    return [first + draw.integers(10, 60, int(n)).tolist() for n in draw.integers(1, longest, many)]


@contextmanager
def counted(model: Model):
    """How many ids went through the layers, and at how many places the head was asked."""
    told = {"ids": 0, "asked": 0}

    def embed(module, inputs, out):
        told["ids"] += inputs[0].numel()

    def head(module, inputs, out):
        told["asked"] += out.numel() // out.shape[-1]

    hooks = [
        model.hf.get_input_embeddings().register_forward_hook(embed),
        model.hf.get_output_embeddings().register_forward_hook(head),
    ]
    yield told
    for hook in hooks:
        hook.remove()


class TestScoresAreThoseOfPlainTransformers:
    @settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        first=st.lists(ids, max_size=40),
        rest=st.lists(st.lists(ids, min_size=1, max_size=12), min_size=1, max_size=6),
        said=answers,
        budget=st.sampled_from([1, 100, 10**6]),
    )
    @example(first=[11] * 20, rest=[[12], [12], [12]], said=[[5], [5, 6], [5, 6, 7], [8]], budget=100)  # equal prompts
    @example(first=[], rest=[[12], [13, 14]], said=[[5, 6], [7]], budget=100)  # nothing in common
    @example(first=[11] * 20, rest=[[12], [12, 13]], said=[[5]], budget=100)  # one prompt begins the other
    def test_whatever_is_shared(self, model, first, rest, said, budget):
        prompts = [[*first, *row] for row in rest]
        told = engine.choices(model, prompts, said, budget, pad=7)
        assert told == pytest.approx(by_hand(model, prompts, said), **EXACT)

    def test_to_twelve_digits_where_rounding_is_small(self, kind_in_double):
        """In float64 what is left of the difference is a mistake, if it is anything."""
        prompts, said = rows(6), [[5], [6, 7, 8], [6, 7], [9, 9]]
        told = engine.choices(kind_in_double, prompts, said, 200)
        assert told == pytest.approx(by_hand(kind_in_double, prompts, said), rel=1e-12, abs=1e-12)

    def test_to_the_last_place_of_the_context(self, model):
        prompts = [row[:92] for row in rows(4, begins=80, longest=40)] + [rows(1, 92)[0][:92]]
        said = [[11, 12, 13, 14], [11, 12], [9]]
        assert engine.choices(model, prompts, said, 4096) == pytest.approx(by_hand(model, prompts, said), **EXACT)

    def test_of_every_family_and_no_model_is_run_as_it_cannot_be(self, family):
        model, able = family
        prompts, said = rows(5), [[5], [6, 7, 8], [6, 9]]
        assert (able if KERNELS else able.replace("packed", "tree")) in ("", shared.ability(model, 60))
        assert engine.choices(model, prompts, said, 300) == pytest.approx(
            by_hand(model, prompts, said), rel=3e-6, abs=3e-6
        )
        for prompt, row in zip(prompts, engine.generate(model, prompts, (), 6, 300), strict=True):
            new = list(prompt)
            for _ in range(6):
                with torch.no_grad():
                    new.append(int(model.hf(torch.tensor([new]), use_cache=False).logits[0, -1].argmax()))
            assert row.ids == new[len(prompt) :]

    @pytest.mark.parametrize("weighed", [1, 3, 8])
    def test_of_weighted_tokens_behind_a_common_beginning(self, model, weighed):
        made = []
        for prompt in rows(6):
            weights = np.zeros(len(prompt) + 8, np.float32)
            weights[-weighed - 1 : -1] = 1  # the last id is read by nobody
            made.append(Tokens(np.array([*prompt, *range(20, 28)], np.int32), weights, "", ""))
        with counted(model) as work:
            told = engine.likelihood(model, made, 300)
        assert work["ids"] < sum(len(row.ids) for row in made) / 1.5
        for row, (nll, count) in zip(made, told, strict=True):
            whole = row.ids.tolist()
            assert count == weighed
            assert -nll == pytest.approx(alone(model, whole[: -weighed - 1], whole[-weighed - 1 : -1]), **EXACT)


class TestNothingElseMatters:
    @settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(order=st.permutations(range(8)), budget=st.integers(1, 1000), said=answers)
    def test_neither_order_nor_batch_size(self, model, order, budget, said):
        """A row's shape hangs on itself alone, and so does the order of its sums: with MKL most differ by no bit."""
        prompts = rows(8)
        whole = engine.choices(model, prompts, said, 10**6)
        assert engine.choices(model, [prompts[i] for i in order], said, budget) == pytest.approx(
            whole[order], rel=1e-14
        )

    def test_nor_batch_mates(self, model):
        prompts, said = rows(6), [[5], [6, 7], [6, 8, 9]]
        together = engine.choices(model, prompts, said, 1000)
        single = np.concatenate([engine.choices(model, [prompt], said, 1000) for prompt in prompts])
        others = engine.choices(model, [*rows(5, 3, seed=4), *prompts], said, 1000)[5:]
        assert single == pytest.approx(together, **EXACT)
        assert others == pytest.approx(together, **EXACT)

    @pytest.mark.parametrize("kind", ["llama", "gpt2", "bart", "t5"])
    def test_a_greedy_text_is_not_changed_by_ties_that_rounding_could_turn(self, kind, tmp_path_factory):
        """The head's rows in pairs that are equal but for rounding: which of a pair wins must not hang on the batch."""
        model = tiny.model(kind, "language", tmp_path_factory).eval()
        with torch.no_grad():
            head = model.hf.get_output_embeddings()
            head.weight[1::2] = head.weight[: len(head.weight) // 2 * 2 : 2] * (1 + 1e-7)
        prompts = rows(8)
        told = engine.generate(model, prompts, (), 20, 10**6)
        assert engine.generate(model, prompts[::-1], (), 20, 1)[::-1] == told
        assert [engine.generate(model, [prompt], (), 20, 10**6)[0] for prompt in prompts] == told
        assert engine.generate(model, [*rows(3, 2, seed=3), *prompts[2:5]], (), 20, 10**6)[3:] == told[2:5]


class TestWork:
    """Counted in ids that go through the layers, not in seconds."""

    def test_a_common_beginning_runs_once_and_a_prompt_once_for_all_its_answers(self, llama):
        prompts, said = rows(20, begins=40, longest=9), [[5, 6, 7], [5, 6, 8], [9], [5]]
        shared.ability(llama, 50)
        with counted(llama) as work:
            engine.choices(llama, prompts, said, 10**6)
        branches = 2  # 5 and 5 6: the last id of an answer is not read
        assert len(Tree.of(said)) == branches
        places = [len(prompt) - 40 + branches for prompt in prompts]
        padded_ids = sum(-(-place // padded.STEP) * padded.STEP for place in places)
        assert work["ids"] == 40 + (rounded(sum(places)) if KERNELS else padded_ids)
        assert work["ids"] < sum(map(len, prompts)) / 2
        assert work["asked"] == 1 + 20 * (1 + branches)  # the prefix's own pass cannot ask nothing

    def test_no_logits_but_those_asked(self, llama):
        prompts = [[*prompt[:4], 12] for prompt in rows(30, begins=1, longest=2)]
        shared.ability(llama, 50)
        with counted(llama) as work:
            engine.choices(llama, prompts, [[5], [6]], 10**6)
        assert work["asked"] == len(prompts)

    def test_generation_runs_a_common_beginning_once(self, llama):
        prompts = rows(10, begins=60, longest=6)
        shared.ability(llama, 90)
        with counted(llama) as work:
            engine.generate(llama, prompts, (), 4, 10**6)
        assert work["ids"] <= 60 + 10 * 5 + 3 * 10 + 2 * 96  # and up to two near ties settled

    def test_an_encoder_reads_a_prompt_once_for_all_answers(self, tmp_path_factory):
        model = tiny.model("t5", "language", tmp_path_factory).eval()
        read = []
        hook = model.hf.get_encoder().register_forward_hook(lambda module, inputs, out: read.append(out[0].shape[0]))
        prompts, said = rows(7), [[5, 6], [7], [8, 9]]
        engine.choices(model, prompts, said, 10**6)
        hook.remove()
        assert read == [7]

    @pytest.mark.parametrize("begins", [0, 3, shared.SHORTEST - 1])
    def test_what_is_short_is_not_shared(self, llama, begins):
        assert shared.common([np.array(row) for row in rows(5, begins)], [begins] * 5) == 0

    def test_a_group_holds_what_its_budget_allows(self, llama):
        prefix = shared.read(llama, list(range(10, 26)))
        nine = Behind(prefix, [np.arange(10, 14)] * 9, [np.array([3])] * 9)
        for how, budget, sizes in (
            (packed, 13, [3, 3, 3]),
            (padded, 60, [3, 3, 3]),  # the prefix counts: each row has its own copy
            (packed, 10**6, [9]),
            (padded, 10**6, [9]),
            (packed, 1, [1] * 9),
            (padded, 1, [1] * 9),
        ):
            groups = list(how.groups(llama, nine, budget))
            assert [len(group) for group in groups] == sizes
            assert sorted(i for group in groups for i in group) == list(range(9))


class TestTree:
    @given(said=answers)
    def test_holds_each_beginning_once_and_every_answer_whole(self, said):
        tree = Tree.of(said)
        beginnings = {tuple(answer[:end]) for answer in said for end in range(1, len(answer))}
        assert len(tree) == len(beginnings)
        for number, answer in enumerate(said):
            mine = tree.answer == number
            assert tree.token[mine].tolist() == answer
            for node, end in zip(tree.node[mine].tolist(), range(len(answer)), strict=True):
                if end:
                    seen = tree.ids[tree.sees[node - 1]].tolist()
                    assert seen == answer[:end]
                    assert int(tree.depth[node - 1]) == end - 1
