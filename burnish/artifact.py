"""What every rung yields: a base reference, what was added to it, and how it is asked.  Saved whole, loaded checked.

In: a rung's model or prompt recipe.  Out: a folder that plain transformers or peft loads, plus
artifact.json, from which `load` gives back the same predictions.  One class for every rung, so that evaluating,
exporting and serving need to know nothing of how it was made.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from burnish import __version__, kinds, store
from burnish import task as tasks
from burnish.errors import ArtifactError, BurnishError
from burnish.models import base as models
from burnish.models import places
from burnish.models.base import Base, Head
from burnish.models.load import load as load_model
from burnish.models.model import Model
from burnish.tokens.contract import Contract
from burnish.tokens.tokenizer import Tokenizer

FORMAT = 1
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "added_tokens.json",
)
OWN = ("artifact.json", "probe.safetensors", "README.md")  # written anew for every artifact


@dataclass(frozen=True)
class Artifact:
    """One rung's result.

    adapter: the trained rung's name, or '' when only the prompt (or a probe on frozen features) was chosen.
    recipe: the choices of a prompting rung, readable and editable.  facts: how it was made.
    """

    rung: str
    base: Base
    contract: Contract
    adapter: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def head(self) -> Head:
        return Head(self.contract.head, self.contract.labels)

    @property
    def prompting(self) -> str:
        """The rung that asks its model, '' when rows are asked plainly."""
        return tasks.parts(self.rung)[0]

    def tokenizer(self) -> Tokenizer:
        """The base's tokenizer."""
        return Tokenizer.load(self.base.folder)

    def model(self) -> Model:
        """The base with what was added, in evaluation mode."""
        if not self.adapter:
            return load_model(self.base, self.head).eval()
        assert self.folder is not None
        adapter = kinds.load("adapters", self.adapter)
        if adapter.CARRIES_BASE:
            return load_model(self.base, self.head, files=self.folder).eval()
        quantised = getattr(adapter, "QUANTISED", False)
        model = load_model(self.base, self.head, seed=int(self.facts.get("seed", 0)), quantised=quantised)
        try:
            adapter.load(model, self.folder)
        except (ValueError, KeyError, OSError) as problem:
            raise ArtifactError(f"The adapter cannot be put on its base: {problem}", str(self.folder)) from None
        return model.eval()


def save(artifact: Artifact, model: Model | None, folder: Path, card: str = "") -> Artifact:
    """Write the artifact beside `folder` and put it in place at once; returns it with its folder.

    model: its weights are saved.  None: nothing was trained since the artifact was loaded, whose files are copied.
    """
    staged = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(staged, ignore_errors=True)
    with store.disk_errors(folder):
        staged.mkdir(parents=True)
        if model is not None and artifact.adapter:
            kinds.load("adapters", artifact.adapter).save(model, staged, str(artifact.base.folder.resolve()))
        elif artifact.adapter and artifact.folder is not None:
            for path in artifact.folder.iterdir():
                if path.name not in OWN:
                    shutil.copyfile(path, staged / path.name)
        if artifact.tensors:
            from safetensors.torch import save_file

            save_file(dict(artifact.tensors), staged / "probe.safetensors", metadata={"format": "pt"})
        for name in TOKENIZER_FILES:
            if (artifact.base.folder / name).exists():
                shutil.copyfile(artifact.base.folder / name, staged / name)
        _fix_tokenizer_class(staged / "tokenizer_config.json")
        if artifact.contract.target in ("answers", "all", "pairs"):
            (staged / "chat_template.jinja").write_text(artifact.contract.template_text, encoding="utf-8")
        elif (artifact.base.folder / "chat_template.jinja").exists():
            shutil.copyfile(artifact.base.folder / "chat_template.jinja", staged / "chat_template.jinja")
        if card:
            (staged / "README.md").write_text(card, encoding="utf-8")
        files = {path.name: _sha256(path) for path in sorted(staged.iterdir())}
        told = {
            "format": FORMAT,
            "burnish": __version__,
            "rung": artifact.rung,
            "adapter": artifact.adapter,
            "base": {
                "name": artifact.base.name,
                "folder": str(artifact.base.folder.resolve()),
                "fingerprint": artifact.base.fingerprint,
                "random": artifact.base.random,
            },
            "contract": asdict(artifact.contract),
            "recipe": dict(artifact.recipe),
            "facts": dict(artifact.facts),
            "files": files,
        }
        (staged / "artifact.json").write_bytes(_sealed(told))
        for path in staged.iterdir():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        store.sync_folder(staged)
        shutil.rmtree(folder, ignore_errors=True)
        staged.replace(folder)
        store.sync_folder(folder.parent)
    return replace(artifact, folder=folder)


def lend(artifact: Artifact, model: Model) -> None:
    """Take part in another process' `save` of a model that is cut over processes: bring one's share of each tensor."""
    adapter = kinds.load("adapters", artifact.adapter)
    for value in getattr(adapter, "stored", adapter.tensors)(model).values():
        places.whole(value)


def load(folder: str | Path) -> Artifact:
    """The artifact in a folder; raises ArtifactError when a file is missing, changed, or its base is another one."""
    folder = Path(folder)
    path = folder / "artifact.json"
    if not path.exists():
        raise ArtifactError(
            "No artifact.json here", str(folder), "give a run's artifact folder; `burnish runs` lists runs"
        )
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if told.get("seal") not in (None, _seal(told)):  # None: saved before there were seals
            raise ArtifactError(
                "artifact.json is not what was saved", str(path), "restore it; only recipe may be edited"
            )
        if told["format"] != FORMAT:
            raise ArtifactError(f"Artifact format {told['format']} is not known here", str(path), "update Burnish")
        contract = Contract(**{**told["contract"], "labels": tuple(told["contract"]["labels"])})
        files, reference = dict(told["files"]), told["base"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as problem:
        raise ArtifactError(f"artifact.json is damaged: {problem}", str(path), "make the artifact again") from None
    for name, digest in files.items():
        file = folder / Path(name).name
        if name == "README.md":  # a person may write in it
            continue
        if not file.exists() or _sha256(file) != digest:
            state = "is not what was saved" if file.exists() else "is missing"
            raise ArtifactError(f"{name} {state}", str(file), "restore it, or make the artifact again")
    base = _base(reference, told["adapter"], folder)
    tensors: dict[str, Tensor] = {}
    if "probe.safetensors" in files:
        from safetensors.torch import load_file

        tensors = load_file(folder / "probe.safetensors")
    return Artifact(told["rung"], base, contract, told["adapter"], told["recipe"], told["facts"], folder, tensors)


def _base(reference: Mapping[str, Any], adapter: str, folder: Path) -> Base:
    if adapter and kinds.constants("adapters", adapter)["CARRIES_BASE"]:  # the base may be gone
        own = models.inspect(str(folder.resolve()))
        return replace(own, name=reference["name"])
    tried = []
    for name in (reference["folder"], reference["name"]):
        try:
            found = models.inspect(name, random=bool(reference.get("random")))
        except BurnishError as problem:
            tried.append(problem)
            continue
        if found.fingerprint != reference["fingerprint"]:
            raise ArtifactError(
                "The base model has changed since this artifact was made",
                str(found.folder),
                "put the original base back, or tune again",
            )
        return replace(found, name=reference["name"])
    raise ArtifactError(f"The base model is gone: {tried[0].what}", str(folder), "put it back where it was")


def _sealed(told: Mapping[str, Any]) -> bytes:
    """artifact.json: what is told, and a hash over all of it but the recipe, which a person may edit."""
    return (json.dumps({**told, "seal": _seal(told)}, indent=1, ensure_ascii=False) + "\n").encode()


def _seal(told: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in told.items() if key not in ("recipe", "seal")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _fix_tokenizer_class(path: Path) -> None:
    """transformers 4 knows no TokenizersBackend; both read PreTrainedTokenizerFast."""
    if path.exists():
        told = json.loads(path.read_text(encoding="utf-8"))
        if told.get("tokenizer_class") == "TokenizersBackend":
            told["tokenizer_class"] = "PreTrainedTokenizerFast"
            path.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
