"""What every engine is given, and how each is measured: the same rows, one count of tokens, one clock, one judge.

In: a Job (JSON, from benchmarks/train.py).  Out: the numbers of one run.  A token counts where its id is not the
padding's, whatever the engine's own counter says; a step ends where the optimizer has stepped.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = tuple[list[int], int, int]  # ids, how many of them are the prompt, class


class Enough(Exception):
    """The last step is done; raised through an engine, which need not save or evaluate."""


@dataclass(frozen=True)
class Job:
    """One run of one engine.

    module: the file of this folder that runs it, with the settings `how`.  model: folder of a transformers model.
    rows, held: JSON files of Rows; held is judged during the run where it is given.  pack, packs: tokens a pack, packs
    an optimizer step; batch: rows an optimizer step where an engine does not pack.  steps: optimizer steps in all; the
    first is not counted.  recompute: activations are made again in the backward pass.  began: time.time() at the start.
    """

    module: str
    model: str
    rows: str
    adapter: str
    pack: int
    packs: int
    batch: int
    steps: int
    rate: float
    began: float
    how: dict[str, Any] = field(default_factory=dict)
    classify: bool = False
    recompute: bool = False
    seed: int = 0
    pad: int = 0
    held: str = ""

    def read(self) -> list[Row]:
        """The rows to train on."""
        return [(ids, prompt, label) for ids, prompt, label in json.loads(Path(self.rows).read_text())]

    def ordered(self) -> list[Row]:
        """The rows of all steps, one after the other, as Burnish draws them from the seed."""
        from burnish.tokens.batch import Batches

        rows = self.read()
        blank: list[Any] = [None] * len(rows)  # the order hangs on their number alone
        each = Batches(blank, self.batch, 0, self.seed, self.pad)
        return [rows[i] for step in range(1, self.steps + 1) for _, i in each.drawn(step)]

    def labels(self, row: Row) -> list[int]:
        """What a transformers model learns of a row: -100 where there is no loss."""
        return [-100] * row[1] + row[0][row[1] :]

    @property
    def lora(self) -> bool:
        """Rank 16, alpha 32, every linear layer, against all weights."""
        return self.adapter == "lora"

    @property
    def layout(self) -> str:
        """How rows stand in a micro-batch, for a table."""
        if self.how["packed"]:
            return f"packs of {self.pack}"
        return f"{self.how['rows']} rows at once, padded" + (", of like length" if self.how.get("alike") else "")

    def accumulate(self, rows: int) -> int:
        """How many micro-batches of so many rows make a step."""
        return max(round(self.batch / rows), 1)


@dataclass
class Clock:
    """Seconds, work and real tokens after every optimizer step; held-out loss at each eighth of a run that is judged.

    judge: set by the engine, nats a token (or row) on held rows of the model as it is.
    data: fingerprint of the rows as the engine holds them.  facts: attention, packing, dtype, recomputation.
    """

    job: Job
    judge: Callable[[list[Row]], float] | None = None
    data: list[int] = field(default_factory=list)
    facts: str = ""
    tokens: int = 0
    marks: list[tuple[float, float, int]] = field(default_factory=list)
    curve: list[float] = field(default_factory=list)
    first: float = 0.0

    def read(self, ids: Any) -> None:
        """Count what a model is about to read: a tensor of ids."""
        self.tokens += int((ids != self.job.pad).sum())

    def watch(self) -> None:
        """Every step of every torch optimizer of this process is one of the job's."""
        from torch.optim.optimizer import register_optimizer_step_post_hook

        register_optimizer_step_post_hook(lambda *_: self.step())

    def step(self) -> None:
        """A step is done; raises Enough after the last."""
        self.marks.append((time.perf_counter(), time.process_time(), self.tokens))
        number = len(self.marks)
        self.first = self.first or time.time() - self.job.began
        if self.job.held and self.judge and (number * 8 // self.job.steps > (number - 1) * 8 // self.job.steps):
            held = [(ids, prompt, label) for ids, prompt, label in json.loads(Path(self.job.held).read_text())]
            self.curve.append(self.judge(held))
        if number == self.job.steps:
            raise Enough

    def told(self) -> dict[str, Any]:
        """The run's numbers: tokens in seconds (and seconds of the processor) after the first step, and the rest."""
        (began, worked, read), (ended, work, tokens) = self.marks[0], self.marks[-1]
        numbers = {"tokens": tokens - read, "seconds": ended - began, "worked": work - worked, "first": self.first}
        return numbers | {"data": self.data, "facts": self.facts, "curve": self.curve}


def run(job: Job) -> dict[str, Any]:
    """Train it here; the peak is read before anything else is done."""
    clock = Clock(job)
    try:
        importlib.import_module(f"engines.{job.module}").train(job, clock)
    except Enough:
        pass
    memory = peak_memory()
    gemm = calibrate()
    return clock.told() | {"memory": memory, "gemm": gemm, "cpu": time.process_time()}


def calibrate() -> float:
    """FLOP a second of a bfloat16 product of 1,024 rows, 576 to 1,536, median of 50: this machine at this moment."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    left, right = (torch.randn(shape, device=device).bfloat16() for shape in ((1024, 576), (576, 1536)))
    taken = []
    for _ in range(60):
        began = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return 2 * 1024 * 576 * 1536 / sorted(taken[10:])[25]


def peak_memory() -> int:
    """Most bytes this process has had in memory; Linux's getrusage would count what its parent had before it began."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def fingerprint(rows: Sequence[Sequence[int]], pad: int = 0) -> list[int]:
    """Real tokens and the sum of their ids: the same for the same rows in any order and any packs."""
    real = [token for row in rows for token in row if token != pad]
    return [len(real), sum(real)]


def packs(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of rows in packs of at most `budget` tokens, longest first into the first pack with room.

    >>> packs([3, 5, 2], 5)
    [[1], [0, 2]]
    """
    made: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = next((at for at, left in enumerate(room) if left >= lengths[i]), len(room))
        if at == len(room):
            made.append([])
            room.append(budget)
        made[at].append(i)
        room[at] -= lengths[i]
    return made


def held_loss(logits: Callable[[Any], Any], held: list[Row]) -> float:
    """Nats a token of held rows of one length, float32; logits: (B, T) ids to (B, T, V)."""
    import torch

    total, count = 0.0, 0
    with torch.no_grad():
        for part in torch.tensor([ids for ids, _, _ in held]).split(16):
            scores = logits(part)[:, :-1].float()
            targets = part[:, 1:]
            total += torch.nn.functional.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="sum").item()
            count += targets.numel()
    return total / count


def kinds_of(parameters: Any) -> str:
    """Which numbers are trained in which type, for a table."""
    told: dict[bool, set[str]] = {True: set(), False: set()}
    for item in parameters:
        told[bool(item.requires_grad)].add(str(item.dtype).removeprefix("torch."))
    kept = f"frozen {'/'.join(sorted(told[False]))}, " if told[False] else ""
    return f"{kept}trained {'/'.join(sorted(told[True]))}"
