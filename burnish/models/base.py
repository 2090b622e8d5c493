"""What can be known of a base model before its weights are read, and without torch.

In: a folder, a Hub name or the embedded name.  Out: a Base.  Safetensors only, no remote code, and a config is hostile
input until it has been checked.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from burnish.errors import MissingExtra, ModelError
from burnish.models import families
from burnish.tokens.contract import Ending
from burnish.tokens.tokenizer import read_json

Kind = Literal["decoder", "encoder", "encoder-decoder"]
BUNDLED = Path(__file__).parent.parent / "bundled"
HEADER_LIMIT = 100_000_000
FLOATS = ("F64", "F32", "F16", "BF16")
REFUSED = ("auto_map", "custom_pipelines", "model_file", "trust_remote_code")
CONTEXT = (  # names that configurations have for it
    *("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "max_seq_len"),
    "max_encoder_position_embeddings",
)
OFFSET = (  # model types whose positions start after the padding index
    *("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "roberta-prelayernorm", "mpnet", "longformer"),
    *("data2vec-text", "xmod", "ibert"),
)
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
        inner = self.config.get("text_config")
        text = inner if isinstance(inner, dict) else self.config
        known = [int(text[key]) for key in ("hidden_size", "d_model", "n_embd", "dim", "emb_dim") if key in text]
        return known[0] if known else 512


@dataclass(frozen=True)
class Head:
    """What a model ends in: `language`, `classes` (softmax), `multi` (one sigmoid a class), `number`, or `none`."""

    kind: Ending
    labels: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return 1 if self.kind == "number" else len(self.labels)


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


def inspect(name: str, folder: str = ".", random: bool = False, planned: bool = False) -> Base:
    """Everything that can be known from a model's small files; refuses unsafe or unknown ones.

    planned: only plans are made for it, which its weights may still be lacking for.
    """
    path = find(name, folder)
    if (path / "adapter_config.json").exists() and not (path / "config.json").exists():
        what, do = "The folder holds an adapter, not a model", "give its base, or merge the two with peft first"
        raise ModelError(what, str(path), do)
    config = read_json(path / "config.json")
    _check_config(config, path / "config.json")
    weights = sorted(path.glob("*.safetensors"))
    if not weights and not (random or planned):
        others = sorted(item.name for item in path.iterdir() if item.suffix in (".bin", ".pt", ".pth", ".ckpt", ".h5"))
        what = f"only {others[0]}, a format that can run code" if others else "no weights"
        raise ModelError(
            f"The model folder has {what}",
            str(path),
            "convert it to safetensors (transformers: save_pretrained), or set base.weights to random to start afresh",
        )
    for file in weights:
        check_safetensors(file)
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
    inner = config.get("text_config")
    text = inner if isinstance(inner, dict) else config
    context = next((int(text[key]) for key in CONTEXT if isinstance(text.get(key), int)), 0)
    if config.get("model_type") in OFFSET:
        context -= int(config.get("pad_token_id", 1) or 0) + 1
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
            tensors = {name: item for name, item in header.items() if name != "__metadata__"}
            last = max((item["data_offsets"][1] for item in tensors.values()), default=0)
            small = [name for name, item in tensors.items() if name.endswith("weight") and item["dtype"] not in FLOATS]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise ModelError(f"{path.name} has a broken header", str(path), "fetch it anew") from None
    if last != size - 8 - length:
        raise ModelError(f"{path.name} is cut short or has bytes too many", str(path), "fetch it anew")
    if small:
        what = f"{path.name} holds quantised weights ({header[small[0]]['dtype']}), first {small[0]}"
        raise ModelError(what, str(path), "use the base in float32, float16 or bfloat16; qlora quantises it by itself")


def license_of(folder: Path) -> str:
    """What the model folder's README.md says in its front matter; '' when it says nothing."""
    path = folder / "README.md"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[:60] if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("license:")), "")


def _check_config(config: Mapping[str, Any], path: Path) -> None:
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
    if str(config.get("model_type")) not in families.known():
        raise ModelError(
            f'Unknown model_type "{config.get("model_type")}"', str(path), "use a model that transformers itself has"
        )


def _kind(config: Mapping[str, Any], path: Path) -> Kind:
    model_type, named = str(config["model_type"]), str(config.get("architectures"))
    two_sided = config.get("is_encoder_decoder") or "ConditionalGeneration" in named or "Seq2Seq" in named
    if two_sided and model_type in families.with_form("SEQ_TO_SEQ_CAUSAL_LM"):
        return "encoder-decoder"
    masked = model_type in families.with_form("MASKED_LM") and not config.get("is_decoder")
    if "MaskedLM" in named or (masked and "CausalLM" not in named):
        return "encoder"
    if model_type in families.with_form("CAUSAL_LM"):
        return "decoder"
    if model_type in families.with_form("SEQ_TO_SEQ_CAUSAL_LM"):
        return "encoder-decoder"
    raise ModelError(
        f'"{model_type}" models are neither decoder, encoder nor encoder-decoder of text', str(path), "use another"
    )


def has_head(base: Base) -> bool:
    """Whether transformers has a classification form of this architecture."""
    return base.config["model_type"] in families.with_form("SEQUENCE_CLASSIFICATION")
