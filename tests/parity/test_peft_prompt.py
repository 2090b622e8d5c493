"""Our soft prompts are PEFT's: the same files, equal logits, equal gradients and texts, and each reads the other's."""

import json

import peft
import pytest
import tiny
import torch
import transformers
from safetensors.torch import load_file

from burnish.adapters import prompt_tuning
from burnish.generate import engine
from burnish.models import base, load
from burnish.tokens.batch import collate
from burnish.tokens.rows import VIRTUAL, led

LENGTH = 5
TASKS = {"llama": "CAUSAL_LM", "gpt2": "CAUSAL_LM", "bart": "SEQ_2_SEQ_LM", "t5": "SEQ_2_SEQ_LM"}
AUTO = {
    "CAUSAL_LM": transformers.AutoModelForCausalLM,
    "SEQ_2_SEQ_LM": transformers.AutoModelForSeq2SeqLM,
    "SEQ_CLS": transformers.AutoModelForSequenceClassification,
}
# PEFT has no soft prompts for masked language models, nor for the classifiers of encoder-decoders
CASES = [(kind, "language") for kind in TASKS] + [(kind, "classes") for kind in ("llama", "gpt2", "bert", "albert")]
EVERY = pytest.mark.parametrize(("kind", "head"), CASES)


def stir(parameters):
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for value in parameters:
            if value.requires_grad:
                value.add_(torch.randn(value.shape, generator=draw) * 0.3)


def own(kind, head, made):
    model = tiny.model(kind, head, made, "prompt-tuning", length=LENGTH)
    stir(model.hf.parameters())
    return model.eval()


def plain(kind, head, made):
    task = TASKS[kind] if head == "language" else "SEQ_CLS"
    more = {} if head == "language" else {"num_labels": len(tiny.LABELS)}
    torch.manual_seed(0)
    return task, AUTO[task].from_pretrained(str(tiny.folder(kind, made)), **more).eval()


def ours(model, row):
    return model(collate([led(row, LENGTH)], 0)).logits


def theirs(wrapped, row):
    """PEFT's logits at our row's supervised positions, or of its head."""
    ids = torch.from_numpy(row.ids).long()[None]
    told = {"input_ids": ids}
    if row.source is not None:
        told = {"input_ids": torch.from_numpy(row.source).long()[None], "decoder_input_ids": shifted(wrapped, ids)}
    out = wrapped(**told, attention_mask=torch.ones_like(told["input_ids"])).logits
    if row.label is not None:
        return out
    weighted = torch.from_numpy(row.weights).nonzero()[:, 0]
    return out[0, weighted] if row.source is not None else out[0, LENGTH + weighted - 1]


def shifted(wrapped, ids):
    return torch.cat([torch.full_like(ids[:, :1], wrapped.config.decoder_start_token_id), ids[:, :-1]], 1)


def row(kind, head, made):
    return tiny.rows(kind, "answers" if head == "language" else "classes", made)[1]


@EVERY
def test_our_folder_loads_in_peft_with_equal_logits_and_gradients(kind, head, tmp_path_factory, tmp_path):
    model = own(kind, head, tmp_path_factory)
    prompt_tuning.save(model, tmp_path, str(model.base.folder))
    _, hf = plain(kind, head, tmp_path_factory)
    wrapped = peft.PeftModel.from_pretrained(hf, str(tmp_path)).eval()
    theirs_prompt = wrapped.prompt_encoder["default"].embedding.weight.requires_grad_()
    told = row(kind, head, tmp_path_factory)
    first, second = ours(model, told), theirs(wrapped, told)
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)
    for out in (first, second):
        out.log_softmax(-1)[..., 0].sum().backward()
    torch.testing.assert_close(prompt_tuning.prompt_of(model).grad, theirs_prompt.grad, rtol=1e-4, atol=1e-5)


@EVERY
def test_a_folder_of_peft_loads_in_ours(kind, head, tmp_path_factory, tmp_path):
    task, hf = plain(kind, head, tmp_path_factory)
    own_heads = {"bert": ["pooler"], "albert": ["pooler"]}.get(kind) if head == "classes" else None
    width = {"token_dim": 16} if kind == "albert" else {}  # PEFT takes the hidden size, which is not ALBERT's embedding
    config = peft.PromptTuningConfig(
        task_type=task, num_virtual_tokens=LENGTH, num_transformer_submodules=1, modules_to_save=own_heads, **width
    )
    wrapped = peft.get_peft_model(hf, config).eval()
    stir(wrapped.parameters())
    wrapped.save_pretrained(tmp_path)
    model = load.load(base.inspect(str(tiny.folder(kind, tmp_path_factory))), tiny.HEADS[head], dropout=0.0)
    prompt_tuning.load(model, tmp_path)
    told = row(kind, head, tmp_path_factory)
    torch.testing.assert_close(ours(model.eval(), told), theirs(wrapped, told), rtol=1e-5, atol=1e-5)
    (tmp_path / "again").mkdir()
    prompt_tuning.save(model, tmp_path / "again", str(model.base.folder))
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path, tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    written, mine = (
        json.loads((folder / "adapter_config.json").read_text()) for folder in (tmp_path, tmp_path / "again")
    )
    assert set(mine) - {"modules_to_save"} == {name for name in mine if written[name] == mine[name]} - {
        "modules_to_save"
    }


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_greedy_texts_are_pefts(kind, tmp_path_factory, tmp_path):
    model = own(kind, "language", tmp_path_factory)
    prompt_tuning.save(model, tmp_path, str(model.base.folder))
    wrapped = peft.PeftModel.from_pretrained(plain(kind, "language", tmp_path_factory)[1], str(tmp_path)).eval()
    ids = torch.tensor([[5, 9, 11, 20]])
    wrapped.generation_config.eos_token_id = None
    wanted = wrapped.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False)
    (made,) = engine.generate(model, [[*range(VIRTUAL, VIRTUAL + LENGTH), *ids[0].tolist()]], [], 10, 4096)
    assert made.ids == wanted[0, 4:].tolist()


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=LENGTH), "decoder too"),
        (peft.LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q"]), "LORA, not PROMPT_TUNING"),
    ],
)
def test_what_ours_cannot_do_is_refused(config, match, tmp_path_factory, tmp_path):
    """PEFT prompts the decoder of an encoder-decoder too, unless told otherwise."""
    peft.get_peft_model(plain("t5", "language", tmp_path_factory)[1], config).save_pretrained(tmp_path)
    model = load.load(base.inspect(str(tiny.folder("t5", tmp_path_factory))), tiny.HEADS["language"])
    with pytest.raises(ValueError, match=match):
        prompt_tuning.load(model, tmp_path)
