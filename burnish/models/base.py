"""How a base model is found, inspected and loaded; and the one wrapper that every method and rung calls.

In: a folder, a Hub name or the embedded name.  Out: facts without torch's cost of loading weights (`inspect`), and a
Model whose `forward` computes logits only at positions that are asked for.
Safetensors only, no remote code, and a config is hostile input until it has been checked.
"""

from __future__ import annotations

import inspect as signatures
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from torch import Tensor, nn

from burnish.errors import MissingExtra, ModelError
from burnish.tokens.batch import Batch
from burnish.tokens.tokenizer import read_json

Kind = Literal["decoder", "encoder", "encoder-decoder"]
BUNDLED = Path(__file__).parent.parent / "bundled"
HEADER_LIMIT = 100_000_000
REFUSED = ("auto_map", "custom_pipelines", "model_file", "trust_remote_code")
LIMITS = {  # far above any real model, far below what hangs a machine before its memory is even asked for
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "encoder_layers", "decoder_layers"), 2_000),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "intermediate_size", "d_ff", "vocab_size"), 10_000_000),
}


@dataclass(frozen=True)
class Base:
    """What is known of a base model before its weights are read.

    context: most tokens a row may have (0 when the config sets no limit).  fingerprint: SHA-256 over config, tokenizer,
    names and sizes of the weights and their first and last megabyte, so that a base that was tuned, replaced or cut is
    noticed at the price of a glance (a flipped bit in the middle of a large file is not).
    """

    name: str
    folder: Path
    kind: Kind
    config: Mapping[str, Any]
    context: int
    vocabulary: int
    fingerprint: str
    random: bool = False

    @property
    def width(self) -> int:
        """Hidden size."""
        return int(self.config.get("hidden_size", self.config.get("d_model", self.config.get("n_embd", 512))))


@dataclass(frozen=True)
class Head:
    """What a model ends in: `language`, `classes` (softmax), `multi` (one sigmoid a class), `number`, or `none`."""

    kind: Literal["language", "classes", "multi", "number", "none"]
    labels: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return 1 if self.kind == "number" else len(self.labels)


@dataclass(frozen=True)
class Outputs:
    """What a forward pass gives a method.

    logits: (N, V) at the N supervised positions for language, (B, C) for heads.
    targets, weights: (N,) what should have been predicted, and how much it counts (language only).
    row: (N,) which row of the batch each position is of (language only).
    """

    logits: Tensor
    targets: Tensor | None = None
    weights: Tensor | None = None
    row: Tensor | None = None


def find(name: str, folder: str = ".") -> Path:
    """The folder behind a base's name: embedded, a path (also relative to `folder`), or the Hub."""
    embedded = BUNDLED / name
    if "/" not in name and (embedded / "config.json").exists():
        return embedded
    for path in (Path(name).expanduser(), Path(folder) / name):
        if path.is_dir():
            return path
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _download(name)
    known = sorted(path.name for path in BUNDLED.glob("*") if (path / "config.json").exists())
    raise ModelError(
        f'No base model "{name}"', do=f"give a model folder, a Hub name (owner/name), or one of {', '.join(known)}"
    )


def _download(name: str) -> Path:
    """Only what is needed and only safe formats; the one place where Burnish may open a connection for a model."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingExtra(f"The Hub name {name}", "hub") from None
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]))
    except Exception as problem:
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        raise ModelError(
            f'"{name}" is no folder here, and the Hub did not give it: {reason}', do="give the path of a model folder"
        ) from None


def inspect(name: str, folder: str = ".", random: bool = False) -> Base:
    """Everything that can be known from a model's small files; refuses unsafe or unknown ones."""
    path = find(name, folder)
    config = read_json(path / "config.json")
    _check_config(config, path / "config.json")
    weights = sorted(path.glob("*.safetensors"))
    if not weights and not random:
        others = sorted(item.name for item in path.iterdir() if item.suffix in (".bin", ".pt", ".pth", ".ckpt", ".h5"))
        what = f"only {others[0]}, a format that can run code" if others else "no weights"
        raise ModelError(
            f"The model folder has {what}",
            str(path),
            "convert it to safetensors (transformers: save_pretrained), or set base.weights to random to start afresh",
        )
    for file in weights:
        check_safetensors(file)
    import hashlib

    told = json.dumps(config, sort_keys=True) + "".join(f"{file.name}:{file.stat().st_size}" for file in weights)
    digest = hashlib.sha256(told.encode())
    for file in weights:
        with file.open("rb") as stream:
            digest.update(stream.read(1 << 20))
            stream.seek(max(file.stat().st_size - (1 << 20), 0))
            digest.update(stream.read())
    tokenizer_file = path / "tokenizer.json"
    if tokenizer_file.exists():
        digest.update(tokenizer_file.read_bytes())
    context = next(
        (
            int(config[key])
            for key in ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length")
            if isinstance(config.get(key), int)
        ),
        0,
    )
    if config.get("model_type") in ("roberta", "xlm-roberta", "camembert"):
        context -= 2  # positions start after the padding index
    inner = config.get("text_config")
    text = inner if isinstance(inner, dict) else config
    return Base(
        name,
        path,
        _kind(config, path / "config.json"),
        config,
        context,
        int(text.get("vocab_size") or 0),
        digest.hexdigest()[:16],
        random,
    )


def check_safetensors(path: Path) -> None:
    """Refuse a file whose header is not what safetensors promises, before any library maps it."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 0 < length <= min(HEADER_LIMIT, size - 8):
            raise ModelError(f"{path.name} is not a safetensors file, or is cut short", str(path), "fetch it anew")
        try:
            header = json.loads(stream.read(length))
            ends = [item["data_offsets"][1] for name, item in header.items() if name != "__metadata__"]
            last = max(ends, default=0)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise ModelError(f"{path.name} has a broken header", str(path), "fetch it anew") from None
    if last != size - 8 - length:
        raise ModelError(f"{path.name} is cut short or has bytes too many", str(path), "fetch it anew")


def license_of(folder: Path) -> str:
    """What the model folder's README.md says in its front matter; '' when it says nothing."""
    path = folder / "README.md"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[:60] if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("license:")), "")


def _check_config(config: Mapping[str, Any], path: Path) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key, value in part.items():
            kernel = "attn_implementation" in key and "/" in str(value)  # a kernel to be fetched from the Hub
            if key in REFUSED or kernel:
                raise ModelError(
                    f'The configuration asks for code of its own ("{key}")',
                    str(path),
                    "Burnish runs no code from model folders; use a model that transformers itself has",
                )
            whole = isinstance(value, int) and not isinstance(value, bool)
            if key in LIMITS and value is not None and not (whole and 0 < value <= LIMITS[key]):
                raise ModelError(f"The configuration's {key} is {value!r}", str(path), "use an undamaged config.json")
    if str(config.get("model_type")) not in CONFIG_MAPPING_NAMES:
        raise ModelError(
            f'Unknown model_type "{config.get("model_type")}"', str(path), "use a model that transformers itself has"
        )


def _kind(config: Mapping[str, Any], path: Path) -> Kind:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )

    model_type, named = str(config["model_type"]), str(config.get("architectures"))
    two_sided = config.get("is_encoder_decoder") or "ConditionalGeneration" in named or "Seq2Seq" in named
    if two_sided and model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return "encoder-decoder"
    masked = model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.get("is_decoder")
    if "MaskedLM" in named or (masked and "CausalLM" not in named):
        return "encoder"
    if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "decoder"
    if model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return "encoder-decoder"
    raise ModelError(
        f'"{model_type}" models are neither decoder, encoder nor encoder-decoder of text', str(path), "use another"
    )


def has_head(base: Base) -> bool:
    """Whether transformers has a classification form of this architecture."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    return base.config["model_type"] in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES


class Model(nn.Module):
    """A transformers model and how Burnish asks it.

    hf: the transformers model; its parameter names are those of its files.  fresh: names of the head's parameters
    (and of a pooler that the base's files did not have), which are always trained and saved.
    """

    def __init__(self, hf: Any, base: Base, head: Head, fresh: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self.hf = hf
        self.base = base
        self.head = head
        self.fresh = fresh
        self.precision: torch.dtype | None = None
        accepted = signatures.signature(hf.forward).parameters
        self.takes_positions = "position_ids" in accepted
        self.takes_keep = "logits_to_keep" in accepted
        self.takes_segments = "token_type_ids" in accepted and base.kind == "encoder"

    @property
    def device(self) -> torch.device:
        return next(self.hf.parameters()).device

    def forward(self, batch: Batch) -> Outputs:
        """Logits at the supervised positions (language) or of the head."""
        with torch.autocast(
            self.device.type, dtype=self.precision or torch.bfloat16, enabled=self.precision is not None
        ):
            if self.head.kind != "language":
                return Outputs(self._pooled(batch).float())
            return self._language(batch)

    def _language(self, batch: Batch) -> Outputs:
        if self.base.kind == "decoder":
            target, weight = batch.ids[:, 1:], batch.weights[:, 1:]
        else:
            target, weight = (batch.ids if batch.targets is None else batch.targets), batch.weights
        row, place = torch.nonzero(weight, as_tuple=True)  # (N,) each
        logits = self.logits(batch, place) if len(place) else torch.zeros(0, self.base.vocabulary, device=self.device)
        if len(place):
            asked = torch.unique(place)
            logits = logits[row, torch.searchsorted(asked, place)]
        return Outputs(logits.float(), target[row, place], weight[row, place], row)

    def logits(self, batch: Batch, places: Tensor) -> Tensor:
        """(B, K, V) logits at the K sorted distinct values of `places`."""
        asked = torch.unique(places)
        if self.base.kind == "encoder-decoder":
            start = self.start_id
            shifted = torch.cat([torch.full_like(batch.ids[:, :1], start), batch.ids[:, :-1]], dim=1)
            out = self.hf(
                input_ids=batch.source,
                attention_mask=batch.source_document,
                decoder_input_ids=shifted,
                use_cache=False,
            )
            return out.logits[:, asked]
        inputs: dict[str, Any] = {"input_ids": batch.ids}
        if batch.padded:
            inputs["attention_mask"] = (batch.document > 0).long()
        if self.base.kind == "decoder":
            inputs["use_cache"] = False
            if self.takes_positions:
                inputs["position_ids"] = batch.positions
            if self.takes_keep:
                return self.hf(**inputs, logits_to_keep=asked).logits
        return self.hf(**inputs).logits[:, asked]

    def _pooled(self, batch: Batch) -> Tensor:
        """(B, C): a decoder is read at its last real token, the others as transformers pools them."""
        mask = (batch.document > 0).long()
        if self.base.kind != "decoder":
            return self.hf(input_ids=batch.ids, attention_mask=mask, **self._segments(batch)).logits
        hidden = self.features(batch)
        last = torch.where(batch.document > 0, torch.arange(mask.shape[1], device=mask.device), -1).amax(1)
        return self.hf.score(hidden[torch.arange(len(last), device=mask.device), last])

    def _segments(self, batch: Batch) -> dict[str, Tensor]:
        """The ids that tell two texts apart, for encoders that learned them."""
        return {"token_type_ids": batch.segments} if self.takes_segments and batch.segments is not None else {}

    def features(self, batch: Batch) -> Tensor:
        """(B, T, H) last hidden states of a decoder or encoder without its head."""
        inputs: dict[str, Any] = {"input_ids": batch.ids, "attention_mask": (batch.document > 0).long()}
        inputs |= self._segments(batch)
        if self.base.kind == "decoder":
            inputs["use_cache"] = False
            if self.takes_positions:
                inputs["position_ids"] = batch.positions
        body = self.hf.base_model
        if self.base.kind == "encoder-decoder":
            body = body.get_encoder()
        return body(**inputs).last_hidden_state

    @property
    def start_id(self) -> int:
        """What an encoder-decoder's decoder begins with."""
        start = self.hf.config.decoder_start_token_id
        return int(self.hf.generation_config.decoder_start_token_id if start is None else start)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters that training moves, by their file names (shared ones once)."""
        return {name: value for name, value in self.hf.named_parameters() if value.requires_grad}


def load(
    base: Base, head: Head, dropout: float | None = None, seed: int = 0, device: str = "cpu", files: Path | None = None
) -> Model:
    """A Model with float32 weights; everything its files lack is the new head, drawn from `seed`.

    files: read the weights here instead (an artifact's), where nothing may be missing.
    """
    import transformers
    from transformers import AutoConfig

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder = files or base.folder
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as problem:
        raise _unloadable(problem, folder) from None
    if head.kind not in ("language", "none"):
        config.num_labels = head.size
        if head.kind != "number":
            config.id2label = dict(enumerate(head.labels))
            config.label2id = {name: i for i, name in enumerate(head.labels)}
        config.problem_type = {
            "classes": "single_label_classification",
            "multi": "multi_label_classification",
            "number": "regression",
        }[head.kind]
    if dropout is not None:
        for name in list(config.to_dict()):
            if ("dropout" in name or name.endswith("pdrop")) and isinstance(getattr(config, name, None), float):
                setattr(config, name, dropout)
    auto = getattr(transformers, _auto(base, head))
    try:
        _check_room(auto, config, folder)
        torch.manual_seed(seed)
        if base.random and files is None:
            hf, missing = auto.from_config(config, dtype=torch.float32), frozenset[str]()
        else:
            hf, info = auto.from_pretrained(
                str(folder),
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # judged below: a head for another number of classes is made anew
            )
            missing = frozenset(info["missing_keys"]) | {odd[0] for odd in info["mismatched_keys"]}
            if info.get("error_msgs"):
                raise ModelError(f"Tensors do not load: {info['error_msgs']}", str(folder), "fetch them anew")
    except ModelError:
        raise
    except Exception as problem:
        raise _unloadable(problem, folder) from None
    heads = frozenset[str]() if head.kind in ("language", "none") else _head_names(hf)
    lacking = sorted(missing if files is not None else (name for name in missing - heads if not _pooler(name, head)))
    if lacking:
        what = f"The weights lack {len(lacking)} tensors, or have them in another size, first {lacking[0]}"
        raise ModelError(what, str(folder), "fetch them anew")
    bad = [name for name, value in hf.named_parameters() if not torch.isfinite(value).all()]
    if bad:
        raise ModelError(f"{len(bad)} tensors hold NaN or infinity, first {bad[0]}", str(folder), "fetch them anew")
    if head.kind not in ("language", "none") and base.kind == "decoder" and not hasattr(hf, "score"):
        raise ModelError(
            f"{type(hf).__name__} does not read its head at the last token",
            str(folder),
            "set method.kind to sft: the model then answers with the label's words",
        )
    align(hf)
    hf.train()
    return Model(hf.to(device), base, head, missing | heads)


def _head_names(hf: Any) -> frozenset[str]:
    """The parameters that transformers puts on top of a body for a task."""
    body = f"{hf.base_model_prefix}."
    return frozenset(name for name, _ in hf.named_parameters() if not name.startswith(body))


def _pooler(name: str, head: Head) -> bool:
    """Whether a missing tensor belongs to a new head although it lies in the body."""
    return head.kind != "language" and "pooler" in name


def align(hf: nn.Module) -> None:
    """Move weights that a file was mapped to onto 64-byte boundaries.

    Vector units sum in an order that depends on where a tensor begins, so the same weights read from another file
    would give logits that differ in their last bit.
    """
    for value in (*hf.parameters(), *hf.buffers()):
        if value.data_ptr() % 64:
            value.data = value.data.clone()


def _check_room(auto: Any, config: Any, folder: Path) -> None:
    """Refuse a model that this machine's memory cannot hold, before any of it is allocated."""
    with torch.device("meta"):
        needed = 4 * count(auto.from_config(config).parameters())
    free = psutil.virtual_memory().available
    if needed > free:
        raise ModelError(
            f"The model needs {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free",
            str(folder),
            "use a smaller base, or free memory",
        )


def _unloadable(problem: Exception, folder: Path) -> ModelError:
    reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
    return ModelError(f"transformers cannot load the model: {reason}", str(folder), "check its files")


def _auto(base: Base, head: Head) -> str:
    if head.kind == "none":
        return "AutoModel"
    if head.kind != "language":
        if not has_head(base):
            raise ModelError(
                f"transformers has no classification form of {base.config['model_type']}",
                str(base.folder),
                "set method.kind to sft: the model then answers with the label's words",
            )
        return "AutoModelForSequenceClassification"
    return {
        "decoder": "AutoModelForCausalLM",
        "encoder": "AutoModelForMaskedLM",
        "encoder-decoder": "AutoModelForSeq2SeqLM",
    }[base.kind]


def count(parameters: Sequence[nn.Parameter] | Any) -> int:
    """How many numbers, shared parameters once."""
    return sum(value.numel() for value in {id(item): item for item in parameters}.values())
