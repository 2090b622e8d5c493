"""A few layers of the very model, trained for a moment: by how much this run is slower than the arithmetic says.

In: what a run will train and how, and its Work.  Out: the Machine with its `pace`.  Products, memory traffic and calls
explain a step in shares that differ from one architecture to the next (a norm that no kernel of ours covers, a bias on
the logits, a small model that lives on calls), so what formulas say is set right by one measurement of the same code,
on the same rows.  A small model is rehearsed whole, of a large one as many layers as the time allows.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from burnish import __version__, kinds, store
from burnish.models import heap, load, quicken
from burnish.models.base import Base, Head
from burnish.task import Task
from burnish.tokens.batch import Batches
from burnish.train import calibrate, costs, describe, loop, optim
from burnish.train.optim import Masters
from burnish.train.reference import Referred
from burnish.train.run import Run
from burnish.train.terms import Machine, Work
from burnish.train.timetable import Timetable

EACH = 0.4  # seconds that a step is to take
LONGEST = 1.5  # a step that would take longer is left to the arithmetic, which is good at large products
BUDGET = 1.2  # seconds for all counted steps
STEPS = 6  # counted at most
WORTH = 5.0  # seconds: a run that should take less is not kept waiting
FEWEST = 2  # layers: of one alone a norm or a cast at the end would be half
DEPTHS = ("num_hidden_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")


@dataclass(frozen=True)
class Trial:
    """What is rehearsed: a rung of a task on a base, by a method, on these batches."""

    base: Base
    head: Head
    rung: str
    task: Task
    method: ModuleType
    settings: Any
    timetable: Timetable
    batches: Batches


def paced(trial: Trial, work: Work, machine: Machine, cut: tuple[int, bool]) -> Machine:
    """The machine, with what a moment of training took over what the arithmetic says; as it was where none can be had.

    cut: micro_tokens and whether activations are recomputed.
    The result is remembered in BURNISH_HOME/cache, by all that decides it.
    """
    if costs.seconds(work, *cut, machine)["training"] < WORTH:
        return machine
    few, layers = _small(trial, work, cut, machine)
    try:
        config = load.configured(trial.base, trial.head, trial.base.folder)
        if layers < _deepest(work):
            config = shortened(config, layers)
            short = describe.skeleton(trial.base, trial.head, trial.rung, trial.task, config)
            shape = describe.shape(short, describe.quantised(trial.rung), element=work.element)
            work = replace(work, shape=shape)
        return _paced(replace(trial, batches=few), work, machine, cut, config)
    except Exception:  # whatever an unknown architecture raises when it is cut short
        return machine


def _small(trial: Trial, work: Work, cut: tuple[int, bool], machine: Machine) -> tuple[Batches, int]:
    """Rows and layers that make a step of EACH seconds, by the arithmetic: the run's own step, one micro-batch of it,
    or that with fewer layers."""
    count = int(cut[0] / max(float(np.mean(work.train.tokens)), 1.0))
    for size in (work.batch_size, max(1, min(work.batch_size, count))):
        few = replace(trial.batches, micro_tokens=cut[0], batch_size=size)
        one = _portion(work, few, 1)
        told = costs.passing(one, costs.mean_step(one, cut[0]), True, cut[1], machine) + costs.updating(one, machine)
        if told <= EACH:
            break
    return few, max(FEWEST, int(_deepest(work) * min(EACH / max(told, 1e-9), 1.0)))


def _deepest(work: Work) -> int:
    return max(round(side.kept / side.largest) if side.largest else 1 for side in (work.shape.ids, work.shape.source))


def shortened(config: Any, layers: int) -> Any:
    """A transformers configuration with at most so many layers on each side; what it lists layer by layer is cut."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    deep = max((value for name in DEPTHS if isinstance(value := getattr(text, name, None), int)), default=0)
    for name in DEPTHS:
        if isinstance(value := getattr(text, name, None), int):
            setattr(text, name, min(value, layers))
    for name, value in text.to_dict().items():
        if isinstance(value, list) and len(value) == deep > layers:
            setattr(text, name, value[:layers])
    return config


def _portion(work: Work, few: Batches, step: int) -> Work:
    """The work of one rehearsed step."""
    chosen = replace(few, rows=[few.rows[i] for _, i in few.drawn(step)])
    rows = describe.rows(describe.noised(chosen), label=not work.train.supervised.any())
    return replace(work, train=rows, batch_size=len(rows))


def _paced(trial: Trial, work: Work, machine: Machine, cut: tuple[int, bool], config: Any) -> Machine:
    first = _portion(work, trial.batches, 1)
    if costs.passing(first, costs.mean_step(first, cut[0]), True, cut[1], machine) > LONGEST:
        return machine
    rung = trial.rung, trial.task.rung_settings.get(trial.rung)
    known = [work.shape, rung, trial.method.__name__, trial.settings, trial.task.train, cut, work.element, work.device]
    path = _file([*known, first.train.ids.tolist(), first.train.source.tolist()])
    told = _remembered(path)
    if not told:
        with torch.random.fork_rng(devices=[]):
            told = _measured(trial, work, machine, cut, config)
        heap.trim()
        store.write_json(path, told)
    return replace(machine, pace=told["pace"], updates=told["updates"])


def _file(known: list[Any]) -> Path:
    known = [__version__, *calibrate.told(), *known]
    return store.home() / "cache" / f"pace-{hashlib.sha256(repr(known).encode()).hexdigest()[:16]}.json"


def _remembered(path: Path) -> Mapping[str, float]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and set(found) == {"pace", "updates"} else {}


def _measured(trial: Trial, work: Work, machine: Machine, cut: tuple[int, bool], config: Any) -> dict[str, float]:
    """Seconds of forward with backward, and of the update, over what the arithmetic says of the same steps."""
    run = _run(trial, work, cut, config)
    masters = Masters(run.model.hf, run.model.trainable(), run.precision)
    optimizer = optim.build(masters.values, run.settings)
    heap.trim()  # the first weights lay where the heap now has gaps: the rehearsal must not need more than the run
    run.lean()
    run.model.train()
    passes, updates, began = [], [], calibrate.clock()
    for step in range(1, 2 + STEPS):
        one, before = _portion(work, trial.batches, step), _now(work)
        micro, loss = loop.gradient(run, masters, step)
        between = _now(work)
        loop.update(run, masters, optimizer, step, micro, loss)
        said = costs.passing(one, costs.mean_step(one, cut[0]), True, cut[1], machine)
        passes.append((between - before) / said)
        updates.append((_now(work) - between) / costs.updating(one, machine))
        if step > 2 and calibrate.clock() - began > BUDGET:
            break
    masters.leave()
    for value in run.model.parameters():
        value.data = value.data.new_empty(0)  # modules know themselves: only the collector would free them
    return {"pace": _undisturbed(passes[1:]), "updates": _undisturbed(updates[1:])}


def _undisturbed(told: list[float]) -> float:
    """The lower quartile: neighbours only add, and so do shapes that are new, of which a run's later steps have few."""
    return sorted(told)[len(told) // 4]


def _now(work: Work) -> float:
    if work.device == "cuda":
        torch.cuda.synchronize()
    return calibrate.clock()


def _run(trial: Trial, work: Work, cut: tuple[int, bool], config: Any) -> Run:
    """The run in small: the same code, adapter and rows; weights without meaning."""
    adapter, train = kinds.load("adapters", trial.rung), trial.task.train
    dropout = train.dropout if adapter.CARRIES_BASE else None
    model = load.dummy(trial.base, trial.head, config, dropout)
    adapter.attach(model, trial.task.rung_settings.get(trial.rung, {}), train.dropout or 0.0, train.seed)
    quicken.install(model.hf)
    model.to(work.device)
    batches = trial.batches
    if work.refers:
        batches = replace(batches, rows=Referred(batches.rows, np.zeros((len(batches.rows), 2), np.float32)))
    batches = replace(batches, packed=model.packs, shared=isinstance(batches.rows, Referred) and model.shares)
    dtype = torch.bfloat16 if work.element == 2 else torch.float32
    return Run(
        model, trial.method, trial.settings, train, trial.timetable, batches, None, Path(), {}, dtype, recompute=cut[1]
    )
