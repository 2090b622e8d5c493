"""Bytes and seconds of a run as plain arithmetic: every formula that a plan rests on, to be checked by hand.

In: a Work, its cut and a Machine.  Out: memory, time and disk by part.

Sources: Kaplan et al. 2020, Scaling Laws, table 1 (2 multiply-adds a weight and token forward, twice that backward);
Korthikanti et al. 2022, Reducing Activation Recomputation, section 4 (what a layer keeps for its backward pass).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

import numpy as np

from burnish.train.terms import Load, Machine, Work, load_of, scaled

STATES = {"adamw": 8.0, "adam": 8.0, "sgd": 4.0, "adamw-8bit": 2.0, "adafactor": 0.1}  # bytes for a trained number
NF4 = 0.516  # bytes of a weight in 4 bits, constants included (Dettmers et al. 2023, QLoRA, section 3)
CHUNK, TRAINED, DEVICE = 1 << 23, 1 << 25, 1 << 27  # logits held at once, as models/fused.py cuts them
KERNELS = 1600  # that are kept at most: 2,600 shapes took 1.1 GB (docs/log.md)
KEPT_CHECKPOINTS = 3  # two kept, and the one being written


@dataclass(frozen=True)
class Fit:
    """What no formula gives: fitted to measured runs by `python benchmarks/plan.py --fit`.

    kept: memory taken for each byte that autograd saves: gaps between blocks lie among them.
    scratch: of the widest layer's numbers, copies alive for a moment.
    logits: float32 copies of each logit of a chunk.
    update: float32 copies of the trained numbers alive inside an optimizer step.
    process: bytes that threads, kernels and the loop itself add to a process that has imported everything.
    arithmetic: seconds of a matrix product in a run over the same product measured alone.
    stream: how often each number between two layers passes through memory, forward; backward counts twice.
    attention: seconds of an attention product over a square one's of as many multiplications.
    words: how often each logit passes through memory.  calls: small operations for each layer call.
    passes: over a trained number in an optimizer step.
    step: seconds of a step that belong to no batch.
    kernel, compiling: bytes and seconds of a bfloat16 product of a new shape on the CPU, for which oneDNN compiles and
    keeps a kernel.
    memory, seconds: relative error that 19 of 20 measured cases stay within (docs/log.md), held-out ones counted.
    untried: the same of seconds that no rehearsal has set right.
    """

    kept: float = 1.37
    scratch: float = 10.4
    logits: float = 0.704
    update: float = 0.001
    process: float = 98.6e6
    arithmetic: float = 1.36
    stream: float = 0.234
    attention: float = 0.75
    words: float = 23.0
    calls: float = 240.0
    passes: float = 23.5
    step: float = 0.0005
    kernel: float = 0.0533e6
    compiling: float = 4.8e-05
    memory: float = 0.10
    seconds: float = 0.20
    untried: float = 0.62


FIT = Fit()


def mean_step(work: Work, micro_tokens: int) -> Load:
    """An average optimizer step, and into how many micro-batches it is cut."""
    if not len(work.train):
        return Load()
    share = min(work.batch_size, len(work.train)) / len(work.train)
    whole = scaled(load_of(work.train), share)
    return replace(whole, batches=max(1.0, (whole.ids + whole.source) / max(_room(work, micro_tokens), 1)))


def largest_batch(work: Work, micro_tokens: int) -> Load:
    """The micro-batch that needs the most memory: a full one of average rows, or the longest row alone."""
    if not len(work.train):
        return Load()
    most = float(np.sort(work.train.tokens)[-work.batch_size :].sum())
    typical = mean_step(work, micro_tokens)
    average = typical.ids + typical.source
    spread = 2.5 * float(np.std(work.train.tokens)) * math.sqrt(min(work.batch_size, len(work.train)))
    tokens = min(_room(work, micro_tokens), most, average + spread)
    full = scaled(typical, tokens / max(average, 1.0))
    longest = load_of(work.train.where(work.train.tokens.argsort()[-1:]))
    both = zip(asdict(full).values(), asdict(longest).values(), strict=True)
    return Load(*(max(pair) for pair in both))


def _room(work: Work, micro_tokens: int) -> float:
    """Tokens of a micro-batch: the budget, but one row always fits."""
    return max(micro_tokens, int(work.train.tokens.max()) if len(work.train) else 0)


# --- memory --------------------------------------------------------------------------------------------------


def memory(work: Work, micro_tokens: int, recompute: bool, machine: Machine, fit: Fit = FIT) -> dict[str, float]:
    """Bytes of each part at the run's peak, and which phase that is: {"weights": ..., ..., "peak": total}.

    The phases are forward with backward, the optimizer's step, and validation (weights are read piece by piece, in the
    types that they keep); a part that is not alive in the worst of them is left out.
    """
    shape = work.shape
    trained = 4.0 * shape.trained / work.ranks
    halved = work.element < 4 and work.ranks == 1  # a weight and what it lacks, put together one tensor at a time
    largest = max((item.inputs * item.outputs for item in shape.linears), default=0)
    frozen = (shape.parameters - shape.trained - shape.quantised) / work.ranks
    small = NF4 * shape.quantised / work.ranks
    lasting = {
        "process": machine.resident + fit.process if work.device == "cpu" else 0.0,
        "weights": frozen * work.element + small + trained,
        **({"fetched": _fetched(work)} if work.ranks > 1 else {}),
        "optimizer": shape.trained * STATES[work.optimizer] / work.ranks,
        **({"best weights": trained} if len(work.validation) and work.ranks > 1 else {}),  # else on disk
        **({"gradients": trained} if halved else {}),  # their sums keep their place
    }
    batch = largest_batch(work, micro_tokens)
    forward = {"logits": _logits(work, batch, fit), "scratch": _scratch(work, batch, fit)}
    each = mean_step(work, micro_tokens)
    seen = work.steps * each.batches * _new_shapes(work, scaled(each, 1 / each.batches))
    lasting["kernels"] = fit.kernel * min(seen, KERNELS)
    phases: dict[str, dict[str, float]] = {
        "training": {
            **lasting,
            "gradients": trained,
            "activations": _activations(work, batch, recompute, fit),
            **forward,
        },
        "update": {
            **lasting,
            "gradients": trained,
            "update": trained * fit.update + 4.0 * halved * min(largest, shape.trained),
        },
        "validation": {**lasting, **forward},
    }
    worst = max(phases, key=lambda name: sum(phases[name].values()))
    return {**phases[worst], "peak": sum(phases[worst].values())}


def _fetched(work: Work) -> float:
    """Weights that a rank has whole for a while where they are cut: what lies outside the layers, and two layers.

    Embeddings, output layer and the last norm stay from forward to backward; one layer works, one is being fetched.
    """
    sides = work.shape.ids, work.shape.source
    largest = max(side.largest for side in sides)
    blocks = max(sum(side.kept for side in sides) / largest, 2.0) if largest else 2.0
    inner, small = work.shape.multiplications, work.shape.quantised
    layers = work.element * (inner - small) + NF4 * small
    return work.element * max(work.shape.parameters - inner, 0) + 2 * layers / blocks


def _new_shapes(work: Work, batch: Load) -> float:
    """Products in a micro-batch of a shape not seen before: packs differ in length, and attention groups do."""
    if work.device != "cpu" or work.element != 2:
        return 0.0
    alike = {(item.inputs, item.outputs, item.rank): item for item in work.shape.linears}
    products = sum(1 + item.backward + item.trained + 5 * (item.rank > 0) for item in alike.values())
    groups = min(batch.rows, 1 + (batch.pairs + batch.source_pairs) / 65536)
    dropped = work.shape.ids.hidden or work.shape.source.hidden  # without dropout attention is no such product
    return products + (6 * groups if dropped else 0)


def _activations(work: Work, batch: Load, recompute: bool, fit: Fit) -> float:
    """What forward leaves for backward: every number between two layers, or with recomputation one block's."""
    told = 0.0
    for side, tokens, pairs in (
        (work.shape.ids, batch.ids, batch.pairs + batch.cross_pairs),
        (work.shape.source, batch.source, batch.source_pairs),
    ):
        numbers = side.inputs + fit.kept * side.largest if recompute else fit.kept * side.kept
        blocks = max(side.kept / side.largest, 1.0) if side.largest else 1.0
        hidden = side.hidden * pairs / (blocks if recompute else 1.0)  # a byte each: attention's dropout
        told += work.element * numbers * tokens + hidden
    return told


def _logits(work: Work, batch: Load, fit: Fit) -> float:
    """One chunk of logits, and the gradients of a trained head's weight."""
    told = 0.0
    for item in work.shape.linears:
        if item.at == "supervised":
            most = DEVICE if work.device != "cpu" else TRAINED if item.trained else CHUNK
            rows, each = max(most / item.outputs, 1.0), 4.0 * fit.logits
            if work.shape.whole:  # themselves, in float32, their logarithms, the gradient of both
                rows, each = math.inf, 12.0 + 2.0 * work.element
            told += each * item.outputs * min(batch.supervised, rows) + batch.supervised * item.inputs * work.element
            if item.trained:  # the sum, and in float32 the embedding's rows beside it; some rows of a chunk at a time
                told += (4.0 if work.element < 4 else 8.0) * item.inputs * item.outputs + 16384.0 * item.inputs
    return told


def _scratch(work: Work, batch: Load, fit: Fit) -> float:
    widest = max((max(item.inputs, item.outputs) for item in work.shape.linears if item.at == "ids"), default=0)
    return fit.scratch * work.element * widest * max(batch.ids, batch.source)


def disk(work: Work) -> float:
    """Bytes of checkpoints (weights, optimizer, best), of the best weights while it runs, and of the artifact."""
    each = work.shape.trained * (8.0 + STATES[work.optimizer])
    return KEPT_CHECKPOINTS * each + (8.0 if len(work.validation) else 4.0) * work.shape.trained


# --- time ----------------------------------------------------------------------------------------------------


def seconds(work: Work, micro_tokens: int, recompute: bool, machine: Machine, fit: Fit = FIT) -> dict[str, float]:
    """Seconds of each part of a run, and {"step": one step, "all": everything}."""
    batch = mean_step(work, micro_tokens)
    step = machine.pace * passing(work, batch, True, recompute, machine, fit)
    step += machine.updates * updating(work, machine, fit)
    held = load_of(work.validation)
    held = replace(held, batches=max(1.0, (held.ids + held.source) / max(_room(work, micro_tokens), 1)))
    each = disk(work) / KEPT_CHECKPOINTS
    forward = machine.pace * passing(work, held, False, False, machine, fit)
    once = replace(work, batch_size=max(len(work.train), 1))
    refer = machine.pace * passing(work, mean_step(once, micro_tokens), False, False, machine, fit) + forward
    told = {
        "start": 2 * work.shape.files / machine.read,
        **({"reference": refer} if work.refers else {}),
        "training": step * work.steps,
        "validation": work.validations * forward if len(work.validation) else 0.0,
        "saving": work.saves * each * (1 / machine.write + 1 / machine.read),
    }
    return {**told, "step": step, "all": sum(told.values())}


def updating(work: Work, machine: Machine, fit: Fit = FIT) -> float:
    """Seconds of an optimizer's step, by the arithmetic alone."""
    return fit.step + fit.passes * 4.0 * work.shape.trained / machine.stream


def passing(work: Work, load: Load, backward: bool, recompute: bool, machine: Machine, fit: Fit = FIT) -> float:
    """Seconds of a forward pass over a load, with its backward pass if asked, by the arithmetic alone."""
    shape, told = work.shape, 0.0
    again = 2.0 if backward and recompute else 1.0
    for item in shape.linears:
        tokens = load.at(item.at) * item.count
        ahead, into, onto = machine.rate(item.inputs, item.outputs)
        own, low = 2.0 * item.inputs * item.outputs, 2.0 * item.rank * (item.inputs + item.outputs)
        repeat = again if item.at in ("ids", "source") else 1.0
        told += fit.arithmetic * tokens * repeat * (own + low) / ahead
        if backward and item.backward:
            told += fit.arithmetic * tokens * (own + low) / into
        if backward:
            told += fit.arithmetic * tokens * (own * item.trained + low) / onto
        if item.at == "supervised":
            told += fit.words * 4.0 * tokens * item.outputs / machine.stream
    for side, tokens, pairs in (
        (shape.ids, load.ids, load.pairs + load.cross_pairs),
        (shape.source, load.source, load.source_pairs),
    ):
        times = again + 2.0 * side.reached * backward
        ahead = machine.rate(256, 256)[0]
        told += fit.attention * times * 4.0 * side.attended * pairs / ahead
        told += fit.stream * times * work.element * side.widths * tokens / machine.stream
        if backward:
            told += again * (side.drawn * tokens + side.hidden * pairs) / machine.draw
    new = _new_shapes(work, scaled(load, 1 / load.batches)) * load.batches * (1.0 if backward else 0.3)
    told += fit.compiling * new
    forward_only = shape.idle if backward else shape.calls
    calls = shape.calls - 0.6 * forward_only
    return told + fit.calls * load.batches * calls * machine.call
