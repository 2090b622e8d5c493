"""Which weights are the last layers', on every kind of model, and that nothing reaches below them."""

import pytest
import tiny
import torch
import transformers

from burnish.adapters import partial
from burnish.models import bottom, load
from burnish.tokens.batch import collate

BODIES = {  # (kind, head, layers) -> where every trained name begins
    ("llama", "language", 1): ["model.layers.1.", "model.norm.", "lm_head."],
    ("llama", "language", 2): ["model.layers.0.", "model.layers.1.", "model.norm.", "lm_head."],
    ("llama", "classes", 1): ["model.layers.1.", "model.norm.", "score."],
    ("gpt2", "language", 1): ["transformer.h.1.", "transformer.ln_f."],  # its output layer is its embedding
    ("bert", "language", 1): ["bert.encoder.layer.1.", "cls."],
    ("bert", "classes", 1): ["bert.encoder.layer.1.", "bert.pooler.", "classifier."],
    ("albert", "classes", 1): ["albert.encoder.albert_layer_groups.0.", "albert.pooler.", "classifier."],
    ("bart", "language", 1): ["model.decoder.layers.1."],
    ("bart", "classes", 1): ["model.decoder.layers.1.", "classification_head."],
    ("t5", "language", 1): ["decoder.block.1.", "decoder.final_layer_norm."],
    ("t5", "classes", 1): [
        "transformer.decoder.block.1.",
        "transformer.decoder.final_layer_norm.",
        "classification_head.",
    ],
}


@pytest.mark.parametrize(("case", "starts"), BODIES.items(), ids=str)
def test_the_last_layers_and_what_follows_them(case, starts, tmp_path_factory):
    kind, head, layers = case
    model = tiny.model(kind, head, tmp_path_factory, "partial", layers=layers)
    embedding = model.hf.get_input_embeddings().weight
    wanted = {
        name
        for name, value in model.hf.named_parameters()
        if any(name.startswith(start) for start in starts) and value is not embedding
    }
    assert set(model.trainable()) == wanted


def test_more_layers_than_there_are_is_all_of_them(tmp_path_factory):
    model = tiny.model("llama", "language", tmp_path_factory, "partial", layers=99)
    frozen = set(dict(model.hf.named_parameters())) - set(model.trainable())
    assert frozen == {"model.embed_tokens.weight"}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bart"])
def test_nothing_is_kept_of_the_frozen_layers(kind, tmp_path_factory):
    """The first layer gives what has no gradient, so backward ends above it."""
    model = tiny.model(kind, "language", tmp_path_factory, "partial", layers=1).train()
    seen = []
    _, stack = bottom.stack(model.hf.base_model.get_decoder() if kind == "bart" else model.hf.base_model)
    for layer in stack:
        layer.register_forward_hook(lambda _, told, out: seen.append(out[0] if isinstance(out, tuple) else out))
    batch = collate(tiny.ready_rows("selfsupervised", kind, "document", tmp_path_factory), 0)
    model(batch).logits.sum().backward()  # the last two: before, the model is probed
    assert [out.requires_grad for out in seen[-2:]] == [False, True]


def test_an_encoder_without_its_norm_in_front(tmp_path_factory):
    """OPT makes its last norm before its layers, BLOOM has one after the embedding: names and types decide."""
    small = {"hidden_size": 16, "num_hidden_layers": 3, "vocab_size": 30}
    told = []
    for config, auto in (
        (transformers.OPTConfig(**small, num_attention_heads=2, ffn_dim=16, word_embed_proj_dim=16), "OPTForCausalLM"),
        (transformers.BloomConfig(hidden_size=16, n_layer=3, n_head=2, vocab_size=30), "BloomForCausalLM"),
    ):
        model = tiny.model("llama", "language", tmp_path_factory)
        model.hf = getattr(transformers, auto)(config)
        partial.attach(model, {"layers": 1}, 0.0, 0)
        told.append({name.rsplit(".", 1)[0] for name in model.trainable() if ".2." not in name})
    assert told == [{"model.decoder.final_layer_norm"}, {"transformer.ln_f"}]


def test_its_folder_loads_in_plain_transformers(tmp_path_factory, tmp_path):
    model = tiny.model("llama", "language", tmp_path_factory, "partial").eval()
    with torch.no_grad():
        for value in model.trainable().values():
            value.add_(0.01)
    partial.save(model, tmp_path, "")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(20)[None] + 5
    with torch.no_grad():
        assert torch.equal(theirs(input_ids=ids).logits, model.hf(input_ids=ids).logits)
    assert load.count(model.hf.parameters()) == load.count(theirs.parameters())
