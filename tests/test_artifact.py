"""An artifact gives back the same answers, and nothing else than what was saved."""

import dataclasses
import json
import os
import shutil

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from burnish import artifact as artifacts
from burnish import kinds
from burnish.artifact import Artifact
from burnish.errors import ArtifactError, BurnishError, ModelError
from burnish.models import base, load
from burnish.tokens.batch import collate
from burnish.tokens.contract import Contract
from burnish.train import loop

TARGETS = {"language": "answers", "classes": "label", "multi": "label", "number": "label"}
GOALS = {"language": "chat", "classes": "classify", "multi": "classify", "number": "regress"}
ADAPTERS = kinds.names("adapters")


def contract(head):
    labels = tiny.LABELS if head in ("classes", "multi") else ()
    return Contract(
        GOALS[head], "labelled", TARGETS[head], "plain", "{{ messages }}", 64, "error", head, labels, head == "multi",
        "Which?", 2.5, 0.5,
    )  # fmt: skip


def logits(model, kind, head, made):
    method, target = ("selfsupervised", "document") if head == "language" else ("classify", head)
    with torch.no_grad():
        return model(collate(tiny.ready_rows(method, kind, target, made), 0)).logits


def trained(kind, head, adapter, made, into, steps=3):
    """(the artifact, the model that was trained, its base's folder, which is a copy)."""
    folder = into / "base"
    shutil.copytree(tiny.folder(kind, made), folder)
    method = {"language": "selfsupervised", "number": "regress"}.get(head, "classify")
    run = tiny.run(
        method,
        head,
        "document" if head == "language" else head,
        kind,
        made,
        into / "checkpoints",
        adapter,
        max_steps=steps,
    )
    list(loop.fit(run))
    told = Artifact(adapter, base.inspect(str(folder)), contract(head), adapter, {}, {"steps": steps})
    return artifacts.save(told, run.model.eval(), into / "artifact", "# A card\n"), run.model, folder


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("head", tiny.HEADS)
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_it_answers_as_the_model_that_was_trained(kind, head, adapter, tmp_path_factory, tmp_path):
    """Bit for bit, and everything told with it comes back."""
    saved, model, _ = trained(kind, head, adapter, tmp_path_factory, tmp_path)
    again = artifacts.load(tmp_path / "artifact")
    assert torch.equal(logits(model, kind, head, tmp_path_factory), logits(again.model(), kind, head, tmp_path_factory))
    assert not again.model().training
    for name in ("rung", "contract", "adapter", "recipe", "facts"):
        assert getattr(again, name) == getattr(saved, name), name
    assert again.tokenizer().encode("Abc, 12") == tiny.tokenizer(kind, tmp_path_factory).encode("Abc, 12")


def test_a_full_artifact_stands_alone(tmp_path_factory, tmp_path):
    _, model, folder = trained("gpt2", "language", "full", tmp_path_factory, tmp_path)
    shutil.rmtree(folder)
    (tmp_path / "artifact").rename(tmp_path / "elsewhere")
    again = artifacts.load(tmp_path / "elsewhere")
    case = ("gpt2", "language", tmp_path_factory)
    assert torch.equal(logits(model, *case), logits(again.model(), *case))
    assert again.tokenizer().encode("abc")


def test_a_tokenizer_of_an_older_format_comes_along(tmp_path_factory, tmp_path):
    """A base with vocab.txt and no tokenizer.json."""
    saved, _, folder = trained("bert", "classes", "full", tmp_path_factory, tmp_path)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    words = [{" ": "_", "\n": "__"}.get(word, word) for word in sorted(vocabulary, key=vocabulary.get)]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    (folder / "tokenizer.json").unlink()
    told = {**json.loads((folder / "tokenizer_config.json").read_text()), "tokenizer_class": "BertTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told | {"do_lower_case": False}))
    older = dataclasses.replace(saved, base=base.inspect(str(folder)))
    artifacts.save(older, saved.model(), tmp_path / "again")
    wanted = older.tokenizer().encode_plain("a b c")
    shutil.rmtree(folder)
    assert artifacts.load(tmp_path / "again").tokenizer().encode_plain("a b c") == wanted


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_changed_byte_in_any_file_is_refused(adapter, tmp_path_factory, tmp_path):
    trained("gpt2", "classes", adapter, tmp_path_factory, tmp_path)
    folder = tmp_path / "artifact"
    names = sorted(path.name for path in folder.iterdir())
    assert {"artifact.json", "tokenizer.json", "README.md"} < set(names)
    for name in names:
        path = folder / name
        whole = path.read_bytes()
        for at in {0, len(whole) // 3, len(whole) // 2, len(whole) - 2}:
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            if name == "README.md":  # a person's to write in
                artifacts.load(folder)
                continue
            with pytest.raises(ArtifactError) as caught:
                artifacts.load(folder)
            assert name in str(caught.value)
            assert caught.value.do
        path.unlink()
        if name != "README.md":
            with pytest.raises(ArtifactError, match=name):
                artifacts.load(folder)
        path.write_bytes(whole)
    artifacts.load(folder)


def test_a_label_cannot_be_exchanged_unseen(tmp_path_factory, tmp_path):
    trained("gpt2", "classes", "lora", tmp_path_factory, tmp_path)
    path = tmp_path / "artifact" / "artifact.json"
    path.write_text(path.read_text().replace('"good"', '"gold"'))
    with pytest.raises(ArtifactError, match=r"artifact\.json"):
        artifacts.load(tmp_path / "artifact")


def test_what_was_made_before_pairs_were_parted_reads_them_as_it_learned(tmp_path_factory, tmp_path):
    trained("gpt2", "classes", "lora", tmp_path_factory, tmp_path)
    path = tmp_path / "artifact" / "artifact.json"
    told = json.loads(path.read_text())
    del told["contract"]["separator"], told["seal"]
    path.write_text(json.dumps(told))
    assert artifacts.load(tmp_path / "artifact").contract.separator == ""


def test_a_recipe_may_be_edited(tmp_path_factory, tmp_path):
    """A prompting rung's choices are a person's to change; the rest is not."""
    told = Artifact(
        "few-shot", base.inspect(str(tiny.folder("gpt2", tmp_path_factory))), contract("language"), "", {"shots": 3}
    )
    artifacts.save(told, None, tmp_path / "artifact")
    path = tmp_path / "artifact" / "artifact.json"
    assert artifacts.load(tmp_path / "artifact").recipe == {"shots": 3}
    path.write_text(path.read_text().replace('"shots": 3', '"shots": 5'))
    assert artifacts.load(tmp_path / "artifact").recipe == {"shots": 5}
    plain = load.load(told.base, tiny.HEADS["language"]).eval()
    case = ("gpt2", "language", tmp_path_factory)
    assert torch.equal(logits(artifacts.load(tmp_path / "artifact").model(), *case), logits(plain, *case))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "7", '{"format": 1}', '{"format": 99}', "{" * 100_000])
def test_a_broken_artifact_json_is_refused(text, tmp_path):
    (tmp_path / "artifact.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"artifact\.json|format 99"):
        artifacts.load(tmp_path)


def test_a_changed_base_is_refused(tmp_path_factory, tmp_path):
    _, _, folder = trained("gpt2", "language", "lora", tmp_path_factory, tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["transformer.h.1.mlp.c_fc.weight"][3, 4] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match="base model has changed"):
        artifacts.load(tmp_path / "artifact")
    shutil.rmtree(folder)
    with pytest.raises(ArtifactError, match="base model is gone"):
        artifacts.load(tmp_path / "artifact")


def test_an_adapter_that_does_not_fit_is_refused(tmp_path_factory, tmp_path):
    """Tensors exchanged and their hash with them: loading still sees that they do not fit."""
    saved, _, _ = trained("gpt2", "language", "lora", tmp_path_factory, tmp_path)
    path = tmp_path / "artifact" / "adapter_model.safetensors"
    tensors = load_file(path)
    for odd in (
        {name: value[:, :1].contiguous() for name, value in tensors.items()},
        dict(list(tensors.items())[1:]),
        {**tensors, "extra.weight": torch.zeros(2)},
        {},
    ):
        save_file(odd, path)
        with pytest.raises(ArtifactError, match="adapter"):
            saved.model()
    path.write_bytes(b"not a tensor file")
    with pytest.raises(ArtifactError, match="adapter"):
        saved.model()


def test_saving_replaces_whole(tmp_path_factory, tmp_path):
    """A second save leaves nothing of the first, and nothing beside it."""
    saved, model, _ = trained("gpt2", "language", "full", tmp_path_factory, tmp_path)
    (tmp_path / "artifact" / "stray.txt").write_text("x")
    artifacts.save(saved, model, tmp_path / "artifact")
    assert not (tmp_path / "artifact" / "stray.txt").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_pickle_or_code_beside_it_is_never_run(tmp_path_factory, tmp_path):
    trained("gpt2", "language", "full", tmp_path_factory, tmp_path)
    folder = tmp_path / "artifact"
    for name in ("modeling_gpt2.py", "configuration_gpt2.py", "__init__.py", "conftest.py"):
        (folder / name).write_text("import pathlib; pathlib.Path(__file__).with_name('ran').touch()\n")
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    artifacts.load(folder).model()
    config = json.loads((folder / "config.json").read_text()) | {
        "auto_map": {"AutoModelForCausalLM": "modeling_gpt2.X"}
    }
    (folder / "config.json").write_text(json.dumps(config))
    told = json.loads((folder / "artifact.json").read_text())
    told["files"]["config.json"] = artifacts._sha256(folder / "config.json")
    (folder / "artifact.json").write_bytes(artifacts._sealed(told))
    with pytest.raises(ModelError, match="code of its own"):
        artifacts.load(folder)
    assert not (folder / "ran").exists()
    assert not os.path.exists("ran")


def test_what_is_no_artifact_says_so(tmp_path):
    with pytest.raises(BurnishError, match=r"No artifact\.json"):
        artifacts.load(tmp_path)
