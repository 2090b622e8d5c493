"""What one of two processes does for test_sharded.py: reads its share of bases, and says what it read and has.

`python apart.py shares|memory|pairs FOLDER`, with torchrun's variables set; models lie in FOLDER/models.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil
import tiny
import together
import torch
from torch.distributed.tensor import DTensor

from burnish import kinds
from burnish.errors import ModelError
from burnish.models import base, load, places, quantize, quicken
from burnish.models.model import Model
from burnish.train import distributed, loop
from burnish.train.distributed import Ranks

RUNGS = ("full", "lora", "dora", "partial", "prompt-tuning", "qlora")
SETTINGS: dict[str, dict[str, Any]] = {"dora": {"use_dora": True}}


def made(folder: Path, rung: str, head: str, outlined: bool) -> Model:
    """A base with an adapter, as `tune` makes them."""
    found, small = base.inspect(str(folder)), rung == "qlora"
    model = load.load(found, tiny.HEADS[head], dropout=0.0, quantised=small, outlined=outlined)
    adapter = kinds.load("adapters", "lora" if rung == "dora" else rung)
    adapter.attach(model, SETTINGS.get(rung, {}), 0.0, 3)
    quicken.install(model.hf)
    return model


def shares(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Every family with every adapter: bytes read, bytes kept, the largest read, and whether all is as it should be."""
    sizes: list[int] = []
    plain = places.Stored.rows

    def rows(self: places.Stored, start: int = 0, end: int | None = None) -> torch.Tensor:
        value = plain(self, start, end)
        sizes.append(value.nbytes)
        return value

    places.Stored.rows = rows  # type: ignore[method-assign]
    seen: dict[str, Any] = {}
    root = SimpleNamespace(getbasetemp=lambda: folder / "models")
    for path in folder.glob("models/tiny-*"):  # made by the test: transformers saves on rank 0 only
        tiny._made[str(folder / "models"), path.name.removeprefix("tiny-")] = path
    cases = [(kind, "full") for kind in tiny.KINDS] + [("llama", rung) for rung in RUNGS[1:]] + [("t5", "lora")]
    for kind, rung in cases:
        head = "classes" if kind in tiny.ENCODERS else "language"
        source = folder / "models" / f"tiny-{kind}"
        model, whole = (made(source, rung, head, outlined) for outlined in (True, False))
        waiting, small = places.of(model), places.quantised(model).values()
        numbers = sum(layer.in_features * layer.out_features for layer in small)
        sizes.clear()
        sharded, _ = ranks.prepare(model, torch.float32)
        read = list(sizes)
        sharded.settle(model)
        expected, own = dict(whole.hf.state_dict()), dict(model.hf.state_dict())
        told = dict(model.named_parameters())
        kept = [value.to_local().nbytes for name, value in told.items() if name in waiting]
        kept += [8 * layer.codes.to_local().nbytes for layer in small]  # of two weights in float32
        batch = tiny.collate(tiny.rows(kind, "classes" if head == "classes" else "answers", root), 0)
        with torch.no_grad():
            apart = float((model(batch).logits - whole(batch).logits).abs().max())
        seen[f"{kind}-{rung}"] = {
            "equal": own.keys() == expected.keys()
            and all(torch.equal(places.whole(value), expected[name]) for name, value in own.items()),
            "cut": all(isinstance(value, DTensor) for value in told.values()),
            "tied": len(told) == len(dict(whole.named_parameters())) + len(quantize.CUT) * len(small),
            "packs": [getattr(model, shown) == getattr(whole, shown) for shown in ("packs", "lays_bare", "shares")],
            "apart": apart,
            "read": sum(read),
            "kept": sum(kept),
            "whole": 4 * (sum(item.numel() for name, item in whole.named_parameters() if name in waiting) + numbers),
            "largest": max(read),
        }
    try:
        ranks.prepare(made(folder / "models" / "spoiled", "full", "language", True), torch.float32)
    except ModelError as problem:
        seen["refused"] = problem.what
    return seen


def memory(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Peak of resident memory, in bytes: before a base, when it is there, and after three LoRA steps."""

    def peak() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    warm = made(folder / "models" / "tiny-llama", "lora", "language", ranks.size > 1)
    ranks.prepare(warm, torch.bfloat16)
    del warm
    before, now = peak(), psutil.Process().memory_info().rss
    model = made(folder / "models" / "large", "lora", "language", ranks.size > 1)
    ranks.prepare(model, torch.bfloat16)
    return {"before": before, "now": now, "loaded": peak()}


def pairs(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """A run that passes over the rows before its first step: whole, and stopped half way and gone on with."""
    case = ("dpo", "language", "pairs", "llama")

    def run(name: str) -> loop.Run:
        return together.run(case, "full", folder / "runs" / name, ranks, 4, validation=False)

    whole, events = together.told(run("whole")), loop.fit(run("half"))
    while next(events).kind != "saved":
        pass
    again = together.told(run("half"))
    return {name: (whole[name], again[name]) for name in ("loss", "weights")}


if __name__ == "__main__":
    torch.set_num_threads(1)
    works, place = {"shares": shares, "memory": memory, "pairs": pairs}, Path(sys.argv[2])
    with distributed.begin(True) as ranks:
        told = works[sys.argv[1]](place, ranks)
        (place / f"seen-{ranks.rank}.json").write_text(json.dumps(told))
