"""What two processes do for test_distributed.py, or one alone; the main rank writes what it saw to FOLDER/seen.json.

`python together.py quick|whole FOLDER`, with torchrun's variables set; models lie in FOLDER/../models.  Both do all
of it twice, each with the whole model and with its share of it: to start takes longer than to train.
"""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny
import torch

from burnish import kinds
from burnish.errors import TaskError
from burnish.models import places
from burnish.tokens.rows import led
from burnish.train import checkpoint, distributed, loop
from burnish.train.distributed import Ranks, Replicated

EXACT = ("sft", "language", "answers", "llama")  # no biases: gradients that are 0 but for rounding move Adam's weights
STEPS = {"quick": 6, "whole": 50}


def cases(size: str) -> dict[str, tuple[Any, str]]:
    """Every method with every adapter, on all kinds of models in turn; quick: every method with one of them."""
    told = {}
    adapters = kinds.names("adapters")
    for (i, (method, head, rows, known)), (j, adapter) in itertools.product(enumerate(tiny.CASES), enumerate(adapters)):
        refused = tiny.PAIRS if (rows, adapter) == ("document", "prompt-tuning") else ()  # see prompt_tuning.fitted
        suits = [kind for kind in known if kind not in refused]
        kind = suits[(i + j) % len(suits)]
        if size == "whole" or (i - j) % len(adapters) == 0:
            told[f"{method}-{rows}-{kind}-{adapter}"] = (method, head, rows, kind), adapter
    return told


def run(case: Any, adapter: str, folder: Path, ranks: Ranks, steps: int, **own: Any) -> loop.Run:
    """A run as `tune` would build it: eight rows, five a step, so that every second step has three."""
    models = next(path / "models" for path in folder.parents if (path / "models").exists())
    root = SimpleNamespace(getbasetemp=lambda: models)
    for path in models.glob("tiny-*"):  # made by the test: transformers saves on rank 0 only
        tiny._made[str(models), path.name.removeprefix("tiny-")] = path
    train = {"batch_size": 5, "max_steps": steps, "micro_tokens": 40, "learning_rate": 1e-3, "patience": 0}
    train |= {"evaluate_every": max(steps // 5, 2), "save_every": steps // 2, "precision": "fp32", "validation": True}
    made = tiny.run(*case, root, folder, adapter=adapter, **{**train, **own})
    virtual = sum(item.prompt.shape[0] for item in (made.model.hf.get_input_embeddings(),) if hasattr(item, "prompt"))
    made.batches, made.validation = (
        part and replace(part, rows=[led(row, virtual) for row in part.rows])
        for part in (made.batches, made.validation)
    )
    made.share(ranks)
    return made


def told(run: loop.Run) -> dict[str, Any]:
    """Train to the end; every number on the way, and the weights."""
    events = list(loop.fit(run))
    run.ranks.settle(run.model)
    wanted = {"loss": "step", "grad_norm": "step", "tokens": "step", "valid_loss": "validated"}
    seen = {name: [event.numbers[name] for event in events if event.kind == kind] for name, kind in wanted.items()}
    own = {name: places.whole(value).flatten().tolist() for name, value in run.model.trainable().items()}
    seen["warned"] = [event.numbers["text"] for event in events if event.kind == "warned"]
    return {**seen, "first": events[0].kind, "weights": own}


def forgetful(method: Any, here: bool) -> Any:
    """The method, whose third loss is too much for this machine's memory, if it is this one's."""
    calls = itertools.count(1)

    def loss(outputs: Any, batch: Any, settings: Any) -> Any:
        if here and torch.is_grad_enabled() and next(calls) == 3:
            raise MemoryError("as if")
        return method.loss(outputs, batch, settings)

    return SimpleNamespace(weight=method.weight, loss=loss)


def everything(folder: Path, ranks: Ranks, size: str) -> dict[str, Any]:
    """All that must not depend on the number of processes."""
    steps, seen = STEPS[size], {}
    for name, (case, adapter) in cases(size).items():
        seen[name] = told(run(case, adapter, folder / name, ranks, steps, save_every=steps))
    # two epochs of seven rows and one: the last step of each leaves a rank without rows
    seen["one row left"] = told(run(EXACT, "full", folder / "left", ranks, 4, batch_size=7))
    seen["sgd"] = told(run(EXACT, "full", folder / "sgd", ranks, 4, optimizer="sgd"))
    low = run(EXACT, "full", folder / "low", ranks, 4, precision="bf16")
    low.recompute = True
    seen["bf16, recomputing"] = told(low)
    if isinstance(ranks, Replicated) and ranks.shard:
        try:
            told(run(EXACT, "full", folder / "adafactor", ranks, 4, optimizer="adafactor"))
        except TaskError as problem:
            seen["refused"] = problem.what
    else:
        short = run(EXACT, "full", folder / "short", ranks, 4)
        short.method = forgetful(short.method, ranks.rank == ranks.size - 1)
        seen["out of memory on one rank"] = told(short)
    # a run that is stopped half way, for others to go on with
    events = loop.fit(run(EXACT, "full", folder / "half", ranks, steps, validation=False))
    while (event := next(events)).kind != "saved":
        pass
    seen["written"] = ranks.sum((Path(event.numbers["path"]) / checkpoint.MANIFEST).exists())[0] == ranks.size
    seen["to its end"] = told(run(EXACT, "full", folder / "straight", ranks, steps, validation=False))
    for path in sorted(folder.glob("from-*")):
        seen[path.name] = told(run(EXACT, "full", path, ranks, steps, validation=False))
    return seen


if __name__ == "__main__":
    torch.set_num_threads(1)
    size, place = sys.argv[1], Path(sys.argv[2])
    with distributed.begin() as ranks:
        assert isinstance(ranks, Replicated)
        both = {"replicated": ranks, "sharded": replace(ranks, shard=True)}
        seen = {mode: everything(place / mode, ranks, size) for mode, ranks in both.items()}
        if ranks.main:
            (place / "seen.json").write_text(json.dumps(seen))
