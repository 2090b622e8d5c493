"""The one loop that trains every method: a generator of Events, to be read in one sitting.

In: a model, a method (its `weight` and `loss`), batches by step.  Out: Events; the terminal, events.jsonl and
cancelling are consumers of what it yields.  A method's loss is a SUM over targets and a batch has a WEIGHT; the
weight of the whole step is known before the first backward, so the update does not depend on how the step is cut.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import psutil
import torch

from burnish import store
from burnish.errors import TrainError
from burnish.models import heap
from burnish.models.model import Model
from burnish.records import Event
from burnish.tokens.batch import Batch
from burnish.train import memory, optim, reference
from burnish.train.optim import Masters
from burnish.train.run import Progress, Run


def fit(run: Run) -> Iterator[Event]:
    """Train to the last step, to early stopping, or until a stop is asked for; then the model holds the best weights.

    A killed run goes on from its newest checkpoint that verifies and ends with bit-identical weights.  Trained weights
    are in float32 when it ends.
    Raises TrainError when a loss or gradient is not finite, before it can reach a weight, or when memory does not hold
    one row.
    """
    model, settings, timetable, ranks = run.model, run.settings, run.timetable, run.ranks
    ranks.settle(model)
    masters = Masters(model.hf, model.trainable(), run.precision)
    optimizer = optim.build(masters.values, settings)
    referring = (yield from reference.refer(run)) if run.pairs else 0.0
    yield from _resume(run, masters, optimizer)
    ranks.settle(model)
    state = run.progress
    state.seconds += referring
    began = time.monotonic() - state.seconds
    model.train()
    for step in range(state.step + 1, timetable.steps + 1):
        if state.done:
            break
        clock = time.monotonic()
        micro, loss = yield from memory.within(partial(gradient, run, masters, step), run.smaller)
        norm, rate = update(run, masters, optimizer, step, micro, loss)
        tokens = int(ranks.sum(sum(int((batch.document > 0).sum()) for batch in micro))[0])
        state.step, state.tokens, state.seconds = step, state.tokens + tokens, time.monotonic() - began
        yield Event(
            "step",
            step,
            state.seconds,
            {
                "loss": loss,
                "learning_rate": rate,
                "grad_norm": norm,
                "tokens": tokens,
                "tokens_per_second": tokens / max(time.monotonic() - clock, 1e-9),
                "memory": psutil.Process().memory_info().rss,
                "steps": timetable.steps,
                "epoch": step / timetable.per_epoch,
            },
        )
        last = step == timetable.steps
        if run.validation is not None and (last or step % timetable.evaluate_every == 0):
            value = yield from memory.within(partial(_validation_loss, run), run.smaller)
            yield _judged(run, masters, value, began)
        if last:
            state.done = "all steps done"
        elif settings.patience and state.stale >= settings.patience:
            state.done = f"no improvement in {state.stale} validations"
        stopping = ranks.sum(store.stop_requested())[0] > 0
        if state.done or stopping or step % timetable.save_every == 0:
            yield _saved(run, masters, optimizer, began)
        if stopping and not state.done:
            yield Event("stopped", step, state.seconds, {"reason": "a stop was asked for; saved"})
            return
    if run.best:
        masters.put(run.best.items())
    masters.release()
    kept = state.best_step or state.step
    yield Event(
        "finished", state.step, state.seconds, {"reason": state.done, "best_step": kept, "tokens": state.tokens}
    )


def gradient(run: Run, masters: Masters, step: int) -> tuple[list[Batch], float]:
    """Put a step's gradient into the masters; returns its micro-batches and its loss per unit of weight, in float64."""
    masters.clear()
    noise = run.settings.seed * 1_000_003 + step + run.ranks.rank * 1_000_000_007
    torch.manual_seed(noise % 2**63)  # dropout follows from it: nothing to restore
    micro = run.batches.step(step)
    (total,) = run.ranks.sum(sum(run.method.weight(batch) for batch in micro))
    loss = run.ranks.together(partial(_backward, run, micro, total))
    run.ranks.reduce(masters.values)
    return micro, run.ranks.sum(loss)[0]


def update(
    run: Run, masters: Masters, optimizer: torch.optim.Optimizer, step: int, micro: Sequence[Batch], loss: float
) -> tuple[float, float]:
    """Move the masters by a step's gradient, which is then gone; returns its norm and the learning rate.

    Raises TrainError when loss or gradient is not finite, before any weight is touched.
    """
    settings = run.settings
    if settings.l1:
        optim.add_l1(masters, settings.l1)
    gradients = torch.nn.utils.clip_grad_norm_(masters.values.values(), settings.clip or math.inf)
    norm = run.ranks.whole(gradients).item()
    if not math.isfinite(loss) or not math.isfinite(norm):
        raise _not_finite(step, micro, loss)
    rate = optim.rate(step, run.timetable.steps, settings, run.timetable.peak)
    for group in optimizer.param_groups:
        group["lr"] = rate
    masters.step(optimizer)
    return norm, rate


def _backward(run: Run, micro: Sequence[Batch], total: float) -> float:
    """Add up this rank's gradients; returns its part of the step's loss."""
    loss = torch.zeros((), dtype=torch.float64, device=run.model.device)
    trims = run.recompute and run.model.device.type == "cpu"
    for batch, counts in run.watched(micro, run.batches):
        batch = batch.to(run.model.device)
        outputs = run.model(batch)
        if trims:  # memory is what counts here, and each half of a pass leaves gaps (docs/log.md)
            heap.trim()
        part = run.method.loss(outputs, batch, run.method_settings) / total
        part = part if counts else part * 0.0
        part.backward()
        if trims:
            heap.trim()
        loss += part.detach().double()
    return loss.item()


def _validation_loss(run: Run) -> float:
    assert run.validation is not None
    batches = run.watched(run.validation.once(), run.validation)
    total, weight = run.ranks.sum(
        *run.ranks.together(partial(_sums, run.model, run.method, run.method_settings, batches))
    )
    return total / max(weight, 1e-12)


def validation_loss(model: Model, method: ModuleType, settings: Any, batches: Iterable[Batch]) -> float:
    """Sum of losses over sum of weights, in float64: the same whatever the batch size or order."""
    total, weight = _sums(model, method, settings, ((batch, True) for batch in batches))
    return total / max(weight, 1e-12)


def _sums(
    model: Model, method: ModuleType, settings: Any, batches: Iterable[tuple[Batch, bool]]
) -> tuple[float, float]:
    """The sums of losses and of weights over the batches that count."""
    was = model.training
    total, weight = 0.0, 0.0
    try:
        model.eval()
        with torch.no_grad():
            for batch, counts in batches:
                batch = batch.to(model.device)
                value = float(method.loss(model(batch), batch, settings).double())
                if counts:
                    total, weight = total + value, weight + method.weight(batch)
    finally:
        model.train(was)
    return total, weight


def _judged(run: Run, masters: Masters, value: float, began: float) -> Event:
    state = run.progress
    better = math.isfinite(value) and (state.best is None or value < state.best)
    if better:
        state.best, state.best_step, state.stale = value, state.step, 0
        run.best = {}  # the former ones go first
        run.best = run.ranks.keep(run.folder, masters.numbers)
    else:
        state.stale += 1
    state.seconds = time.monotonic() - began
    return Event("validated", state.step, state.seconds, {"valid_loss": value, "best": better})


def _saved(run: Run, masters: Masters, optimizer: torch.optim.Optimizer, began: float) -> Event:
    state = run.progress
    tensors = {
        "weights": masters.numbers,
        "optimizer": optim.state_tensors(optimizer, masters.values),
        "best": run.best if state.best_step != state.step else {},
    }
    path = run.ranks.save(run.folder, state.step, tensors, dict(vars(state)), run.identity)
    state.seconds = time.monotonic() - began
    return Event("saved", state.step, state.seconds, {"path": str(path)})


def _resume(run: Run, masters: Masters, optimizer: torch.optim.Optimizer) -> Iterator[Event]:
    """Put the newest trusted checkpoint back, if there is one, and say what was found."""
    found = run.ranks.newest(run.folder, run.identity)
    if found is not None:
        run.progress = Progress(**found.state)
        again = partial(run.ranks.tensors, found, like=masters.values)
        best, step = run.progress.best_step, run.progress.step
        if best not in (0, step):
            masters.put(again("best"))
            run.best = run.ranks.keep(run.folder, masters.numbers)
        masters.put(again("weights"))
        optim.restore(optimizer, masters.values, again("optimizer"))
        if best == step:
            run.best = run.ranks.keep(run.folder, masters.numbers)
        seconds = run.progress.seconds
        yield Event("resumed", found.step, seconds, {"path": str(found.path)})
        for problem in found.quarantined:
            yield Event("warned", found.step, seconds, {"text": f"{problem.what} ({problem.where}); {problem.do}"})
    run.lean()


def _not_finite(step: int, micro: Sequence[Batch], loss: float) -> TrainError:
    rows = [where for batch in micro for where in batch.where]
    shown = ", ".join(rows[:8]) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
    kind = "loss" if not math.isfinite(loss) else "gradient"
    return TrainError(
        f"The {kind} of step {step} is not finite; the weights were not touched",
        f"rows of this step: {shown}",
        "look at these rows; lower train.learning_rate or set train.clip; the last checkpoint is intact",
    )
