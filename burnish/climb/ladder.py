"""One task made ready: base inspected, data split, method chosen, and the contracts by which rows are asked.

The run's name holds a hash of everything that decides its weights, so the same task comes back to the same run and
goes on where it stopped, and another task never gets its results.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from burnish import __version__, kinds, store, taskfile
from burnish.data import prepare as data
from burnish.data.prepare import Prepared
from burnish.errors import TaskError
from burnish.evaluate.scores import Scoring, pick_metric
from burnish.models import base as models
from burnish.models.base import Base
from burnish.records import LETTERS, Example
from burnish.store import slug
from burnish.task import Task, parts
from burnish.tokens import ask
from burnish.tokens.contract import Contract, ending
from burnish.tokens.template import Template
from burnish.tokens.tokenizer import Tokenizer

LADDER = {
    "decoder": ("baseline", "zero-shot", "few-shot", "lora", "full"),
    "encoder": ("baseline", "nearest-neighbour", "linear-probe", "lora", "full"),
    "encoder-decoder": ("baseline", "zero-shot", "lora", "full"),
}


@dataclass(frozen=True)
class Ladder:
    """One task made ready: the data split, the base inspected, and how rows are asked and read.

    asked: the contract of a language head that answers in words.  trained: the contract of tuned rungs.
    """

    task: Task
    base: Base
    tokenizer: Tokenizer
    prepared: Prepared
    method: str
    asked: Contract
    trained: Contract
    folder: Path

    @property
    def metric(self) -> str:
        return self.task.goal.metric if self.task.goal.metric != "auto" else pick_metric(self.task.goal.task)

    def rows(self, split: str) -> list[Example]:
        return data.examples(self.prepared.folder, split)

    def scoring(self, rows: Sequence[Example]) -> Scoring:
        """How these rows are judged."""
        settings = self.task.evaluate
        return Scoring(self.metric, rows, self.asked.labels, settings.confidence, settings.resamples)

    def rung_folder(self, rung: str) -> Path:
        return self.folder / "rungs" / rung


def rungs_of(task: Task, base: Base) -> tuple[str, ...]:
    """The rungs to try, cheapest first: the task's own, else those that suit the base."""
    usual = [rung for rung in LADDER[base.kind] if not (base.random and rung == "lora")]
    looks = task.rung_settings.get("retrieval", {}).get("documents") and base.kind != "encoder"
    wanted = task.rungs or [*usual, *(["retrieval"] if looks else [])]
    return tuple(sorted(wanted, key=cost))


def cost(rung: str) -> tuple[int, str]:
    """Where a rung stands on the ladder: smaller is cheaper, equals go by name; a stacked rung costs both its parts."""
    told = zip(("prompting", "adapters"), parts(rung), strict=True)
    return sum(int(kinds.constants(kind, name)["COST"]) for kind, name in told if name), rung


def ready(task: Task, begin: bool = True, planned: bool = False) -> Ladder:
    """Inspect the base, read and split the data, choose the method.

    begin: write the run's task.yaml and environment.json; a check or an evaluation begins no run.
    planned: nothing is run, so the base may be without weights.
    """
    base = models.inspect(task.base.name, task.folder, task.base.weights == "random", planned)
    tokenizer = Tokenizer.load(base.folder)
    shared = store.home() / "cache" / "data" / _data_key(task)
    with store.locked(shared, wait=True):
        prepared = data.prepare(task, shared)
    method = choose_method(task, base, prepared)
    asked, trained = _contracts(task, base, tokenizer, prepared, method)
    settings = {} if task.method["kind"] == "auto" else {k: v for k, v in task.method.items() if k != "kind"}
    if not settings:
        settings = {item.name: item.default for item in kinds.settings("methods", method)}
    task = replace(task, method={"kind": method, **settings})
    told = [base.fingerprint, _rows_key(prepared), task.goal.task, dict(task.method)]
    told += [
        task.to_json()["train"],
        {k: dict(v) for k, v in task.rung_settings.items()},
        trained.__dict__,
        asked.__dict__,
    ]
    key = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:8]
    folder = store.run_folder(f"{slug(task.name)}-{key}")
    if begin:
        store.write_text(folder / "task.yaml", taskfile.write(_anchored(task), "Every key of this run, as resolved."))
        store.write_json(folder / "environment.json", environment())
    return Ladder(task, base, tokenizer, prepared, method, asked, trained, folder)


def _data_key(task: Task) -> str:
    told = json.dumps([task.to_json()["data"], task.goal.task, str(Path(task.folder).resolve())], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _rows_key(prepared: Prepared) -> str:
    """A hash of what the rows of each side say, in order: where the files lie does not make another run."""
    digest = hashlib.sha256()
    for split in ("train", "validation", "test"):
        digest.update(split.encode())
        for row in data.iterate(prepared.folder, split):
            digest.update(row.id.encode())
    return digest.hexdigest()[:16]


def _anchored(task: Task) -> Task:
    """The same task with file names that hold from anywhere, so that a run's task.yaml can be run again."""

    def whole(name: str) -> str:
        path = Path(task.folder) / name
        return str(path.resolve()) if path.exists() or "*" in name else name

    settings = replace(
        task.data,
        files=[whole(name) for name in task.data.files],
        validation_files=[whole(name) for name in task.data.validation_files],
        test_files=[whole(name) for name in task.data.test_files],
    )
    base = replace(task.base, name=whole(task.base.name))
    rungs = {rung: {**own} for rung, own in task.rung_settings.items()}
    for own in rungs.values():
        own |= {key: whole(own[key]) for key in ("encoder",) if own.get(key) not in (None, "", "base")}
        own |= {key: [whole(name) for name in own[key]] for key in ("documents",) if key in own}
    return replace(task, data=settings, base=base, rung_settings=rungs)


def environment() -> dict[str, Any]:
    """What a result may depend on besides the task."""
    import torch
    import transformers

    return {
        "burnish": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory": psutil.virtual_memory().total,
        "cuda": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "",
    }


def choose_method(task: Task, base: Base, prepared: Prepared) -> str:
    """The method of trained rungs; checks that the task's own choice fits the base and the data."""
    goal, shape = task.goal.task, prepared.shape
    if (goal == "choose") != (shape == "choices"):
        what, do = (
            f"rows of shape {shape} do not serve the goal {goal}",
            "let goal.task be choose where rows have choices",
        )
        raise TaskError(what, task.where("data.shape"), do)
    if goal == "prefer" and shape != "preference":
        what, do = (
            f"rows of shape {shape} do not say which of two answers is better",
            "give chosen and rejected answers",
        )
        raise TaskError(what, task.where("data.shape"), do)
    if goal == "classify" and len(prepared.labels) == 1 and not prepared.multi:
        what = "Every row has the same class, so there is nothing to tell apart"
        raise TaskError(what, task.where("data.files"), "add rows of another class")
    chosen = str(task.method["kind"])
    if chosen == "auto" and goal == "prefer":
        chosen = "dpo"
    elif chosen == "auto":
        if goal in ("classify", "regress") and shape == "labelled":
            chosen = {"classify": "classify", "regress": "regress"}[goal] if models.has_head(base) else "sft"
        else:
            chosen = "selfsupervised" if shape == "document" else "sft"
    facts = kinds.constants("methods", chosen)
    if base.kind not in facts["MODELS"]:
        raise TaskError(
            f"method {chosen} does not train {base.kind} models",
            task.where("method.kind"),
            f"use a base of another kind ({', '.join(facts['MODELS'])})",
        )
    if facts["TARGET"] == "label" and shape != "labelled":
        raise TaskError(
            f"method {chosen} needs labelled rows, and these are {shape}", task.where("method.kind"), "use sft"
        )
    if facts["TARGET"] == "answers" and shape == "document":
        raise TaskError(
            "method sft needs rows with answers, and these are documents",
            task.where("method.kind"),
            "use selfsupervised",
        )
    if facts["TARGET"] == "pairs" and shape != "preference":
        what, do = f"method {chosen} needs rows with a chosen and a rejected answer, and these are {shape}", "use sft"
        raise TaskError(what, task.where("method.kind"), do)
    if goal == "regress" and chosen == "classify":
        raise TaskError("a number is not learned as a class", task.where("method.kind"), "use regress")
    return chosen


def _contracts(
    task: Task, base: Base, tokenizer: Tokenizer, prepared: Prepared, method: str
) -> tuple[Contract, Contract]:
    settings = task.data
    limit = base.context or 2048
    if settings.max_length > limit:
        raise TaskError(
            f"data.max_length {settings.max_length} is more than the base holds ({limit})",
            task.where("data.max_length"),
            "lower it, or leave it out",
        )
    template = Template.choose(settings.template, prepared.shape, tokenizer)
    document = prepared.shape == "document"
    too_long = settings.too_long if settings.too_long != "auto" else "split" if document else "error"
    if too_long == "split" and not document:
        raise TaskError("only documents can be split", task.where("data.too_long"), "use error, drop or cut-prompt")
    labels = {"classify": prepared.labels, "choose": tuple(LETTERS)}.get(task.goal.task, ())
    rows = data.iterate(prepared.folder, "train") if task.goal.task == "regress" else ()
    numbers = [float(row.label) for row in rows if isinstance(row.label, float)]
    low, high = (min(numbers), max(numbers)) if numbers else (0.0, 0.0)
    bounds = [f"{low:.6g}", f"{high:.6g}"] if low < high else []
    asked = Contract(
        task.goal.task,
        prepared.shape,
        "document" if document else "all" if settings.train_on == "all" else "answers",
        template.name,
        template.text,
        settings.max_length or limit,
        too_long,
        "none" if base.kind == "encoder" and prepared.shape == "labelled" else "language",
        labels,
        prepared.multi,
        ask.instruction(task.goal.task, labels or bounds, settings.instruction, prepared.multi),
        low=low,
        high=high,
        separator=tokenizer.separator,
    )
    target = kinds.constants("methods", method)["TARGET"]
    if target != "label":
        return asked, replace(asked, target=asked.target if target == "answers" else target)
    head = ending(task.goal.task, prepared.multi)
    trained = replace(asked, target="label", head=head, labels=labels if head != "number" else ())
    if head == "number":
        spread = float(np.std(numbers)) if numbers else 1.0
        trained = replace(trained, mean=float(np.mean(numbers)) if numbers else 0.0, deviation=spread or 1.0)
    return asked, trained
