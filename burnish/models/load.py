"""From a Base to a Model with weights: read, completed by a new head, checked for damage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from burnish.errors import ModelError
from burnish.models import placement, places, quantize, shards
from burnish.models.base import Base, Head, has_head
from burnish.models.model import Model


def load(
    base: Base,
    head: Head,
    dropout: float | None = None,
    seed: int = 0,
    files: Path | None = None,
    quantised: bool = False,
    dtype: torch.dtype = torch.float32,
    outlined: bool = False,
) -> Model:
    """A Model with weights in `dtype`; everything its files lack is the new head, drawn from `seed`.

    files: read the weights here instead (an artifact's), where nothing may be missing.
    quantised: linear layers become NF4 as they are read; memory peaks near the quantised size.
    outlined: weights stay in their files until it is known in which type each is kept, and by which process
    (places.py); random ones are had at once.
    """
    import transformers

    folder = files or base.folder
    config = configured(base, head, folder)
    _drop(config, dropout)
    auto = getattr(transformers, _auto(base, head))
    try:
        with torch.device("meta"):
            hf = auto.from_config(config, dtype=torch.float32 if quantised else dtype)
        heads = frozenset[str]() if head.kind in ("language", "none") else _head_names(hf)
        language = head.kind == "language"
        weights = None if base.random and files is None else folder
        outlined = outlined and weights is not None
        if weights is None:
            whole, small = count(hf.parameters()), shards.linears(hf, language, heads) if quantised else []
            numbers = sum(hf.get_submodule(name).weight.numel() for name in small)
            places.check_room(dtype.itemsize * (whole - numbers) + quantize.BITS / 8 * numbers, str(folder))
        torch.manual_seed(seed)
        missing = frozenset[str]()
        if weights is not None:
            missing = shards.outline(hf, folder, language, heads) if quantised else places.outline(hf, folder)
            if not outlined:
                places.fill(hf, torch.device("cpu"))
        elif not (quantised and shards.draw(hf, language, heads)):
            torch.manual_seed(seed)
            hf = auto.from_config(config, dtype=dtype)
            if quantised:
                shards.compress(hf, shards.linears(hf, language, heads))
    except ModelError:
        raise
    except Exception as problem:
        raise _unloadable(problem, folder) from None
    lacking = sorted(missing if files is not None else (name for name in missing - heads if not _pooler(name, head)))
    if lacking:
        what = f"The weights lack {len(lacking)} tensors, or have them in another size, first {lacking[0]}"
        raise ModelError(what, str(folder), "fetch them anew")
    had = [(name, value) for name, value in hf.named_parameters() if not value.is_meta]  # others are judged when read
    bad = [name for name, value in had if not torch.isfinite(value).all()]
    if bad:
        raise ModelError(f"{len(bad)} tensors hold NaN or infinity, first {bad[0]}", str(folder), "fetch them anew")
    if head.kind not in ("language", "none") and base.kind == "decoder" and not hasattr(hf, "score"):
        raise ModelError(
            f"{type(hf).__name__} does not read its head at the last token",
            str(folder),
            "set method.kind to sft: the model then answers with the label's words",
        )
    if hf.can_generate() and (folder / "generation_config.json").exists():
        hf.generation_config = transformers.GenerationConfig.from_pretrained(str(folder), local_files_only=True)
    align(hf)
    hf.train()
    return Model(hf if outlined else hf.to(placement.best()), base, head, missing | heads)


def _drop(config: Any, dropout: float | None) -> None:
    """Set every dropout of a configuration, where there is one to set; 0 lets no layer be skipped either."""
    for name in [] if dropout is None else list(config.to_dict()):
        wanted = "dropout" in name or name.endswith("pdrop") or (not dropout and "layerdrop" in name)
        known = getattr(config, name, None)
        if wanted and isinstance(known, int | float) and not isinstance(known, bool) and known != dropout:
            setattr(config, name, dropout)


def skeleton(base: Base, head: Head, config: Any = None, dropout: float | None = None) -> Model:
    """The same Model without a single weight (on the meta device), in milliseconds: to count and to plan with.

    config: a transformers configuration instead of the folder's.  dropout: as in `load`.
    """
    return _made(base, head, config or configured(base, head, base.folder), dropout, torch.device("meta"))


def dummy(base: Base, head: Head, config: Any, dropout: float | None = None) -> Model:
    """The same Model with numbers of no meaning for weights, at once: to time a pass with."""
    from transformers.initialization import no_init_weights

    with no_init_weights():
        model = _made(base, head, config, dropout, torch.device("cpu"))
    model.hf.tie_weights()  # it was left out with the rest of what initializes
    some = torch.empty(1 << 16).normal_(std=0.02)
    for value in model.parameters():
        for part in value.detach().view(-1).split(len(some)):
            part.copy_(some[: len(part)])
    model.hf.train()
    return model


def _made(base: Base, head: Head, config: Any, dropout: float | None, device: torch.device) -> Model:
    import transformers

    _drop(config, dropout)
    with device:
        hf = getattr(transformers, _auto(base, head)).from_config(config)
    names = b"".join(places.header(file) for file in sorted(base.folder.glob("*.safetensors")))
    pooler = {name for name, _ in hf.named_parameters() if b"pooler" not in names and _pooler(name, head)}
    heads = frozenset[str]() if head.kind in ("language", "none") else _head_names(hf)
    return Model(hf, base, head, heads | pooler)


def configured(base: Base, head: Head, folder: Path) -> Any:
    """The transformers configuration in a folder, with the head that is asked for."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
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
    return config


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
        if not value.is_meta and value.data_ptr() % 64:
            value.data = value.data.clone()


def _unloadable(problem: Exception, folder: Path) -> ModelError:
    lines = [line.strip() for line in str(problem).strip().splitlines()] or [type(problem).__name__]
    reason = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
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
    """How many numbers parameters hold, a shared one counted once."""
    return sum(value.numel() for value in {id(item): item for item in parameters}.values())


def count_whole(hf: nn.Module) -> int:
    """How many parameters a model has, those in 4 bits too, not their packed bytes."""
    small = sum(item.in_features * item.out_features for item in quantize.layers(hf).values())
    return small + count(value for value in hf.parameters() if value.is_floating_point())
