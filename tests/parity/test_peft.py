"""Our LoRA is PEFT's: same gradients, same files, and each reads what the other wrote.

PEFT 0.21 is the oracle.  Differences in adapter_config.json that are meant are listed in DELIBERATE.
"""

import json

import peft
import pytest
import tiny
import torch
import transformers
from safetensors.torch import load_file

from burnish.adapters import _lora, lora
from burnish.models import base, load
from burnish.models.base import Base, Head
from burnish.models.model import Model
from burnish.tokens.batch import collate

TASKS = {"llama": "CAUSAL_LM", "gpt2": "CAUSAL_LM", "bart": "SEQ_2_SEQ_LM", "t5": "SEQ_2_SEQ_LM"}
AUTO = {"CAUSAL_LM": "AutoModelForCausalLM", "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM", None: "AutoModelForMaskedLM"}
HEADS = {"bert": ["classifier", "pooler"], "albert": ["classifier", "pooler"], "bart": ["classification_head"]}
CASES = [(kind, head) for kind in tiny.KINDS for head in ("language", "classes")]
DELIBERATE = {
    "base_model_name_or_path",  # ours is the whole path, so that it holds from anywhere
    "target_modules",  # ours are the shortest names; PEFT writes all-linear as every full path
    "peft_version",  # we are not PEFT
    "auto_mapping",  # PEFT writes the class where no task_type tells it (encoders with a language head)
}


def own(kind, head, made, **settings):
    """Our model with a stirred update."""
    model = tiny.model(kind, head, made, "lora", **settings)
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for value in model.trainable().values():
            value.add_(torch.randn(value.shape, generator=draw) * 0.1)
    return model.eval()


def plain(kind, head, made):
    """The base as a person without Burnish loads it."""
    folder = str(tiny.folder(kind, made))
    torch.manual_seed(0)
    if head == "language":
        return getattr(transformers, AUTO[TASKS.get(kind)]).from_pretrained(folder).eval()
    auto = transformers.AutoModelForSequenceClassification
    return auto.from_pretrained(folder, num_labels=len(tiny.LABELS), problem_type="single_label_classification").eval()


def asked(kind, head, made):
    """One row without padding, as arguments of a transformers model; and the same as our Batch."""
    batch = collate(tiny.rows(kind, "answers" if head == "language" and kind in tiny.PAIRS else head, made)[1:2], 0)
    told = {"input_ids": batch.ids, "attention_mask": torch.ones_like(batch.ids)}
    if batch.source is not None:
        told = {"input_ids": batch.source, "decoder_input_ids": batch.ids}
    return told


def logits(hf, told):
    with torch.no_grad():
        return hf(**told).logits


VARIANTS = [{}, {"use_rslora": True}, {"use_dora": True}]


@pytest.mark.parametrize("settings", VARIANTS)
@pytest.mark.parametrize(("kind", "head"), CASES)
def test_our_folder_loads_in_peft(kind, head, settings, tmp_path_factory, tmp_path):
    model = own(kind, head, tmp_path_factory, **settings)
    lora.save(model, tmp_path, str(model.base.folder))
    theirs = peft.PeftModel.from_pretrained(plain(kind, head, tmp_path_factory), str(tmp_path)).eval()
    told = asked(kind, head, tmp_path_factory)
    torch.testing.assert_close(logits(theirs, told), logits(model.hf, told), rtol=1e-5, atol=1e-5)


def trained_by_peft(kind, head, made, into, **settings):
    """An adapter that PEFT made, stirred and saved."""
    task = "SEQ_CLS" if head != "language" else TASKS.get(kind)
    config = peft.LoraConfig(
        **{"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "task_type": task, "lora_dropout": 0.0} | settings,
        modules_to_save=HEADS.get(kind, ["score"]) if head != "language" and kind != "t5" else None,
    )
    theirs = peft.get_peft_model(plain(kind, head, made), config)
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for value in theirs.parameters():
            if value.requires_grad:
                value.add_(torch.randn(value.shape, generator=draw) * 0.1)
    theirs.save_pretrained(into)
    return theirs.eval()


def loaded(kind, head, made, folder):
    model = load.load(base.inspect(str(tiny.folder(kind, made))), tiny.HEADS[head], dropout=0.0)
    lora.load(model, folder)
    return model.eval()


SETTINGS = [
    {},
    {"use_rslora": True},
    {"use_dora": True},
    {"use_dora": True, "use_rslora": True, "kinds": ["gpt2"]},
    {"target_modules": r".*\.(q_proj|fc1)", "kinds": ["bart"]},
    {"target_modules": ["q_proj", "v_proj"], "kinds": ["llama"]},
    {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3}, "kinds": ["llama"]},
    {"target_modules": ["q_proj"], "layers_to_transform": [1], "kinds": ["llama"]},
]
THEIRS = [
    (kind, head, {key: value for key, value in settings.items() if key != "kinds"})
    for settings in SETTINGS
    for kind, head in CASES
    if kind in settings.get("kinds", tiny.KINDS) and (kind, head) != ("t5", "classes")
]


@pytest.mark.parametrize(("kind", "head", "settings"), THEIRS)
def test_a_folder_of_peft_loads_in_ours(kind, head, settings, tmp_path_factory, tmp_path):
    theirs = trained_by_peft(kind, head, tmp_path_factory, tmp_path, **settings)
    model = loaded(kind, head, tmp_path_factory, tmp_path)
    told = asked(kind, head, tmp_path_factory)
    torch.testing.assert_close(logits(model.hf, told), logits(theirs, told), rtol=1e-5, atol=1e-5)
    (tmp_path / "again").mkdir()
    lora.save(model, tmp_path / "again", str(model.base.folder))
    again = peft.PeftModel.from_pretrained(plain(kind, head, tmp_path_factory), str(tmp_path / "again")).eval()
    torch.testing.assert_close(logits(again, told), logits(theirs, told), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [{"bias": "all"}, {"target_modules": ["wte", "c_attn"]}, {"init_lora_weights": "pissa"}],
)
def test_what_ours_cannot_do_is_refused(settings, tmp_path_factory, tmp_path):
    """Trained biases, embeddings, a changed base: never half loaded."""
    trained_by_peft("gpt2", "language", tmp_path_factory, tmp_path, **settings)
    with pytest.raises(ValueError, match=r"plain LoRA|do not fit"):
        loaded("gpt2", "language", tmp_path_factory, tmp_path)


@pytest.mark.parametrize(("kind", "head"), [case for case in CASES if case != ("t5", "classes")])
def test_the_files_are_those_of_peft(kind, head, tmp_path_factory, tmp_path):
    settings = {"rank": 4, "alpha": 6.0}
    (tmp_path / "ours").mkdir()
    lora.save(own(kind, head, tmp_path_factory, **settings), tmp_path / "ours", "base")
    trained_by_peft(kind, head, tmp_path_factory, tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs"))
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    assert {value.dtype for value in ours.values()} == {value.dtype for value in theirs.values()} == {torch.float32}
    told, wanted = (json.loads((tmp_path / who / "adapter_config.json").read_text()) for who in ("ours", "theirs"))
    assert set(told) <= set(wanted)
    for key in set(told) - DELIBERATE:
        if key == "modules_to_save" and head != "language":
            assert set(told[key]) <= set(wanted[key]), "PEFT adds names that match nothing"
        elif key == "fan_in_fan_out":  # PEFT corrects it when it loads
            assert told[key] == (kind == "gpt2")
        else:
            assert told[key] == wanted[key], key
    for key in set(wanted) - set(told) - DELIBERATE:  # what we leave out is what PEFT takes for granted
        assert wanted[key] == getattr(peft.LoraConfig(), key), key


@pytest.mark.parametrize("settings", VARIANTS)
@pytest.mark.parametrize(("kind", "head"), [(kind, "language") for kind in tiny.KINDS] + [("bert", "classes")])
def test_gradients_equal_pefts(kind, head, settings, tmp_path_factory, tmp_path):
    """On copied weights in float64 (norms stay float32): 1e-6 of the gradient's length."""
    model = own(kind, head, tmp_path_factory, **settings)
    lora.save(model, tmp_path, str(model.base.folder))
    theirs = peft.PeftModel.from_pretrained(
        plain(kind, head, tmp_path_factory), str(tmp_path), is_trainable=True
    ).eval()
    told = asked(kind, head, tmp_path_factory)
    found = []
    for hf in (model.hf.double(), theirs.double()):
        hf(**told).logits.log_softmax(-1)[..., 0].sum().backward()
        named = {name: value.grad for name, value in hf.named_parameters() if value.grad is not None}
        found.append({plain_name(name): value for name, value in named.items()})
    assert tiny.distance(*found) < 1e-6


def plain_name(name):
    for odd in ("base_model.model.", ".modules_to_save.default"):
        name = name.replace(odd, "")
    for odd in (".default.weight", ".default"):
        name = name.replace(odd, "")
    return name


def test_pefts_own_scale(tmp_path_factory):
    """alpha / rank: 2.0 for alpha 16, rank 8."""
    layer = next(iter(_lora.layers(tiny.model("llama", "language", tmp_path_factory, "lora")).values()))
    assert layer.scale == 2.0
    assert layer.lora_A.abs().max() <= 1 / 32**0.5
    assert layer.lora_A.detach().std() == pytest.approx(1 / 96**0.5, rel=0.15)


def meta(config, head="language"):
    """A model without memory, to count what would be trained."""
    with torch.device("meta"):
        auto = {
            "language": transformers.AutoModelForCausalLM,
            "masked": transformers.AutoModelForMaskedLM,
        }[head]
        hf = auto.from_config(config)
    return Model(hf, Base("x", None, "decoder", config.to_dict(), 0, 0, ""), Head("language"))


LLAMA2 = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
LLAMA3 = LLAMA2 | {"intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128256}
OPT = {
    "hidden_size": 4096,
    "ffn_dim": 16384,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "word_embed_proj_dim": 4096,
}
ROBERTA = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "vocab_size": 50265,
}
DEBERTA = {"hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 48, "num_attention_heads": 24}


@pytest.mark.parametrize(
    ("config", "rank", "targets", "head", "count"),
    [
        (transformers.LlamaConfig(**LLAMA2), 8, ["q_proj", "v_proj"], "language", 4_194_304),
        (transformers.LlamaConfig(**LLAMA2), 16, [], "language", 39_976_960),
        (transformers.LlamaConfig(**LLAMA2), 64, [], "language", 159_907_840),
        (transformers.LlamaConfig(**LLAMA3), 16, [], "language", 41_943_040),
        (transformers.OPTConfig(**OPT), 16, ["q_proj", "v_proj"], "language", 8_388_608),
        (transformers.RobertaConfig(**ROBERTA), 8, ["query", "value"], "masked", 786_432),
        (transformers.DebertaV2Config(**DEBERTA), 16, ["query_proj", "value_proj"], "masked", 4_718_592),
    ],
)
def test_published_parameter_counts(config, rank, targets, head, count):
    """PEFT's documentation; Hu et al. 2021, tables 2 and 4; OPT-6.7B as PEFT prints it."""
    model = meta(config, head)
    whole = load.count(model.hf.parameters())
    names = _lora.chosen(model, targets)
    trained = 0
    for name in names:
        layer = model.hf.get_submodule(name)
        trained += rank * (layer.in_features + layer.out_features)
    assert trained == count
    if config.model_type == "opt":
        assert whole + trained == 6_666_862_592


def test_attaching_trains_what_was_counted(tmp_path_factory):
    model = tiny.model("llama", "language", tmp_path_factory, "lora", rank=3, targets=["q_proj", "v_proj"])
    assert load.count(model.trainable().values()) == 2 * 3 * ((32 + 32) + (32 + 16))


REAL = {
    "stories260k-llama": ["language", "classes"],
    "sort-gpt2-nano": ["language"],
    "smiles-albert": ["language", "classes"],
    "g2p-bart-en-us": ["language", "classes"],
}


@pytest.mark.real
@pytest.mark.parametrize(("name", "head"), [(name, head) for name, heads in REAL.items() for head in heads])
def test_real_models_agree_with_peft(name, head, shared, tmp_path):
    found = base.inspect(str(shared / "models" / name))
    model = load.load(found, tiny.HEADS[head], dropout=0.0)
    lora.attach(model, {}, 0.0, 0)
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for value in model.trainable().values():
            value.add_(torch.randn(value.shape, generator=draw) * 0.05)
    model.eval()
    lora.save(model, tmp_path, str(found.folder))
    family = {"decoder": "CausalLM", "encoder": "MaskedLM", "encoder-decoder": "Seq2SeqLM"}[found.kind]
    auto = getattr(transformers, f"AutoModelFor{family if head == 'language' else 'SequenceClassification'}")
    more = {} if head == "language" else {"num_labels": len(tiny.LABELS)}
    theirs = peft.PeftModel.from_pretrained(auto.from_pretrained(str(found.folder), **more), str(tmp_path)).eval()
    ids = torch.randint(0, found.vocabulary, (1, min(found.context, 12)), generator=torch.Generator().manual_seed(0))
    ids[0, -1] = model.hf.config.eos_token_id or 0  # BART reads its head there
    told = {"input_ids": ids} | ({"decoder_input_ids": ids} if family == "Seq2SeqLM" and head == "language" else {})
    torch.testing.assert_close(logits(model.hf, told), logits(theirs, told), rtol=1e-5, atol=1e-5)
    lora.merge(model)
    torch.testing.assert_close(logits(model.hf, told), logits(theirs, told), rtol=1e-4, atol=1e-4)
