"""LoRA's own autograd function against autograd's: one layer forward and backward, interleaved in one process.

    python benchmarks/lora.py

Prints the median ratio of CPU seconds and the bytes kept for backward.  1,024 rows, 576 -> 1536, rank 16, bf16, one
thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from burnish.adapters._lora import LoraLinear

ROWS, INPUTS, OUTPUTS, RANK = 1024, 576, 1536, 16
ROUNDS, WARM = 60, 5


def seconds(run: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor) -> float:
    """CPU seconds of one forward and backward, which the load of a shared machine disturbs least."""
    began = time.process_time()
    run(x).backward(gradient)
    return time.process_time() - began


def kept(run: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Bytes that wait for backward, shared storage once, the frozen weight counted where it is kept."""
    found: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        out = run(x)
    del out
    return sum(found.values())


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    base = nn.Linear(INPUTS, OUTPUTS, bias=False).bfloat16().requires_grad_(False)
    ours, dora = LoraLinear(base, RANK, 32.0), LoraLinear(base, RANK, 32.0, use_dora=True)
    nn.init.normal_(ours.lora_B)

    def plain(x: Tensor) -> Tensor:
        inner = nn.functional.linear(x, ours.lora_A.bfloat16())
        return base(x) + nn.functional.linear(inner, ours.lora_B.bfloat16()) * ours.scale

    x = torch.randn(1, ROWS, INPUTS).bfloat16().requires_grad_()
    gradient = torch.randn(1, ROWS, OUTPUTS).bfloat16()
    runs: dict[str, Callable[[Tensor], Tensor]] = {"plain": plain, "ours": ours, "dora": dora, "base alone": base}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            taken[name].append(seconds(run, x, gradient))
    for name, run in runs.items():
        ratio = statistics.median(a / b for a, b in zip(taken[name][WARM:], taken["ours"][WARM:], strict=True))
        print(
            f"{name}: {ratio:.2f} of ours (least {min(taken[name]) / min(taken['ours']):.2f}), keeps {kept(run, x):,} B"
        )


if __name__ == "__main__":
    main()
