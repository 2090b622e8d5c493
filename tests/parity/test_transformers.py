"""A full artifact is a plain transformers model, and our losses are those of transformers where it has them."""

import json
import shutil

import pytest
import tiny
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file

from burnish import kinds
from burnish.adapters import full
from burnish.methods._losses import cross_entropy
from burnish.models import base, load
from burnish.records import Example, Where
from burnish.tokens.batch import collate
from burnish.tokens.encode import Encoding
from burnish.tokens.template import Template
from burnish.tokens.tokenizer import Tokenizer
from burnish.train import loop

AUTO = {
    "llama": "CausalLM",
    "gpt2": "CausalLM",
    "bert": "MaskedLM",
    "albert": "MaskedLM",
    "bart": "Seq2SeqLM",
    "t5": "Seq2SeqLM",
}
CASES = [(kind, head) for kind in tiny.KINDS for head in tiny.HEADS]
EVERY = pytest.mark.parametrize(("kind", "head"), CASES)


def plain(folder, kind, head):
    """The folder as a person without Burnish loads it: nothing said but the class."""
    name = AUTO[kind] if head == "language" else "SequenceClassification"
    hf = getattr(transformers, f"AutoModelFor{name}").from_pretrained(str(folder)).eval()
    load.align(hf)  # the same bits need the same place in memory
    return hf


def row(kind, head, made, i=1):
    """One row, as our Batch and as arguments of transformers."""
    what = ("answers" if kind in (*tiny.PAIRS, *tiny.DECODERS) else "document") if head == "language" else head
    one = tiny.rows(kind, what, made)[i : i + 1]
    if kind in tiny.ENCODERS and head == "language":
        one = tiny.ready_rows("selfsupervised", kind, "document", made)[i : i + 1]
    batch = collate(one, 0)
    if batch.source is not None:
        return batch, {"input_ids": batch.source}
    return batch, {"input_ids": batch.ids}


def trained(kind, head, made, into):
    method = {"language": "selfsupervised", "number": "regress"}.get(head, "classify")
    run = tiny.run(
        method, head, "document" if head == "language" else head, kind, made, into / "checkpoints", max_steps=2
    )
    list(loop.fit(run))
    (into / "model").mkdir()
    full.save(run.model, into / "model", "base")
    return run.model.eval(), into / "model"


@EVERY
def test_a_full_artifact_is_a_plain_model(kind, head, tmp_path_factory, tmp_path):
    """Bit for bit the same logits, loaded without a word about dtype, labels or class."""
    model, folder = trained(kind, head, tmp_path_factory, tmp_path)
    theirs = plain(folder, kind, head)
    assert next(theirs.parameters()).dtype == torch.float32
    batch, told = row(kind, head, tmp_path_factory)
    with torch.no_grad():
        if batch.source is not None:
            told["labels"] = batch.ids
        assert torch.equal(theirs(**told).logits, model.hf(**told).logits)
        if head != "language":
            torch.testing.assert_close(model(batch).logits, theirs(**told).logits, rtol=1e-6, atol=1e-6)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == [type(theirs).__name__], "pipelines and servers choose the class by it"
    if head in ("classes", "multi"):
        assert config["id2label"] == {str(i): name for i, name in enumerate(tiny.LABELS)}
        kind_of = {"classes": "single_label_classification", "multi": "multi_label_classification"}
        assert config["problem_type"] == kind_of[head]


@pytest.mark.parametrize("kind", ["gpt2", "bert", "albert", "bart", "t5"])
def test_tied_weights_stay_tied(kind, tmp_path_factory, tmp_path):
    model, folder = trained(kind, "language", tmp_path_factory, tmp_path)
    again = load.load(model.base, tiny.HEADS["language"], files=folder)
    for each in (model, again):
        first, last = each.hf.get_input_embeddings().weight, each.hf.get_output_embeddings().weight
        assert first is last
    before = load_file(model.base.folder / "model.safetensors")
    after = load_file(folder / "model.safetensors")
    assert set(after) == set(before), "each weight once, under the base's own names"
    moved = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert model.hf.get_input_embeddings().weight.shape in [after[name].shape for name in moved]


def test_untied_weights_stay_apart(tmp_path_factory, tmp_path):
    _, folder = trained("llama", "language", tmp_path_factory, tmp_path)
    kept = load_file(folder / "model.safetensors")
    assert not torch.equal(kept["lm_head.weight"], kept["model.embed_tokens.weight"])


def test_rope_is_written_for_old_and_new_readers(tmp_path_factory, tmp_path):
    """transformers 4 reads rope_theta only, and would take 10,000 without a word (ecosystem.md 0.11)."""
    model, folder = trained("llama", "language", tmp_path_factory, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 500.0
    assert plain(folder, "llama", "language").config.rope_parameters == model.hf.config.rope_parameters
    assert "rope_theta" not in json.loads((trained_gpt2(tmp_path_factory, tmp_path) / "config.json").read_text())


def trained_gpt2(made, tmp_path):
    (tmp_path / "gpt2").mkdir()
    full.save(tiny.model("gpt2", "language", made), tmp_path / "gpt2", "base")
    return tmp_path / "gpt2"


def loss(model, method, batch, **own):
    module = kinds.load("methods", method)
    with torch.no_grad():
        return float(module.loss(model(batch), batch, module.Settings(**own))) / module.weight(batch)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_language_losses_are_those_of_transformers(kind, tmp_path_factory):
    """transformers gives the mean over labels that are not -100."""
    model = tiny.model(kind, "language", tmp_path_factory).eval()
    batch, told = row(kind, "language", tmp_path_factory)
    targets = batch.ids if batch.targets is None else batch.targets
    labels = torch.where(batch.weights > 0, targets, -100)
    with torch.no_grad():
        theirs = float(model.hf(**told, labels=labels).loss)
    assert loss(model, "selfsupervised" if kind in tiny.ENCODERS else "sft", batch) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize(("kind", "head"), [case for case in CASES if case[1] != "language"])
def test_head_losses_are_those_of_transformers(kind, head, tmp_path_factory):
    model = tiny.model(kind, head, tmp_path_factory).eval()
    batch, told = row(kind, head, tmp_path_factory)
    with torch.no_grad():
        theirs = float(model.hf(**told, labels=batch.label).loss)
    assert loss(model, "regress" if head == "number" else "classify", batch) == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_is_torchs(smoothing):
    logits, targets = torch.randn(7, 11, generator=torch.Generator().manual_seed(0)) * 3, torch.arange(7)
    weights = torch.tensor([1.0, 1, 0, 1, 0, 1, 1])
    ignored = torch.where(weights > 0, targets, -100)
    theirs = F.cross_entropy(logits, ignored, reduction="sum", label_smoothing=smoothing, ignore_index=-100)
    assert float(cross_entropy(logits, targets, weights, smoothing)) == pytest.approx(float(theirs), rel=1e-6)


@pytest.mark.parametrize("kind", tiny.DECODERS)
def test_a_decoder_is_read_at_its_last_real_token(kind, tmp_path_factory):
    """Llama's pad here is its eos, gpt2 has no pad: the mask decides, never the id, so a final eos is read."""
    model = tiny.model(kind, "classes", tmp_path_factory).eval()
    eos = tiny.tokenizer(kind, tmp_path_factory).id("eos")
    rows = tiny.rows(kind, "classes", tmp_path_factory)
    ended = [tiny.ended(one, eos) for one in rows]
    told = {}
    for name, each in (("open", rows), ("ended", ended)):
        for left in (False, True):
            with torch.no_grad():
                told[name, left] = model(collate(each, eos, left)).logits
        for i, one in enumerate(each):
            with torch.no_grad():
                hidden = model.hf.base_model(input_ids=torch.from_numpy(one.ids).long()[None]).last_hidden_state[0, -1]
                torch.testing.assert_close(told[name, False][i], model.hf.score(hidden), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(told[name, False], told[name, True], rtol=1e-5, atol=1e-5)
    assert (told["open", False] - told["ended", False]).abs().amax(1).min() > 1e-3


@pytest.mark.real
@pytest.mark.parametrize("name", ["stories260k-llama", "sort-gpt2-nano", "smiles-albert", "g2p-bart-en-us"])
def test_real_models_answer_as_in_transformers(name, shared, tmp_path):
    """Loaded, saved as a full artifact, and loaded again by plain transformers: the same bits each time."""
    found = base.inspect(str(shared / "models" / name))
    model = load.load(found, tiny.HEADS["language"]).eval()
    full.save(model, tmp_path, "base")
    family = {"decoder": "CausalLM", "encoder": "MaskedLM", "encoder-decoder": "Seq2SeqLM"}[found.kind]
    ids = torch.randint(0, found.vocabulary, (2, min(found.context, 12)), generator=torch.Generator().manual_seed(0))
    auto = getattr(transformers, f"AutoModelFor{family}")
    said = []
    for folder in (found.folder, tmp_path):
        theirs = auto.from_pretrained(str(folder), dtype=torch.float32).eval()
        load.align(theirs)
        with torch.no_grad():
            said.append(theirs(input_ids=ids, **({"labels": ids} if family == "Seq2SeqLM" else {})).logits)
    with torch.no_grad():
        ours = model.hf(input_ids=ids, **({"labels": ids} if family == "Seq2SeqLM" else {})).logits
    assert torch.equal(said[0], ours)
    assert torch.equal(said[1], ours)


@pytest.mark.real
@pytest.mark.parametrize("name", ["stories260k-llama", "sort-gpt2-nano", "smiles-albert", "g2p-bart-en-us"])
@pytest.mark.parametrize("head", ["classes", "number"])
def test_real_models_take_a_head(name, head, shared):
    """Only the head is new, drawn from the seed: the same twice."""
    found = base.inspect(str(shared / "models" / name))
    first, second, other = (load.load(found, tiny.HEADS[head], seed=seed) for seed in (1, 1, 2))
    body = first.hf.base_model_prefix
    assert first.fresh
    assert all(not key.startswith(f"{body}.") or "pooler" in key for key in first.fresh)
    state = [dict(each.hf.named_parameters()) for each in (first, second, other)]
    assert all(torch.equal(value, state[1][key]) for key, value in state[0].items())
    assert {key for key, value in state[0].items() if not torch.equal(value, state[2][key])} <= first.fresh


@pytest.mark.parametrize("kind", ["gpt2", "bart"])
def test_an_odd_generation_config_does_not_cost_the_run(kind, tmp_path_factory, tmp_path):
    """transformers refuses to write settings that it read without a word; after hours of training that is too late."""
    folder = shutil.copytree(tiny.folder(kind, tmp_path_factory), tmp_path / "base")
    told = json.loads((folder / "generation_config.json").read_text())
    odd = {"temperature": 0.6, "top_p": 0.9, "do_sample": False, "num_beams": 1, "early_stopping": True}
    (folder / "generation_config.json").write_text(json.dumps(told | odd))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_beams": 4, "max_length": 20, "length_penalty": 2.0}))
    model = load.load(base.inspect(str(folder)), tiny.HEADS["language"]).eval()
    (tmp_path / "model").mkdir()
    full.save(model, tmp_path / "model", "base")
    assert json.loads((tmp_path / "model" / "generation_config.json").read_text()) == told | odd
    assert load.load(base.inspect(str(tmp_path / "model")), tiny.HEADS["language"])


@pytest.mark.parametrize("kind", tiny.ENCODERS)
def test_two_texts_are_told_apart_as_the_model_learned(kind, tmp_path_factory, tmp_path):
    """BERT was pre-trained with segment 1 for the second text, and its own tokenizer class says so."""
    folder = shutil.copytree(tiny.folder(kind, tmp_path_factory), tmp_path / "base")
    path = folder / "tokenizer_config.json"
    named = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | named))
    model = load.load(base.inspect(str(folder)), tiny.HEADS["classes"]).eval()
    (tmp_path / "model").mkdir()
    full.save(model, tmp_path / "model", "base")
    theirs = plain(tmp_path / "model", kind, "classes")
    texts = [("ab", "cdefg"), ("hijk lmn", "o"), ("p", "qr")]
    encoding = Encoding(
        Tokenizer.load(folder),
        Template("raw", ""),
        "encoder",
        "label",
        64,
        labels={name: i for i, name in enumerate(tiny.LABELS)},
    )
    rows = [
        encoding.encode(Example("labelled", Where("f", i), text=text, pair=pair, label="good"))[0][0]
        for i, (text, pair) in enumerate(texts)
    ]
    told = transformers.AutoTokenizer.from_pretrained(str(folder))
    with torch.no_grad():
        together = model(collate(rows, 0)).logits
        for (text, pair), ours in zip(texts, together, strict=True):
            asked = told(text, pair, return_tensors="pt")
            assert asked["token_type_ids"].any()
            torch.testing.assert_close(ours, theirs(**asked).logits[0], rtol=1e-5, atol=1e-5)
