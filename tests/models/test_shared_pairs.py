"""Two answers of a pair share one pass over what they begin with: the same numbers as two rows, for fewer tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers

from burnish.methods import _losses, dpo
from burnish.models import base, load
from burnish.models.base import Head
from burnish.models.model import Model
from burnish.tokens.batch import Batches, collate, join
from burnish.tokens.rows import Tokens

FAMILIES = {
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig, {}),
    "mistral": (transformers.MistralForCausalLM, transformers.MistralConfig, {"sliding_window": 7}),
    "qwen3": (transformers.Qwen3ForCausalLM, transformers.Qwen3Config, {"head_dim": 8}),
    "gemma2": (
        transformers.Gemma2ForCausalLM,
        transformers.Gemma2Config,
        {"head_dim": 8, "sliding_window": 9, "query_pre_attn_scalar": 8},
    ),
    "gpt_neox": (transformers.GPTNeoXForCausalLM, transformers.GPTNeoXConfig, {}),
}


def model(name: str, folder: Path, **own: Any) -> Model:
    """A tiny model of a family, with wide weights."""
    form, config, more = FAMILIES[name]
    hf = form(config(**tiny.SMALL | {"max_position_embeddings": 900} | more | own))
    tiny.redraw(dict(hf.named_parameters()))
    hf.save_pretrained(folder)
    tiny.write_tokenizer("llama", folder)
    made = load.load(base.inspect(str(folder)), Head("language"), dropout=0.0)
    made.hf.requires_grad_(True)
    return made


def pair(prompt: int, answers: tuple[int, int], alike: int = 0, seed: int = 0) -> Tokens:
    """A prompt of so many tokens and two answers, whose first `alike` tokens are the same."""
    draw = np.random.default_rng([seed, prompt, *answers])
    start = draw.integers(3, 90, prompt + alike)
    rows = []
    for size in answers:
        ids = np.append(start, draw.integers(3, 90, size - alike)).astype(np.int32)
        weights = np.ones(len(ids), np.float32)
        weights[:prompt] = 0
        weights[0] = 0
        rows.append(Tokens(ids, weights, f"{seed}-{prompt}", "rows.jsonl:1"))
    return replace(rows[0], rejected=rows[1], reference=np.array([-30.0, -31.0], np.float32))


ROWS = [
    pair(12, (5, 9)),
    pair(30, (14, 3), 2),
    pair(1, (4, 4)),
    pair(0, (6, 3)),
    pair(25, (17, 17), 9),
    pair(12, (2, 2)),
]
LONG = [pair(300, (290, 40)), pair(20, (270, 300), 5)]  # longer than a block of queries


def loss_and_gradient(made: Model, batches: list[Any]) -> tuple[float, dict[str, torch.Tensor]]:
    made.zero_grad(set_to_none=True)
    loss = torch.stack([dpo.loss(made(batch), batch, dpo.Settings(sft=0.5)) for batch in batches]).sum()
    loss.backward()
    return float(loss.detach()), {name: value.grad.clone() for name, value in made.trainable().items()}


@pytest.mark.parametrize("rows", [ROWS, pytest.param(LONG, marks=pytest.mark.slow)], ids=["short", "long"])
@pytest.mark.parametrize("name", FAMILIES)
def test_shared_is_apart(name: str, rows: list[Tokens], tmp_path: Path) -> None:
    """Log-likelihoods to 1e-5 of their size, gradients to 1e-6 of the largest: float32 sums in another order."""
    made = model(name, tmp_path)
    assert made.shares
    with torch.no_grad():
        shared, apart = join(rows, shared=True), join(rows)
        told, wanted = (_losses.answers(made(batch), batch) for batch in (shared, apart))
        padded = collate(rows, 0)
        torch.testing.assert_close(_losses.answers(made(padded), padded)[0], wanted[0], rtol=1e-5, atol=1e-5)
    assert shared.tokens < apart.tokens - 30
    torch.testing.assert_close(told[0], wanted[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(told[1], wanted[1])
    made.train()
    loss, own = loss_and_gradient(made, [join(rows, shared=True)])
    other, alone = loss_and_gradient(made, [join([row]) for row in rows])
    assert loss == pytest.approx(other, rel=1e-5)
    most = max(float(value.abs().max()) for value in alone.values())
    for key, value in alone.items():
        torch.testing.assert_close(own[key], value, rtol=0, atol=1e-6 * most, msg=lambda m, key=key: f"{key} {m}")


def test_an_answer_reads_nothing_of_the_other(tmp_path: Path) -> None:
    """To the last bit: the rejected answer's likelihood does not depend on what the chosen one says."""
    made = model("llama", tmp_path).eval()
    row = pair(12, (5, 9))
    ids = row.ids.copy()
    ids[13:] = 7
    with torch.no_grad():
        told = [
            _losses.answers(made(batch), batch)[0] for batch in (join([row], True), join([replace(row, ids=ids)], True))
        ]
    assert told[0][0, 0] != told[1][0, 0]
    assert told[0][0, 1] == told[1][0, 1]


def test_bfloat16_shares_too(tmp_path: Path) -> None:
    """Sums of about 100 nats to 2 %: bfloat16 has 8 bits, and the order of its sums is another."""
    made = model("llama", tmp_path)
    made.hf.to(torch.bfloat16)
    with torch.no_grad():
        told, wanted = (_losses.answers(made(batch), batch)[0] for batch in (join(ROWS, True), join(ROWS)))
    torch.testing.assert_close(told, wanted, rtol=2e-2, atol=0.1)


def test_a_model_that_reads_the_other_answer_does_not_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proved on the model: where attention ignored the layout, two rows are run."""
    made = model("llama", tmp_path)
    plain = made.hf.model.layers[0].self_attn.forward
    monkeypatch.setattr(
        made.hf.model.layers[0].self_attn,
        "forward",
        lambda hidden, *told, **named: plain(hidden + hidden.cumsum(1) * 0.1, *told, **named),
    )
    assert not made.shares


def test_encoder_decoders_read_two_rows(tmp_path_factory: pytest.TempPathFactory) -> None:
    made = tiny.model("bart", "language", tmp_path_factory)
    assert made.packs
    assert not made.shares


def test_a_pair_counts_what_it_runs() -> None:
    row = pair(25, (17, 13), 9)
    assert row.shared == 25 + 9 - 1
    assert row.length == 25 + 17 + 25 + 13 - row.shared
    assert row.supervised == 17 + 13
    assert join([row], shared=True).tokens == row.length
    assert join([row]).tokens == row.length + row.shared
    assert [batch.rows for batch in Batches([row] * 5, 5, 2 * row.length, 0, 0, packed=True, shared=True).step(1)] == [
        2,
        2,
        1,
    ]
