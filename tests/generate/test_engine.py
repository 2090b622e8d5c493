"""What the engine says of a model: numbers and ids that plain transformers gives row by row."""

import math
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from burnish.generate import engine
from burnish.generate.engine import Generated, Sampling
from burnish.tokens import batch as batching
from burnish.tokens.rows import Tokens

KINDS = ("llama", "gpt2", "bart", "t5")
ROUNDING = 1e-5  # nats: float32 sums in another order, over at most 30 tokens of a model with wide weights


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory):
    return tiny.model(request.param, "language", tmp_path_factory).eval()


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.model("llama", "language", tmp_path_factory).eval()


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return tiny.model("gpt2", "language", tmp_path_factory).eval()


def prompts(many=5, seed=0, longest=24):
    draw = np.random.default_rng(seed)
    return [draw.integers(10, 60, int(length)).tolist() for length in draw.integers(3, longest, many)]


def alone(model, prompt, answer):
    """Sum of the answer's log-probabilities, by transformers alone, one row and no cache."""
    with torch.no_grad():
        if model.base.kind == "encoder-decoder":
            fed = torch.tensor([[model.start_id, *answer[:-1]]])
            logits = model.hf(input_ids=torch.tensor([prompt]), decoder_input_ids=fed, use_cache=False).logits[0]
        else:
            logits = model.hf(torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        return float(torch.log_softmax(logits.double(), -1)[range(len(answer)), answer].sum())


ONE, SEVERAL, MIXED = [[11], [12], [40]], [[11, 12], [13, 14], [50, 51]], [[11], [11, 12, 13], [20, 9], [30] * 7]


class TestChoices:
    @pytest.mark.parametrize("answers", [ONE, SEVERAL, MIXED])
    def test_are_the_sums_of_log_probabilities_row_by_row(self, model, answers):
        told = engine.choices(model, prompts(), answers, 4096)
        by_hand = [[alone(model, prompt, answer) for answer in answers] for prompt in prompts()]
        assert told == pytest.approx(np.array(by_hand), abs=ROUNDING)

    @pytest.mark.parametrize("answers", [ONE, MIXED])
    @pytest.mark.parametrize("budget", [1, 40, 300])
    def test_do_not_depend_on_the_budget(self, model, answers, budget):
        whole = engine.choices(model, prompts(9), answers, 10**6)
        assert engine.choices(model, prompts(9), answers, budget) == pytest.approx(whole, abs=ROUNDING)

    def test_do_not_depend_on_the_order_of_prompts_or_answers(self, model):
        asked, order = prompts(6), [3, 0, 5, 1, 4, 2]
        told = engine.choices(model, asked, MIXED, 200)
        turned = engine.choices(model, [asked[i] for i in order], MIXED[::-1], 200)
        assert turned == pytest.approx(told[order][:, ::-1], abs=ROUNDING)

    @pytest.mark.parametrize("pad", [0, 11, 60])
    def test_do_not_depend_on_what_padding_is_made_of(self, model, pad):
        told = engine.choices(model, prompts(6), MIXED, 4096)
        assert engine.choices(model, prompts(6), MIXED, 4096, pad) == pytest.approx(told, abs=ROUNDING)

    def test_fill_the_context_to_the_last_place(self, model):
        prompt = prompts(1)[0] * 40
        prompt = prompt[: 96 - 7]
        told = engine.choices(model, [prompt, prompt[:5]], MIXED, 4096)
        assert told[0] == pytest.approx([alone(model, prompt, answer) for answer in MIXED], abs=ROUNDING * 3)


def transformers_greedy(model, prompt, most, stops):
    with torch.no_grad():
        made = model.hf.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=most,
            eos_token_id=list(stops) or None,
            pad_token_id=0,
            forced_eos_token_id=None,
            forced_bos_token_id=None,
        )[0].tolist()
    new = made[1:] if model.base.kind == "encoder-decoder" else made[len(prompt) :]
    ends = [i for i, token in enumerate(new) if token in stops]
    return Generated(new[: ends[0]], True) if ends else Generated(new[:most], False)


class TestGenerate:
    def test_greedy_ids_are_those_of_transformers(self, model):
        for most, stops in ((20, ()), (20, tuple(range(5, 30))), (1, ())):
            told = engine.generate(model, prompts(7), stops, most, 4096)
            assert told == [transformers_greedy(model, prompt, most, stops) for prompt in prompts(7)]

    def test_any_stop_id_ends_a_text_and_is_left_out(self, model):
        free = engine.generate(model, prompts(4), (), 20, 4096)
        stops = {row.ids[3] for row in free}
        for before, row in zip(free, engine.generate(model, prompts(4), tuple(stops), 20, 4096), strict=True):
            end = next(i for i, token in enumerate(before.ids) if token in stops)
            assert row == Generated(before.ids[:end], True)

    @pytest.mark.parametrize("budget", [1, 60, 10**6])
    def test_neither_budget_nor_order_nor_batch_mates_change_a_text(self, model, budget):
        asked = prompts(8)
        told = engine.generate(model, asked, (3, 17), 30, budget)
        assert told[::-1] == engine.generate(model, asked[::-1], (3, 17), 30, 10**6)
        assert told[2:4] == engine.generate(model, asked[2:4], (3, 17), 30, budget)

    @pytest.mark.parametrize("kind", ["llama", "gpt2"])
    def test_the_context_is_filled_and_not_exceeded(self, kind, tmp_path_factory):
        """The last id that a context of 96 gives is never read, so 97 ids come of it in all."""
        model = tiny.model(kind, "language", tmp_path_factory).eval()
        asked = [(prompts(1)[0] * 40)[:length] for length in (90, 96, 10, 60)]
        told = engine.generate(model, asked, (), 200, 10**6)
        assert [len(prompt) + len(row.ids) for prompt, row in zip(asked, told, strict=True)] == [97] * 4
        assert not any(row.finished for row in told)
        assert [engine.generate(model, [prompt], (), 200, 1)[0] for prompt in asked] == told

    def test_an_encoder_decoder_writes_no_more_than_its_decoder_holds(self, tmp_path_factory):
        model = tiny.model("bart", "language", tmp_path_factory).eval()
        assert [len(row.ids) for row in engine.generate(model, prompts(2), (), 200, 4096)] == [96, 96]

    def test_nothing_asked_nothing_told(self, model):
        assert engine.generate(model, [], (), 5, 10) == []
        assert engine.likelihood(model, [], 10) == []

    def test_a_stream_tells_what_generate_tells(self, llama):
        for asked in prompts(3):
            for sampling in (Sampling(), Sampling(0.9, 0.8, 4)):
                whole = engine.generate(llama, [asked], (7,), 30, 4096, sampling)[0]
                assert list(engine.stream(llama, asked, (7,), 30, sampling)) == whole.ids


class TestSampling:
    def test_the_same_seed_gives_the_same_texts_and_another_seed_others(self, model):
        one, two, other = (
            engine.generate(model, prompts(4), (), 12, 4096, Sampling(1.0, 1.0, seed)) for seed in (1, 1, 2)
        )
        assert one == two
        assert all(a != b for a, b in zip(one, other, strict=True))

    def test_a_text_does_not_depend_on_what_stands_beside_it(self, model):
        asked = prompts(6)
        told = engine.generate(model, asked, (3,), 12, 4096, Sampling(1.0, 0.9, 1))
        assert engine.generate(model, asked[::-1], (3,), 12, 40, Sampling(1.0, 0.9, 1)) == told[::-1]
        assert engine.generate(model, asked[4:], (3,), 12, 4096, Sampling(1.0, 0.9, 1)) == told[4:]

    def test_two_rows_with_one_prompt_share_no_luck_with_another_prompt(self, llama):
        a, b, c = engine.generate(llama, [[20, 21], [20, 21], [20, 22]], (), 12, 99, Sampling(1.0, 1.0, 1))
        assert a == b != c

    @pytest.mark.parametrize("temperature", [0.5, 1.0])
    def test_shares_are_those_of_the_softmax_within_top_p(self, temperature):
        """4,000 draws from known logits; a share of p is off by at most 5 deviations of sqrt(p (1 - p) / n)."""
        logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
        shares = torch.softmax(logits / temperature, -1)
        for top_p in (1.0, 0.9, 0.5):
            kept = (shares.cumsum(0) - shares) < top_p
            wanted = torch.where(kept, shares, 0.0) / shares[kept].sum()
            draws = [torch.Generator().manual_seed(i) for i in range(4000)]
            said = engine._draw(logits.expand(4000, 4), Sampling(temperature, top_p), draws)
            found = torch.bincount(said, minlength=4) / 4000
            assert (found[~kept] == 0).all()
            assert ((found - wanted).abs() <= 5 * (wanted * (1 - wanted) / 4000).sqrt() + 1e-9).all()

    def test_a_tiny_top_p_is_greedy(self, llama):
        greedy = engine.generate(llama, prompts(3), (), 15, 4096)
        assert engine.generate(llama, prompts(3), (), 15, 4096, Sampling(1.0, 1e-6, 3)) == greedy


class TestLikelihood:
    @pytest.mark.parametrize("kind", tiny.DECODERS)
    def test_is_the_language_models_cross_entropy(self, kind, tmp_path_factory):
        model = tiny.model(kind, "language", tmp_path_factory).eval()
        rows = tiny.rows(kind, "answers", tmp_path_factory)
        for row, (nll, count) in zip(rows, engine.likelihood(model, rows, 64), strict=True):
            ids = torch.from_numpy(row.ids).long()[None]
            labels = ids.masked_fill(torch.from_numpy(row.weights)[None] == 0, -100)
            with torch.no_grad():
                mean = float(model.hf(ids, labels=labels).loss)
            assert count == int((row.weights[1:] > 0).sum())
            assert nll == pytest.approx(mean * count, abs=ROUNDING * 5)

    @pytest.mark.parametrize("kind", tiny.PAIRS)
    def test_is_the_cross_entropy_of_an_encoder_decoder(self, kind, tmp_path_factory):
        model = tiny.model(kind, "language", tmp_path_factory).eval()
        rows = tiny.rows(kind, "answers", tmp_path_factory)
        for row, (nll, count) in zip(rows, engine.likelihood(model, rows, 64), strict=True):
            with torch.no_grad():
                source, ids = (torch.from_numpy(part).long()[None] for part in (row.source, row.ids))
                mean = float(model.hf(input_ids=source, labels=ids).loss)
            assert (nll, count) == (pytest.approx(mean * len(row.ids), abs=ROUNDING * 10), len(row.ids))

    @settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(budget=st.integers(1, 200), order=st.permutations(range(8)))
    def test_does_not_depend_on_budget_batch_mates_or_order(self, llama, tmp_path_factory, budget, order):
        rows = tiny.rows("llama", "answers", tmp_path_factory)
        whole = engine.likelihood(llama, rows, 10**6)
        told = engine.likelihood(llama, [rows[i] for i in order], budget, pad=9)
        for i, (nll, count) in zip(order, told, strict=True):
            assert (nll, count) == (pytest.approx(whole[i][0], abs=ROUNDING * 5), whole[i][1])

    def test_of_a_uniform_model_is_ln_v_a_token(self, tmp_path_factory):
        model = tiny.model("gpt2", "language", tmp_path_factory).eval()
        with torch.no_grad():
            for value in model.hf.parameters():
                value.zero_()
        for nll, count in engine.likelihood(model, tiny.rows("gpt2", "document", tmp_path_factory), 99):
            assert nll == pytest.approx(count * math.log(model.base.vocabulary), rel=1e-6)

    def test_a_row_without_targets_weighs_nothing(self, llama):
        row = Tokens(np.arange(5, 9, dtype=np.int32), np.zeros(4, np.float32), "", "")
        scored = replace(row, weights=np.ones(4, np.float32))
        (nothing, none), (_, three) = engine.likelihood(llama, [row, scored], 99)
        assert (nothing, none, three) == (0.0, 0, 3)


class TestHeadsAndFeatures:
    @pytest.mark.parametrize("kind", tiny.KINDS)
    def test_features_are_the_mean_hidden_state_whatever_the_padding(self, kind, tmp_path_factory):
        model = tiny.model(kind, "language", tmp_path_factory).eval()
        rows = tiny.rows(kind, "classes", tmp_path_factory)
        body = model.hf.get_encoder() if kind in tiny.PAIRS else model.hf.base_model
        with torch.no_grad():
            by_hand = [body(torch.from_numpy(row.ids).long()[None]).last_hidden_state[0].mean(0) for row in rows]
        for budget, pad in ((1, 0), (10**6, 0), (70, 9)):
            told = engine.features(model, rows, budget, pad)
            assert told.numpy() == pytest.approx(torch.stack(by_hand).numpy(), abs=ROUNDING)

    def test_one_long_row_does_not_pad_the_others(self, tmp_path_factory, monkeypatch):
        model = tiny.model("llama", "classes", tmp_path_factory).eval()
        rows = [Tokens(np.full(size, 5, np.int32), np.ones(size, np.float32), "", "") for size in (40, *[3] * 20)]
        read, forward = [], type(model).forward
        monkeypatch.setattr(
            type(model), "forward", lambda self, batch: read.append(batch.tokens) or forward(self, batch)
        )
        shapes = []
        monkeypatch.setattr(engine, "join", lambda some: shapes.append(batching.join(some)) or shapes[-1])
        engine.head(model, rows, 10**6)
        assert sum(read) == sum(batch.ids.numel() for batch in shapes) == 100

    @pytest.mark.parametrize("kind", tiny.KINDS)
    def test_heads_are_the_classifiers_logits_row_by_row(self, kind, tmp_path_factory):
        model = tiny.model(kind, "classes", tmp_path_factory).eval()
        rows = tiny.rows(kind, "classes", tmp_path_factory)
        if kind == "llama":
            model.hf.config.pad_token_id = None  # alone, transformers then reads the last token
        with torch.no_grad():
            by_hand = [model.hf(torch.from_numpy(row.ids).long()[None]).logits[0].numpy() for row in rows]
        for budget in (1, 70, 10**6):
            assert engine.head(model, rows, budget) == pytest.approx(np.array(by_hand), abs=ROUNDING)
