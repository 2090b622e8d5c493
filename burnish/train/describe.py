"""A model and its rows as numbers that `estimate.py` can calculate with.

In: a Model (its skeleton on the meta device will do) and encoded rows.  Out: a Shape and Rows; no weight is looked at.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from burnish import kinds
from burnish.adapters import _lora
from burnish.models import load
from burnish.models.base import Base, Head
from burnish.models.model import Model
from burnish.task import Task
from burnish.tokens.batch import Batches
from burnish.tokens.rows import Tokens
from burnish.train import keeps, optim
from burnish.train.keeps import Kept
from burnish.train.terms import At, Linear, Rows, Shape, Side, Work
from burnish.train.timetable import Timetable

NOWHERE = 1 << 30  # no block
EXACT = 20_000  # rows whose noise is drawn to count its tokens; of more, so many stand for all
HEADS = ("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads")
CROSS = re.compile(r"EncDecAttention|encoder_attn|crossattention|cross_attn")


def skeleton(base: Base, head: Head, rung: str, task: Task, config: Any = None) -> Model:
    """The model of a rung without a weight: counted as the run will count it, in milliseconds.

    What quantisation would do to weights cannot be done without any, so a quantised rung is told apart in `shape`.
    """
    adapter, own = kinds.load("adapters", rung), task.rung_settings.get(rung, {})
    with torch.device("meta"):
        model = load.skeleton(base, head, config, task.train.dropout if adapter.CARRIES_BASE else None)
        if quantised(rung):
            told = asdict(adapter.Settings(**own))
            _lora.attach(model, **told, dropout=task.train.dropout or 0.0, seed=task.train.seed)
        else:
            adapter.attach(model, own, task.train.dropout or 0.0, task.train.seed)
    return model


def quantised(rung: str) -> bool:
    """Whether a rung's base lies in 4 bits."""
    return bool(getattr(kinds.load("adapters", rung), "QUANTISED", False))


@dataclass(frozen=True)
class _Found:
    """A linear layer: its name, the block it stands in (-1: none), whose tokens pass that block, and what it does."""

    name: str
    block: int
    side: At
    item: Linear


def frozen(model: Model) -> int:
    """How many of the first layers no training moves; 0 where a decoder reads an encoder in every layer."""
    first = 0 if model.base.kind == "encoder-decoder" else _first(model, "ids")
    return 0 if first == NOWHERE else first


def drops(config: Any, dropout: float | None) -> bool:
    """Whether training hides numbers at random inside the layers.  dropout: what replaces the configuration's own."""
    told = {name: value for name, value in config.to_dict().items() if isinstance(value, int | float)}
    hidden = [
        value if dropout is None else dropout
        for name, value in told.items()
        if ("dropout" in name or name.endswith("pdrop")) and not name.startswith(("classifier", "summary"))
    ]
    skipped = [value for name, value in told.items() if "layerdrop" in name and dropout != 0]
    return any(value > 0 for value in (*hidden, *skipped))


def shape(model: Model, small: bool = False, above: int = 0, element: int = 4) -> Shape:
    """What a model costs, read from its modules.  small: frozen matrices inside blocks lie in 4 bits.

    above: blocks below this one are not gone through.  element: bytes of a number between layers.

    What a forward pass keeps is asked of autograd (keeps.py); of an architecture that cannot run without weights it is
    taken to be what passes between its layers, and half as much again.
    """
    try:
        told: Kept | None = keeps.kept(model, element)
    except Exception:  # whatever an unknown architecture raises
        told = None
    hf, found = model.hf, _linears(model)
    times = _times(model, found)
    found = [layer for layer in found if layer.block < 0 or layer.block >= above]
    reached = {side: _first(model, side) for side in ("ids", "source")}
    if reached["source"] != NOWHERE:  # whatever an encoder learns reaches it through the whole decoder
        reached["ids"] = 0
    counted: Counter[Linear] = Counter()
    for layer in found:
        backward = layer.block < 0 or layer.block >= reached[layer.side]
        four_bits = small and layer.block >= 0 and not layer.item.trained
        counted[replace(layer.item, backward=backward, quantised=four_bits)] += times if layer.block >= 0 else 1
    linears = tuple(replace(item, count=count) for item, count in counted.items())
    calls, idle = _calls(model, reached, above)
    return Shape(
        load.count(hf.parameters()),
        load.count(model.trainable().values()),
        sum(item.count * item.inputs * item.outputs for item in linears if item.quantised) // times,
        sum(file.stat().st_size for file in model.base.folder.glob("*.safetensors")),
        linears,
        _side("ids", model, found, reached["ids"], times, told, element),
        _side("source", model, found, reached["source"], times, told, element),
        times * calls,
        times * idle,
        keeps.whole(model),
    )


def _calls(model: Model, reached: Mapping[str, int], above: int) -> tuple[int, int]:
    """How many layers are called, and how many of them lie under the first block that backward reaches."""
    calls = idle = 0
    for name, module in model.hf.named_modules():
        numbered, side = re.search(r"\.(\d+)\.", f"{name}."), _side_of(model, name)
        block = int(numbered[1]) if numbered else NOWHERE
        if not list(module.children()) and not (side == "ids" and block < above):
            calls, idle = calls + 1, idle + (block < reached[side])
    return calls, idle


def _side(
    side: At, model: Model, found: Sequence[_Found], reached: int, times: int, told: Kept | None, element: int
) -> Side:
    """The blocks of one side: widths that pass between their layers, and what is kept of a token.

    Layers that read the same count it once.
    """
    widths: dict[int, float] = {}
    kept: dict[int, float] = {}
    inputs: dict[int, float] = {}
    read: set[tuple[str, int]] = set()
    for layer in found:
        item = layer.item
        if layer.side != side or item.at != side or layer.block < 0:
            continue
        source = (layer.name.rpartition(".")[0], item.inputs)
        wide = item.outputs + (0 if source in read else item.inputs)
        read.add(source)
        inputs.setdefault(layer.block, float(item.inputs))
        widths[layer.block] = widths.get(layer.block, 0.0) + wide
        if layer.block >= reached:
            kept[layer.block] = kept.get(layer.block, 0.0) + wide
    heads, wide = _heads(model, side)
    within, everywhere = times * sum(kept.values()), times * sum(widths.values())
    every = 1.5 * within if told is None else told.bytes[side] / element
    return Side(
        every,
        every * max(kept.values(), default=0.0) / max(within, 1.0),
        times * sum(inputs[block] for block in kept),
        everywhere,
        times * len(widths) * heads,
        times * len(widths) * wide,
        within / max(everywhere, 1.0),
        0 if told is None else told.hidden[side],
        0.0 if told is None else told.drawn[side],
    )


def _linears(model: Model) -> list[_Found]:
    """Every matrix product of a model; an adapted layer counts once, with its rank."""
    hf = model.hf
    ends = hf.get_output_embeddings() if model.head.kind == "language" else None
    told: list[_Found] = []
    adapted: set[nn.Module] = set()
    for name, module in hf.named_modules():
        plain = getattr(module, "base_layer", module)
        size = _size(plain)
        if size is None or module in adapted:
            continue
        adapted.add(plain)
        numbered = re.search(r"\.(\d+)\.", f"{name}.")
        block = int(numbered[1]) if numbered else -1
        side: At = _side_of(model, name)
        at = side
        if module is ends:
            at, block = "supervised", -1
        elif block < 0 and model.head.kind != "language":
            at = "rows"
        elif CROSS.search(name) and name.rpartition(".")[2] in ("k", "v", "k_proj", "v_proj", "key", "value"):
            at = "source"
        rank = getattr(module, "lora_A", None)
        trained = any(value.requires_grad for value in plain.parameters())
        item = Linear(*size, 1, at, trained, 0 if rank is None else len(rank))
        told.append(_Found(name, block, side, item))
    return told


def _side_of(model: Model, name: str) -> At:
    words = name.split(".")
    encodes = model.base.kind == "encoder-decoder" and "encoder" in words and "decoder" not in words
    return "source" if encodes else "ids"


def _size(module: nn.Module) -> tuple[int, int] | None:
    """(inputs, outputs) of a linear layer of any kind; None of another module."""
    if type(module).__name__ == "Conv1D":
        return int(module.weight.shape[0]), int(module.weight.shape[1])
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return int(module.in_features), int(module.out_features)
    return None


def _first(model: Model, side: str) -> int:
    """The first block of a side that backward reaches: that of its lowest trained weight; embeddings come before."""
    hf, first = model.hf, NOWHERE
    tables = [item for item in hf.modules() if isinstance(item, nn.Embedding) or item is hf.get_input_embeddings()]
    early = {id(value) for item in tables for value in item.parameters()}
    for name, value in model.trainable().items():
        numbered = re.search(r"\.(\d+)\.", name)
        if _side_of(model, name) == side and (numbered or id(value) in early):
            first = min(first, int(numbered[1]) if numbered else 0)
    return first


def _times(model: Model, found: Sequence[_Found]) -> int:
    """How often each block is gone through: ALBERT has one for all its layers."""
    blocks = len({layer.block for layer in found if layer.block >= 0 and layer.side == "ids"})
    config = model.hf.config
    layers = config.num_hidden_layers if getattr(config, "num_hidden_groups", 0) else blocks
    return max(int(layers) // blocks, 1) if blocks else 1


def _heads(model: Model, side: str) -> tuple[int, int]:
    """Attention heads of a block and their summed width."""
    config = model.hf.config
    config = getattr(config, "text_config", config)
    names = ("decoder_attention_heads", *HEADS) if side == "ids" else HEADS
    heads = next((int(value) for name in names if (value := getattr(config, name, None))), 1)
    wide = getattr(config, "head_dim", None) or getattr(config, "d_kv", None) or model.base.width // heads
    return heads, heads * int(wide)


def rows(tokens: Sequence[Tokens], label: bool = False) -> Rows:
    """The lengths of encoded rows; a label is read once a row and not at a position."""

    def each(counts: Any) -> np.ndarray:
        return np.fromiter(counts, np.int64, len(tokens))

    return Rows(
        each(row.length - (0 if row.source is None else len(row.source)) for row in tokens),
        each(0 if row.source is None else len(row.source) for row in tokens),
        each(0 if label else row.supervised for row in tokens),
    )


def work(
    model: Model,
    task: Task,
    timetable: Timetable,
    train: Batches,
    validation: Batches,
    splits: bool,
    device: torch.device,
    small: bool = False,
) -> Work:
    """A run as far as cost goes, its tokens counted from the very rows that each step will draw."""
    settings, label = task.train, model.head.kind != "language"
    tokens, exact = drawn(train, timetable.steps)
    element = 4 if optim.precision(settings.precision, device) == "fp32" else 2
    return Work(
        shape(model, small, element=element),
        rows(noised(train), label),
        rows(noised(validation), label),
        settings.batch_size,
        timetable.steps,
        len(range(timetable.evaluate_every, timetable.steps, timetable.evaluate_every)) + 1 if validation.rows else 0,
        len(range(timetable.save_every, timetable.steps, timetable.save_every)) + 1,
        tokens,
        exact,
        settings.micro_tokens,
        element,
        settings.optimizer,
        device.type,
        splits=splits,
        recomputes=bool(model.hf.supports_gradient_checkpointing),
    )


def noised(batches: Batches) -> list[Tokens]:
    """The rows as the model may read them; of very many, some."""
    if batches.corrupt is None:
        return list(batches.rows)
    return [batches.corrupt(row, np.random.default_rng(i)) for i, row in enumerate(batches.rows[:EXACT])]


def drawn(batches: Batches, steps: int) -> tuple[int, bool]:
    """Tokens that the steps will read (of an encoder-decoder, write), and whether that is exact.

    Hidden spans change a row's length at every draw: those of very many draws are told from the first ones.
    """
    if (
        batches.corrupt is not None
        and batches.rows
        and batches.corrupt(batches.rows[0], np.random.default_rng(0)).source is not None
    ):
        tried = min(steps, max(EXACT // batches.batch_size, 1))
        told = sum(int((batch.document > 0).sum()) for step in range(1, tried + 1) for batch in batches.step(step))
        return round(told * steps / tried), tried == steps
    lengths = (row.length - (0 if row.source is None else len(row.source)) for row in batches.rows)
    sizes = np.fromiter(lengths, np.int64, len(batches.rows))
    whole, rest = divmod(steps, batches.per_epoch)
    last = [i for step in range(steps - rest + 1, steps + 1) for _, i in batches.drawn(step)]
    return int(whole * sizes.sum() + sizes[last].sum()), True
