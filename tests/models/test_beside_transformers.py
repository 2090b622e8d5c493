"""Odd architectures: what `Model` says of a row, alone or in a pack, quickened or not, is what plain transformers says.

Each was once trained as something else: without its sinks, its own mask, its own pooling or positions.
"""

import numpy as np
import pytest
import tiny
import torch
import transformers

from burnish.models import base, load, quicken
from burnish.tokens.batch import collate, join
from burnish.tokens.rows import Tokens

SIDES = {**tiny.PAIR_SIDES, "d_model": 32, "decoder_start_token_id": 2}
FAMILIES = {  # (kind of Auto class, configuration)
    "gpt_oss": ("CausalLM", {"head_dim": 8, "sliding_window": 8, "num_local_experts": 2, "num_experts_per_tok": 1}),
    "exaone4": ("CausalLM", {"sliding_window": 8, "sliding_window_pattern": 2}),
    "smollm3": ("CausalLM", {"no_rope_layers": [1, 0]}),
    "doge": ("CausalLM", {}),
    "data2vec-text": ("SequenceClassification", {"num_key_value_heads": None}),
    "xmod": ("MaskedLM", {"num_key_value_heads": None, "default_language": "en", "languages": ["en"]}),
    "layoutlm": ("SequenceClassification", {"num_key_value_heads": None}),
    "eurobert": ("SequenceClassification", {}),
    "longt5": (
        "Seq2SeqLM",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "local_radius": 4}
        | {"decoder_start_token_id": 1},
    ),
    "switch_transformers": (
        "Seq2SeqLM",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
        | {"num_experts": 2, "expert_capacity": 24, "decoder_start_token_id": 1},
    ),
    "bigbird_pegasus": ("Seq2SeqLM", {**SIDES, "block_size": 8, "num_random_blocks": 1}),
    "pegasus_x": ("Seq2SeqLM", {**SIDES, "block_size": 8, "num_global_tokens": 4}),
}


def row(length: int, head: str, two_sided: bool, draw: np.random.Generator) -> Tokens:
    ids = np.append(draw.integers(5, 90, length), 2).astype(np.int32)
    weights = np.full(length + 1, float(head == "language"), np.float32)
    weights[0] = 0.0
    source = draw.integers(5, 90, length + 4).astype(np.int32) if two_sided else None
    return Tokens(ids, weights, "x", "f:1", source, None if head == "language" else 1)


def plain(hf, told: Tokens, head: str) -> torch.Tensor:
    """What transformers itself says of one row."""
    ids = torch.from_numpy(told.ids).long()[None]
    if told.source is not None:
        start = torch.full((1, 1), hf.config.decoder_start_token_id)
        said = hf(
            input_ids=(source := torch.from_numpy(told.source).long()[None]),
            attention_mask=torch.ones_like(source),
            decoder_input_ids=torch.cat([start, ids[:, :-1]], 1),
        )
        return said.logits[0, 1:]
    said = hf(input_ids=ids).logits[0]
    if head != "language":
        return said[None]
    return said[:-1] if "CausalLM" in type(hf).__name__ else said[1:]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_read_as_transformers_reads_them(family, tmp_path):
    form, own = FAMILIES[family]
    size = 98 if family in ("data2vec-text", "xmod") else 96
    config = transformers.AutoConfig.for_model(family, **{**tiny.SMALL, "max_position_embeddings": size} | own)
    if form == "SequenceClassification":
        config.num_labels = len(tiny.LABELS)
    hf = getattr(transformers, f"AutoModelFor{form}").from_config(config).eval()
    tiny.redraw(dict(hf.named_parameters()))
    hf.save_pretrained(tmp_path)
    head = "classes" if form == "SequenceClassification" else "language"
    hf = type(hf).from_pretrained(tmp_path).eval()
    draw = np.random.default_rng(0)
    made = [row(length, head, form == "Seq2SeqLM", draw) for length in (5, 23, 11)]
    found = base.inspect(str(tmp_path))
    model = load.load(found, tiny.HEADS[head], dropout=0.0, files=tmp_path).eval()
    with torch.no_grad():
        wanted = torch.cat([plain(hf, one, head) for one in made])
        for _ in range(2):
            alone = torch.cat([model(collate([one], 1)).logits for one in made])
            torch.testing.assert_close(alone, wanted, rtol=2e-5, atol=2e-5)
            if model.packs:
                torch.testing.assert_close(model(join(made)).logits, wanted, rtol=2e-5, atol=2e-5)
            quicken.install(model.hf)


LENGTHS = {  # what the config says, what a row may have
    "mpnet": ({"max_position_embeddings": 98}, 96),
    "longformer": ({"max_position_embeddings": 98, "attention_window": 8}, 96),
    "data2vec-text": ({"max_position_embeddings": 98}, 96),
    "led": (
        {**SIDES, "max_encoder_position_embeddings": 80, "max_decoder_position_embeddings": 80, "attention_window": 8}
        | {"max_position_embeddings": None},
        80,
    ),
    "mpt": ({"n_layers": 2, "n_heads": 4, "d_model": 32, "max_seq_len": 64, "max_position_embeddings": None}, 64),
    "gemma3": ({"text_config": {**tiny.SMALL, "head_dim": 8}, "max_position_embeddings": None}, 96),
}


@pytest.mark.parametrize("family", LENGTHS)
def test_a_row_may_be_as_long_as_the_model_holds(family, tmp_path):
    own, wanted = LENGTHS[family]
    small = {**tiny.SMALL, "num_key_value_heads": None, **own}
    config = transformers.AutoConfig.for_model(family, **{key: item for key, item in small.items() if item is not None})
    config.save_pretrained(tmp_path)
    found = base.inspect(str(tmp_path), random=True)
    assert (found.context, found.width) == (wanted, 32)
    if family != "gemma3":
        model = load.load(found, tiny.HEADS["language"], dropout=0.0)
        ids = np.full(wanted, 7, np.int32)
        source = ids if found.kind == "encoder-decoder" else None
        whole = Tokens(ids, np.ones(wanted, np.float32), "x", "f:1", source)
        assert torch.isfinite(model(collate([whole], 1)).logits).all()
