"""The families people use, beyond the six of tests/tiny.py: one small model of each goes through the whole engine.

Padding, order and mates change no logit; a full artifact and a LoRA adapter come back to the bit; gradients flow.
"""

import numpy as np
import pytest
import tiny
import torch
import transformers

from burnish.adapters import _lora, full, lora
from burnish.models import base, load
from burnish.tokens.batch import collate, join
from burnish.tokens.rows import Tokens

DECODERS = {
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8},
    "phi3": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 16, "num_key_value_heads": None},
    "bloom": {"n_layer": 2, "n_head": 4},
    "gpt_neox": {},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "num_heads": 4, "window_size": 8},
    "falcon": {"num_kv_heads": 4},
    "olmo2": {},
    "smollm3": {},
    "stablelm": {},
    "granite": {},
}
ENCODERS = {
    "roberta": {"max_position_embeddings": 98},
    "distilbert": {"dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 48},
    "electra": {"embedding_size": 16},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2},
    "xlm-roberta": {"max_position_embeddings": 98},
    "mpnet": {"max_position_embeddings": 98},
}
PAIRS = {
    "mt5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 1},
    "pegasus": {**tiny.PAIR_SIDES, "d_model": 32, "decoder_start_token_id": 1},
    "mbart": {**tiny.PAIR_SIDES, "d_model": 32, "decoder_start_token_id": 2},
    "marian": {**tiny.PAIR_SIDES, "d_model": 32, "decoder_start_token_id": 1},
}
AUTO = {"decoder": "CausalLM", "encoder": "MaskedLM", "encoder-decoder": "Seq2SeqLM"}
FAMILIES = {**dict.fromkeys(DECODERS, "decoder"), **dict.fromkeys(ENCODERS, "encoder")}
FAMILIES |= dict.fromkeys(PAIRS, "encoder-decoder")
_made = {}


def folder(family, made):
    if family not in _made:
        own = {**tiny.SMALL, **{**DECODERS, **ENCODERS, **PAIRS}[family]}
        config = transformers.AutoConfig.for_model(family, **own)
        hf = getattr(transformers, f"AutoModelFor{AUTO[FAMILIES[family]]}").from_config(config)
        tiny.redraw(dict(hf.named_parameters()))
        _made[family] = made.mktemp(family)
        hf.save_pretrained(_made[family])
    return _made[family]


def rows(kind, head):
    draw, made = np.random.default_rng(0), []
    for length in (5, 23, 11):
        ids = np.append(draw.integers(5, 90, length), 2).astype(np.int32)
        weights = np.ones(length + 1, np.float32) if head == "language" else np.zeros(length + 1, np.float32)
        weights[0] = 0
        pair = kind == "encoder-decoder" and head == "language"
        source = np.append(draw.integers(5, 90, length + 2), 2).astype(np.int32) if pair else None
        made.append(Tokens(ids, weights, "x", "f:1", source, None if head == "language" else 1))
    return made


def logits(model, batch):
    with torch.no_grad():
        return model(batch).logits


# Attention of their own (or, Pegasus and Marian, positions): packs are not kept apart, and `packs` must see it.
PADDED = {"bloom", "falcon", "gpt_neo", "deberta-v2", "modernbert", "mpnet", "pegasus", "marian"}


@pytest.mark.slow
@pytest.mark.parametrize("head", ["language", "classes"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_goes_through_the_engine(family, head, tmp_path_factory, tmp_path):
    found = base.inspect(str(folder(family, tmp_path_factory)))
    assert found.kind == FAMILIES[family]
    if head != "language" and not base.has_head(found):
        pytest.skip("transformers has no classification form of it")
    model = load.load(found, tiny.HEADS[head], dropout=0.0).eval()
    made = rows(found.kind, head)
    together = logits(model, collate(made, 1))
    alone = torch.cat([logits(model, collate([row], 1)) for row in made])
    torch.testing.assert_close(together, alone, rtol=2e-5, atol=2e-5)
    if found.kind == "decoder":
        torch.testing.assert_close(logits(model, collate(made, 1, left=True)), alone, rtol=2e-5, atol=2e-5)

    assert model.packs or family in PADDED or (found.kind == "encoder-decoder" and head != "language")
    if model.packs:
        torch.testing.assert_close(logits(model, join(made)), alone, rtol=2e-5, atol=2e-5)

    (tmp_path / "full").mkdir()
    full.save(model, tmp_path / "full", "base")
    again = load.load(found, tiny.HEADS[head], files=tmp_path / "full").eval()
    assert torch.equal(logits(again, collate(made, 1)), together)

    lora.attach(model, {}, 0.0, 0)
    assert torch.equal(logits(model, collate(made, 1)), together)
    model(collate(made, 1)).logits.log_softmax(-1)[:, 0].sum().backward()
    names = [name for name, value in model.trainable().items() if value.grad is None]
    assert names == []
    with torch.no_grad():
        for layer in _lora.layers(model).values():
            layer.lora_B.normal_(0, 0.05)
    tuned = logits(model, collate(made, 1))
    (tmp_path / "lora").mkdir()
    lora.save(model, tmp_path / "lora", "base")
    again = load.load(found, tiny.HEADS[head], dropout=0.0)
    lora.load(again, tmp_path / "lora")
    assert torch.equal(logits(again.eval(), collate(made, 1)), tuned)
    lora.merge(model)
    torch.testing.assert_close(logits(model, collate(made, 1)), tuned, rtol=1e-4, atol=1e-4)
