"""What a run will need before it starts: seconds, memory and disk as plain arithmetic over a description.

In: a Work (the model's shape, the rows, how they are cut into steps) and a Machine (measured rates).  Out: an Estimate
with an error bound on every figure, whether it fits, and the change that makes it fit.  No torch: `describe.py` reads a
model, `calibrate.py` measures a machine, and everything here can be checked by hand.

Sources: Kaplan et al. 2020, Scaling Laws, table 1 (2 multiply-adds a weight and token forward, twice that backward);
Korthikanti et al. 2022, Reducing Activation Recomputation, section 4 (what a layer keeps for its backward pass).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

At = Literal["ids", "source", "supervised", "rows"]
Verdict = Literal["fits", "tight", "does not fit"]
CUTS = (128, 256, 512, 1024, 2048, 4096, 8192)  # budgets of tokens to choose from
LEAST = 1024  # below it matrix products slow down, so nothing smaller is taken but for want of memory
LIMITS = (8192, 4096, 2048, 1024, 512, 256, 128, 64)  # of a row's tokens, tried as a remedy
NOMINAL_FLOPS, NOMINAL_CALL = 1e11, 2e-5  # of no machine in particular: the choice must not hang on a stop-watch
WORTH = 0.1  # a larger micro-batch is taken while calls cost more than this share of the arithmetic
STATES = {"adamw": 8.0, "adam": 8.0, "sgd": 4.0, "adamw-8bit": 2.0, "adafactor": 0.1}  # bytes for a trained number
NF4 = 0.516  # bytes of a weight in 4 bits, constants included (Dettmers et al. 2023, QLoRA, section 3)
CHUNK, TRAINED = 1 << 23, 1 << 25  # logits held at once, as models/fused.py cuts them
KERNELS = 1600  # that are kept at most: 2,600 shapes took 1.1 GB (docs/log.md)
KEPT_CHECKPOINTS = 3  # two kept, and the one being written


@dataclass(frozen=True)
class Fit:
    """What no formula gives: fitted to measured runs by `python benchmarks/plan.py --fit`.

    kept: copies held for the backward pass of each number that passes between two layers.
    scratch: of the widest layer's numbers, copies alive for a moment.
    probabilities: copies held of each attention weight (0: never all held at once).
    logits: float32 copies of each logit of a chunk.  loading: of the weights' files, what is held beside the weights.
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
    memory, seconds: relative error bound of a prediction.
    """

    kept: float = 1.45
    scratch: float = 52.0
    probabilities: float = 0.0
    logits: float = 0.473
    loading: float = 1.0
    update: float = 0.001
    process: float = 29e6
    arithmetic: float = 1.36
    stream: float = 0.234
    attention: float = 0.75
    words: float = 23.0
    calls: float = 240.0
    passes: float = 23.5
    step: float = 0.0005
    kernel: float = 0.1e6
    compiling: float = 4.8e-05
    memory: float = 0.1
    seconds: float = 0.2


FIT = Fit()


@dataclass(frozen=True)
class Linear:
    """`count` matrices of inputs x outputs, each used once a token of its kind.

    at: every token read (ids), every token of an encoder-decoder's question (source), every supervised position, or
    once a row.  trained: its own weight is.  rank: of its low-rank update.  backward: the gradient passes through it.
    quantised: stored in 4 bits and unpacked at every use.
    """

    inputs: int
    outputs: int
    count: int = 1
    at: At = "ids"
    trained: bool = False
    rank: int = 0
    backward: bool = True
    quantised: bool = False


@dataclass(frozen=True)
class Side:
    """The blocks that one kind of token passes through (an encoder-decoder has two sides).

    kept: numbers a token leaves for the backward pass, over all blocks that it reaches.  largest: of one block.
    inputs: numbers a token brings into those blocks.  widths: numbers between layers over all blocks.
    heads, attended: attention heads and their summed width, over all blocks.
    """

    kept: float = 0.0
    largest: float = 0.0
    inputs: float = 0.0
    widths: float = 0.0
    heads: int = 0
    attended: int = 0


@dataclass(frozen=True)
class Shape:
    """A model with its adapter, as far as cost goes.

    parameters, trained, quantised: numbers, shared ones once; quantised ones lie in 4 bits.  files: bytes on disk.
    calls: layers called for a micro-batch.
    """

    parameters: int
    trained: int
    quantised: int
    files: int
    linears: tuple[Linear, ...]
    ids: Side
    source: Side = Side()
    calls: int = 0

    @property
    def multiplications(self) -> int:
        """Of one token read, forward, the output layer aside."""
        return sum(item.count * item.inputs * item.outputs for item in self.linears if item.at in ("ids", "source"))


@dataclass(frozen=True)
class Rows:
    """Per row (n,): ids and source tokens, and how many positions are supervised."""

    ids: np.ndarray
    source: np.ndarray
    supervised: np.ndarray

    @property
    def tokens(self) -> np.ndarray:
        return self.ids + self.source

    def __len__(self) -> int:
        return len(self.ids)

    def where(self, kept: np.ndarray) -> Rows:
        """The rows of a mask or of indices."""
        return Rows(self.ids[kept], self.source[kept], self.supervised[kept])


@dataclass(frozen=True)
class Work:
    """A run as far as cost goes.

    micro_tokens: the user's own budget; 0 leaves it to `choose`.  element: bytes of a number between layers, and of a
    weight; trained ones in fewer than 4 have a float32 master.  tokens: all that the run reads; `exact` or nearly.
    splits: rows over a limit become several.  recomputes: whether the model can make activations again.
    """

    shape: Shape
    train: Rows
    validation: Rows
    batch_size: int
    steps: int
    validations: int
    saves: int
    tokens: int
    exact: bool = True
    micro_tokens: int = 0
    element: int = 4
    optimizer: str = "adamw"
    device: str = "cpu"
    splits: bool = False
    recomputes: bool = True


@dataclass(frozen=True)
class Machine:
    """A machine's rates and room, as `calibrate` measured them.

    memory: bytes this process may come to hold.  resident: bytes it holds already.  elapsed: seconds since it began.
    gpu: bytes of device memory, 0 without one.  disk: free bytes.
    products: floating-point operations a second of (forward, input gradient, weight gradient) by (inputs, outputs).
    stream: bytes a second through an element-wise operation.  call: seconds of a tiny one, forward and backward.
    write, read: bytes a second to and from disk.
    """

    memory: float
    resident: float
    disk: float
    products: Mapping[tuple[int, int], tuple[float, float, float]]
    stream: float = 1e10
    call: float = 2e-5
    write: float = 2e8
    read: float = 1e9
    elapsed: float = 5.0
    gpu: float = 0.0

    def rate(self, inputs: int, outputs: int) -> tuple[float, float, float]:
        """The rates of a product: its own, else those of the nearest measured shape."""
        if not self.products:
            return NOMINAL_FLOPS, NOMINAL_FLOPS, NOMINAL_FLOPS

        def apart(known: tuple[int, int]) -> float:
            return abs(math.log(known[0] / inputs)) + abs(math.log(known[1] / outputs))

        return self.products[min(self.products, key=apart)]


@dataclass(frozen=True)
class Load:
    """Tokens of each kind that a batch holds, and pairs of tokens that attend to one another."""

    ids: float = 0.0
    source: float = 0.0
    supervised: float = 0.0
    rows: float = 0.0
    pairs: float = 0.0
    source_pairs: float = 0.0
    cross_pairs: float = 0.0
    batches: float = 1.0

    def at(self, kind: At) -> float:
        return float(getattr(self, kind))


def load_of(rows: Rows, batches: float = 1.0) -> Load:
    """Rows together; documents do not see one another, so pairs are summed over rows."""
    ids, source = rows.ids.astype(float), rows.source.astype(float)
    return Load(
        float(ids.sum()),
        float(source.sum()),
        float(rows.supervised.sum()),
        float(len(rows)),
        float((ids**2).sum()),
        float((source**2).sum()),
        float((ids * source).sum()),
        batches,
    )


def _scaled(load: Load, by: float) -> Load:
    return Load(**{name: value * by for name, value in asdict(load).items()})


def mean_step(work: Work, micro_tokens: int) -> Load:
    """An average optimizer step, and into how many micro-batches it is cut."""
    if not len(work.train):
        return Load()
    share = min(work.batch_size, len(work.train)) / len(work.train)
    whole = _scaled(load_of(work.train), share)
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
    full = _scaled(typical, tokens / max(average, 1.0))
    longest = load_of(work.train.where(work.train.tokens.argsort()[-1:]))
    both = zip(asdict(full).values(), asdict(longest).values(), strict=True)
    return Load(*(max(pair) for pair in both))


def _room(work: Work, micro_tokens: int) -> float:
    """Tokens of a micro-batch: the budget, but one row always fits."""
    return max(micro_tokens, int(work.train.tokens.max()) if len(work.train) else 0)


# --- memory --------------------------------------------------------------------------------------------------


def memory(work: Work, micro_tokens: int, recompute: bool, machine: Machine, fit: Fit = FIT) -> dict[str, float]:
    """Bytes of each part at the run's peak, and which phase that is: {"weights": ..., ..., "peak": total}.

    The phases are reading the weights (in float32, from files mapped into memory; 4-bit ones tensor by tensor), forward
    with backward, the optimizer's step, and validation; a part that is not
    alive in the worst of them is left out.
    """
    shape = work.shape
    trained = 4.0 * shape.trained
    rounded = shape.trained * (work.element if work.element < 4 else 0)
    frozen = shape.parameters - shape.trained - shape.quantised
    lasting = {
        "process": machine.resident + fit.process if work.device == "cpu" else 0.0,
        "weights": frozen * work.element + shape.quantised * NF4 + rounded + trained,
        "optimizer": shape.trained * STATES[work.optimizer],
        "best weights": trained if len(work.validation) else 0.0,
    }
    batch = largest_batch(work, micro_tokens)
    forward = {"logits": _logits(work, batch, fit), "scratch": _scratch(work, batch, fit)}
    each = mean_step(work, micro_tokens)
    seen = work.steps * each.batches * _new_shapes(work, _scaled(each, 1 / each.batches))
    lasting["kernels"] = fit.kernel * min(seen, KERNELS)
    phases: dict[str, dict[str, float]] = {
        "loading": {
            "process": lasting["process"],
            "weights": 4.0 * (shape.parameters - shape.quantised) + NF4 * shape.quantised,
            "loading": 0.0 if shape.quantised else fit.loading * shape.files,
        },
        "training": {
            **lasting,
            "gradients": trained,
            "activations": _activations(work, batch, recompute, fit),
            **forward,
        },
        "update": {**lasting, "gradients": trained, "update": trained * fit.update},
        "validation": {**lasting, **forward},
    }
    worst = max(phases, key=lambda name: sum(phases[name].values()))
    return {**phases[worst], "peak": sum(phases[worst].values())}


def _new_shapes(work: Work, batch: Load) -> float:
    """Products in a micro-batch of a shape not seen before: packs differ in length, and attention groups do."""
    if work.device != "cpu" or work.element != 2:
        return 0.0
    alike = {(item.inputs, item.outputs, item.rank): item for item in work.shape.linears}
    products = sum(1 + item.backward + item.trained + 5 * (item.rank > 0) for item in alike.values())
    groups = min(batch.rows, 1 + (batch.pairs + batch.source_pairs) / 65536)
    return products + 6 * groups


def _activations(work: Work, batch: Load, recompute: bool, fit: Fit) -> float:
    """What forward leaves for backward: every number between two layers, or with recomputation one block's."""
    told = 0.0
    for side, tokens, pairs in (
        (work.shape.ids, batch.ids, batch.pairs + batch.cross_pairs),
        (work.shape.source, batch.source, batch.source_pairs),
    ):
        numbers = side.inputs + fit.kept * side.largest if recompute else fit.kept * side.kept
        blocks = max(side.kept / side.largest, 1.0) if side.largest else 1.0
        weights = fit.probabilities * side.heads * pairs / (blocks if recompute else 1.0)
        told += work.element * (numbers * tokens + weights)
    return told


def _logits(work: Work, batch: Load, fit: Fit) -> float:
    """One chunk of logits, and the gradients of a trained head's weight."""
    told = 0.0
    for item in work.shape.linears:
        if item.at == "supervised":
            rows = min(batch.supervised, max((TRAINED if item.trained else CHUNK) / item.outputs, 1.0))
            told += fit.logits * 4.0 * item.outputs * rows + batch.supervised * item.inputs * work.element
            told += 12.0 * item.inputs * item.outputs * item.trained  # summed in float32, one chunk's, the embedding's
    return told


def _scratch(work: Work, batch: Load, fit: Fit) -> float:
    widest = max((max(item.inputs, item.outputs) for item in work.shape.linears if item.at == "ids"), default=0)
    return fit.scratch * work.element * widest * max(batch.ids, batch.source)


def disk(work: Work) -> float:
    """Bytes of checkpoints (weights, optimizer, best) and of the artifact."""
    each = work.shape.trained * (8.0 + STATES[work.optimizer])
    return KEPT_CHECKPOINTS * each + 4.0 * work.shape.trained


# --- time ----------------------------------------------------------------------------------------------------


def seconds(work: Work, micro_tokens: int, recompute: bool, machine: Machine, fit: Fit = FIT) -> dict[str, float]:
    """Seconds of each part of a run, and {"step": one step, "all": everything}."""
    batch = mean_step(work, micro_tokens)
    step = _pass(work, batch, True, recompute, machine, fit)
    step += fit.step + fit.passes * 4.0 * work.shape.trained / machine.stream
    held = load_of(work.validation)
    held = replace(held, batches=max(1.0, (held.ids + held.source) / max(_room(work, micro_tokens), 1)))
    each = disk(work) / KEPT_CHECKPOINTS
    told = {
        "start": machine.elapsed + 2 * work.shape.files / machine.read,
        "training": step * work.steps,
        "validation": work.validations * _pass(work, held, False, False, machine, fit) if len(work.validation) else 0.0,
        "saving": work.saves * each * (1 / machine.write + 1 / machine.read),
    }
    return {**told, "step": step, "all": sum(told.values())}


def _pass(work: Work, load: Load, backward: bool, recompute: bool, machine: Machine, fit: Fit) -> float:
    """Seconds of a forward pass over a load, with its backward pass if asked."""
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
        reached = side.kept / side.widths if backward and side.widths else 0.0  # share of the blocks with a backward
        times = again + 2.0 * min(reached, 1.0)
        ahead = machine.rate(256, 256)[0]
        told += fit.attention * times * 4.0 * side.attended * pairs / ahead
        told += fit.stream * times * work.element * side.widths * tokens / machine.stream
    new = _new_shapes(work, _scaled(load, 1 / load.batches)) * load.batches * (1.0 if backward else 0.3)
    told += fit.compiling * new
    return told + fit.calls * load.batches * shape.calls * machine.call * (1.0 if backward else 0.4)


# --- the verdict ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A predicted number and its relative error bound (0: exact)."""

    value: float
    error: float = 0.0

    def to_json(self) -> dict[str, float]:
        return {"value": self.value, "low": self.value * (1 - self.error), "high": self.value * (1 + self.error)}


@dataclass(frozen=True)
class Remedy:
    """A change that makes a run fit: what to do, the overrides that do it, and the peak it then has."""

    text: str
    set: tuple[str, ...]
    rung: str = ""
    rows_cut: int = 0
    peak: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "set": list(self.set)}


@dataclass(frozen=True)
class Estimate:
    """A run's needs.  parts: bytes by part at the memory peak.  phases: seconds by part.  room: bytes there are."""

    parameters: Figure
    trained: Figure
    tokens: Figure
    steps: Figure
    seconds: Figure
    cpu: Figure
    gpu: Figure
    disk: Figure
    micro_tokens: int
    recompute: bool
    verdict: Verdict
    room: float
    parts: Mapping[str, float] = field(default_factory=dict)
    phases: Mapping[str, float] = field(default_factory=dict)
    remedies: tuple[Remedy, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values: a figure as value, low, high."""
        told: dict[str, Any] = {}
        for name, value in vars(self).items():
            told[name] = value.to_json() if isinstance(value, Figure) else value
        return told | {
            "parts": {name: round(value) for name, value in self.parts.items()},
            "phases": {name: round(value, 4) for name, value in self.phases.items()},
            "remedies": [item.to_json() for item in self.remedies],
        }


def choose(work: Work, machine: Machine, fit: Fit = FIT) -> tuple[int, bool]:
    """(micro_tokens, recompute): the smallest budget that is about as fast as any, smaller or recomputing if it must.

    What is fast depends on the shape alone, never on a stop-watch, so that two runs of a task are cut alike on every
    machine that has the memory.
    """
    large = [cut for cut in CUTS if cut >= LEAST]
    fast = next((cut for cut in large if _calls_share(work, cut) <= WORTH), large[-1])
    wanted = [work.micro_tokens] if work.micro_tokens else [cut for cut in reversed(CUTS) if cut <= fast]
    for recompute in (False, True) if work.recomputes else (False,):
        for cut in wanted:
            if _verdict(_peak(work, cut, recompute, machine, fit), _room_of(work, machine), fit) == "fits":
                return cut, recompute
    return wanted[-1], work.recomputes


def _calls_share(work: Work, cut: int) -> float:
    arithmetic = 6.0 * work.shape.multiplications * cut / NOMINAL_FLOPS
    return 8.0 * work.shape.calls * NOMINAL_CALL / max(arithmetic, 1e-12)


def _peak(work: Work, cut: int, recompute: bool, machine: Machine, fit: Fit) -> float:
    return memory(work, cut, recompute, machine, fit)["peak"]


def _room_of(work: Work, machine: Machine) -> float:
    return machine.memory if work.device == "cpu" else machine.gpu


def _verdict(peak: float, room: float, fit: Fit) -> Verdict:
    if peak > room:
        return "does not fit"
    return "fits" if peak * (1 + fit.memory) <= room else "tight"


def estimate(work: Work, machine: Machine, others: Mapping[str, Work] | None = None, fit: Fit = FIT) -> Estimate:
    """Everything at once.  others: the same task on rungs that need less, by name, as remedies to try."""
    cut, recompute = choose(work, machine, fit)
    parts, phases = memory(work, cut, recompute, machine, fit), seconds(work, cut, recompute, machine, fit)
    peak, room = parts["peak"], _room_of(work, machine)
    verdict = _verdict(peak, room, fit)
    if disk(work) > machine.disk:
        verdict = "does not fit"
    host = peak if work.device == "cpu" else machine.resident + fit.process + 2.0 * work.shape.files
    return Estimate(
        Figure(work.shape.parameters),
        Figure(work.shape.trained),
        Figure(work.tokens, 0.0 if work.exact else 0.01),
        Figure(work.steps),
        Figure(phases["all"], fit.seconds),
        Figure(host, fit.memory),
        Figure(peak if work.device != "cpu" else 0.0, fit.memory),
        Figure(disk(work), 0.05),
        cut,
        recompute,
        verdict,
        room,
        parts,
        phases,
        remedies(work, machine, others or {}, fit) if verdict != "fits" else (),
    )


def remedies(work: Work, machine: Machine, others: Mapping[str, Work], fit: Fit = FIT) -> tuple[Remedy, ...]:
    """Single changes that each make the run fit, the one that costs the result least first.

    A smaller micro-batch leaves the result alone; another rung changes what is trained; a shorter limit cuts rows.
    """
    found = []

    def fits(changed: Work) -> float | None:
        cut, recompute = choose(changed, machine, fit)
        peak = _peak(changed, cut, recompute, machine, fit)
        enough = _verdict(peak, _room_of(changed, machine), fit) == "fits" and disk(changed) <= machine.disk
        return peak if enough else None

    if work.micro_tokens and (peak := fits(replace(work, micro_tokens=0))) is not None:
        text = "leave train.micro_tokens to Burnish: smaller micro-batches, the same update"
        found.append(Remedy(text, ("train.micro_tokens=0",), peak=peak))
    for rung, other in others.items():
        if (peak := fits(other)) is not None:
            found.append(Remedy(f"train {rung} instead", (), rung, peak=peak))
    for limit in LIMITS:
        shorter = _limited(work, limit)
        cut = int((_sides(work.train) > limit).sum())
        if cut and len(shorter.train) and (peak := fits(shorter)) is not None:
            what = "splits" if work.splits else "leaves out"
            text = f"limit rows to {limit:,} tokens, which {what} {cut:,} of {len(work.train):,} training rows"
            override = (f"data.max_length={limit}", f"data.too_long={'split' if work.splits else 'drop'}")
            found.append(Remedy(text, override, rows_cut=cut, peak=peak))
            break
    return tuple(found)


def _sides(rows: Rows) -> np.ndarray:
    """What a limit is compared with: the longer side of each row."""
    return np.maximum(rows.ids, rows.source)


def _limited(work: Work, limit: int) -> Work:
    """The same work with no row over a limit: split where rows are, else left out."""
    if not work.splits:
        kept, held = _sides(work.train) <= limit, _sides(work.validation) <= limit
        return replace(work, train=work.train.where(kept), validation=work.validation.where(held))
    return replace(work, train=_split(work.train, limit), validation=_split(work.validation, limit))


def _split(rows: Rows, limit: int) -> Rows:
    pieces = np.maximum(np.ceil(_sides(rows) / limit), 1).astype(int)
    return Rows(*(np.repeat(np.ceil(part / pieces), pieces) for part in (rows.ids, rows.source, rows.supervised)))
