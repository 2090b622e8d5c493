"""The one loop that trains every method: a generator of Events, to be read in one sitting.

In: a model, a method (its `weight` and `loss`), batches by step.  Out: Events; the terminal, events.jsonl and
cancelling are consumers of what it yields.  A method's loss is a SUM over targets and a batch has a WEIGHT; the
weight of the whole step is known before the first backward, so the update does not depend on how the step is cut.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import torch
from torch import Tensor

from burnish import store
from burnish.errors import TrainError
from burnish.models.model import Model
from burnish.records import Event
from burnish.task import Train
from burnish.tokens.batch import Batch, Batches
from burnish.train import checkpoint, optim
from burnish.train.plan import Plan


@dataclass
class Progress:
    """All that a run remembers besides tensors; it is the state.json of a checkpoint.

    best: lowest validation loss so far, seen at best_step.  stale: validations since.  seconds: over all sittings.
    """

    step: int = 0
    best: float | None = None
    best_step: int = 0
    stale: int = 0
    seconds: float = 0.0
    tokens: int = 0
    done: str = ""


@dataclass
class Run:
    """What `fit` works with.  identity: what a checkpoint must agree on to be continued."""

    model: Model
    method: ModuleType
    method_settings: Any
    settings: Train
    plan: Plan
    batches: Batches
    validation: Batches | None
    folder: Path
    identity: dict[str, Any]
    progress: Progress = field(default_factory=Progress)
    best: dict[str, Tensor] = field(default_factory=dict)


def fit(run: Run) -> Iterator[Event]:
    """Train to the plan's end, to early stopping, or until a stop is asked for; then the model holds the best weights.

    A killed run goes on from its newest checkpoint that verifies and ends with bit-identical weights.
    Raises TrainError when a loss or gradient is not finite, before it can reach a weight.
    """
    model, settings, plan = run.model, run.settings, run.plan
    parameters = model.trainable()
    optimizer = optim.build(parameters, settings)
    yield from _resume(run, optimizer)
    began = time.monotonic() - run.progress.seconds
    state = run.progress
    model.train()
    for step in range(state.step + 1, plan.steps + 1):
        if state.done:
            break
        clock = time.monotonic()
        torch.manual_seed(
            (settings.seed * 1_000_003 + step) % 2**63
        )  # dropout is a function of the step: nothing to restore
        micro = run.batches.step(step)
        total = sum(run.method.weight(batch) for batch in micro)
        loss = torch.zeros((), dtype=torch.float64)
        for batch in micro:
            batch = batch.to(model.device)
            part = run.method.loss(model(batch), batch, run.method_settings) / total
            part.backward()
            loss += part.detach().double().cpu()
        if settings.l1:
            optim.add_l1(parameters, settings.l1)
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), settings.clip or math.inf)
        if not math.isfinite(loss.item()) or not math.isfinite(norm.item()):
            raise _not_finite(run, step, micro, loss.item())
        rate = optim.rate(step, plan.steps, settings, plan.peak)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens = sum(int((batch.document > 0).sum()) for batch in micro)
        state.step, state.tokens, state.seconds = step, state.tokens + tokens, time.monotonic() - began
        yield Event(
            "step",
            step,
            state.seconds,
            {
                "loss": loss.item(),
                "learning_rate": rate,
                "grad_norm": norm.item(),
                "tokens": tokens,
                "tokens_per_second": tokens / max(time.monotonic() - clock, 1e-9),
                "memory": psutil.Process().memory_info().rss,
                "steps": plan.steps,
                "epoch": step / plan.per_epoch,
            },
        )
        last = step == plan.steps
        if run.validation is not None and (last or step % plan.evaluate_every == 0):
            yield _validated(run, began, parameters)
        if last:
            state.done = "all steps done"
        elif settings.patience and state.stale >= settings.patience:
            state.done = f"no improvement in {state.stale} validations"
        stopping = store.stop_requested()
        if state.done or stopping or step % plan.save_every == 0:
            yield _saved(run, optimizer, began)
        if stopping and not state.done:
            yield Event("stopped", step, state.seconds, {"reason": "a stop was asked for; saved"})
            return
    if run.best:
        with torch.no_grad():
            for name, value in parameters.items():
                value.copy_(run.best[name])
    kept = state.best_step or state.step
    yield Event(
        "finished", state.step, state.seconds, {"reason": state.done, "best_step": kept, "tokens": state.tokens}
    )


def validation_loss(model: Model, method: ModuleType, settings: Any, batches: Iterator[Batch]) -> float:
    """Sum of losses over sum of weights, in float64: the same whatever the batch size or order."""
    was = model.training
    model.eval()
    total, weight = 0.0, 0.0
    with torch.no_grad():
        for batch in batches:
            batch = batch.to(model.device)
            total += float(method.loss(model(batch), batch, settings).double())
            weight += method.weight(batch)
    model.train(was)
    return total / max(weight, 1e-12)


def _validated(run: Run, began: float, parameters: dict[str, Any]) -> Event:
    assert run.validation is not None
    state = run.progress
    value = validation_loss(run.model, run.method, run.method_settings, run.validation.once())
    better = math.isfinite(value) and (state.best is None or value < state.best)
    if better:
        state.best, state.best_step, state.stale = value, state.step, 0
        run.best = {name: item.detach().clone() for name, item in parameters.items()}
    else:
        state.stale += 1
    state.seconds = time.monotonic() - began
    return Event("validated", state.step, state.seconds, {"valid_loss": value, "best": better})


def _saved(run: Run, optimizer: torch.optim.Optimizer, began: float) -> Event:
    state = run.progress
    parameters = run.model.trainable()
    tensors = {
        "weights": {name: value.detach() for name, value in parameters.items()},
        "optimizer": optim.state_tensors(optimizer, parameters),
        "best": run.best if state.best_step != state.step else {},
    }
    path = checkpoint.save(run.folder, state.step, tensors, dict(vars(state)), run.identity)
    state.seconds = time.monotonic() - began
    return Event("saved", state.step, state.seconds, {"path": str(path)})


def _resume(run: Run, optimizer: torch.optim.Optimizer) -> Iterator[Event]:
    """Put the newest trusted checkpoint back, if there is one, and say what was found."""
    found = checkpoint.newest(run.folder, run.identity)
    if found is None:
        return
    run.progress = Progress(**found.state)
    parameters = run.model.trainable()
    weights = found.tensors("weights")
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(weights[name])
    optim.restore(optimizer, parameters, found.tensors("optimizer"))
    run.best = found.tensors("best") or {name: value.detach().clone() for name, value in parameters.items()}
    if not run.progress.best_step:
        run.best = {}
    seconds = run.progress.seconds
    yield Event("resumed", found.step, seconds, {"path": str(found.path)})
    for problem in found.quarantined:
        yield Event("warned", found.step, seconds, {"text": f"{problem.what} ({problem.where}); {problem.do}"})


def _not_finite(run: Run, step: int, micro: Sequence[Batch], loss: float) -> TrainError:
    rows = [where for batch in micro for where in batch.where]
    shown = ", ".join(rows[:8]) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
    kind = "loss" if not math.isfinite(loss) else "gradient"
    return TrainError(
        f"The {kind} of step {step} is not finite; the weights were not touched",
        f"rows of this step: {shown}",
        "look at these rows; lower train.learning_rate or set train.clip; the last checkpoint is intact",
    )
