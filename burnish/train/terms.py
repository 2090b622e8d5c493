"""What an estimate is made from: a model's shape, its rows, how a run cuts them, and a machine's measured rates.

In: numbers that `describe.py` reads from a model and `calibrate.py` measures.  Out: a Work and a Machine; no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

At = Literal["ids", "source", "supervised", "rows"]
NOMINAL_FLOPS, NOMINAL_CALL = 1e11, 2e-5  # of no machine in particular: the choice must not hang on a stop-watch


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
    reached: share of the blocks that the backward pass goes through.  hidden: heads whose attention has dropout.
    drawn: numbers of a token that dropout draws at random.
    """

    kept: float = 0.0
    largest: float = 0.0
    inputs: float = 0.0
    widths: float = 0.0
    heads: int = 0
    attended: int = 0
    reached: float = 1.0
    hidden: int = 0
    drawn: float = 0.0


@dataclass(frozen=True)
class Shape:
    """A model with its adapter, as far as cost goes.

    parameters, trained, quantised: numbers, shared ones once; quantised ones lie in 4 bits.  files: bytes on disk.
    whole: all logits are held at once, in float32 (the output layer is not the last step).
    calls: layers called for a micro-batch.  idle: those of them that no backward pass reaches.
    """

    parameters: int
    trained: int
    quantised: int
    files: int
    linears: tuple[Linear, ...]
    ids: Side
    source: Side = Side()
    calls: int = 0
    idle: int = 0
    whole: bool = False

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
    ranks: processes over which weights, gradients and optimizer state are cut (1: each holds all).
    refers: every row is first answered by the model as it was (methods that learn from pairs).
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
    ranks: int = 1
    refers: bool = False


@dataclass(frozen=True)
class Machine:
    """A machine's rates and room, as `calibrate` measured them.

    memory: bytes this process may come to hold.  resident: bytes it holds already.
    gpu: bytes of device memory, 0 without one.  disk: free bytes.
    products: floating-point operations a second of (forward, input gradient, weight gradient) by (inputs, outputs).
    stream: bytes a second through an element-wise operation.
    draw: random numbers a second.  call: seconds of a tiny one, forward and backward.
    write, read: bytes a second to and from disk.
    pace, updates: seconds of passes and of optimizer steps over what the arithmetic says, as rehearse.py measured them.
    """

    memory: float
    resident: float
    disk: float
    products: Mapping[tuple[int, int], tuple[float, float, float]]
    stream: float = 1e10
    draw: float = 2e8
    call: float = 2e-5
    write: float = 2e8
    read: float = 1e9
    gpu: float = 0.0
    pace: float = 1.0
    updates: float = 1.0

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


def scaled(load: Load, by: float) -> Load:
    return Load(**{name: value * by for name, value in asdict(load).items()})
