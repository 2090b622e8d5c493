"""All that a user does on a GPU besides: 4 bits, answers, kills, memory, the command."""

from __future__ import annotations

import gc
import importlib.util
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

from gpu_checks.tools import SIZES, Factory, Found, Trainer, check, device, peak, rows, seconds, torch


@check(120)
def nf4(tiny: bool) -> Found:
    """the CPU's codes, and values to 1e-6; making a weight anew under 10 % of a QLoRA step (0.95 of LoRA's speed)"""
    from burnish.models import quantize

    weight = torch().randn(
        4096 if not tiny else 64, 4096 if not tiny else 128, generator=torch().Generator().manual_seed(0)
    )
    here, there = quantize.quantize(weight), quantize.quantize(weight.to(device()))
    codes = bool((here.codes == there.codes.cpu()).float().mean() > 0.9999)
    both = (
        quantize.dequantize(here),
        quantize.dequantize(
            here.__class__(
                *(part.to(device()) for part in (here.codes, here.scales, here.steps, here.mean)),
                here.shape,
                here.block,
            )
        ).cpu(),
    )
    values = bool((both[0] - both[1]).abs().max() <= 1e-6)
    once = seconds(lambda: quantize.dequantize(there, torch().bfloat16))
    rates = {}
    for rung in ("lora", "qlora"):
        trainer = Trainer("tiny" if tiny else "1b", rung, 256 if tiny else 8192, 1)
        rates[rung] = trainer.rate(1 if tiny else 5)
        del trainer
        gc.collect()
    ratio = rates["qlora"] / rates["lora"]
    said = f"codes {'equal' if codes else 'differ'}, values {'equal' if values else 'differ'}; "
    said += (
        f"{weight.numel() / once / 1e9:.0f} G weights/s; QLoRA at {ratio:.2f} of LoRA's {rates['lora']:,.0f} tokens/s"
    )
    return codes and values and ratio > 0.9, said, {"dequantize": once, "rates": rates}


@check(120)
def generation(tiny: bool) -> Found:
    """greedy text of a decoder and an encoder-decoder equals the CPU's, likelihoods to 1e-4"""
    import tiny as models

    from burnish.generate import engine

    apart, same = 0.0, []
    for kind in ("llama", "gpt2", "bart", "t5"):
        given = models.rows(kind, "answers", Factory())
        told = []
        for where in ("cpu", device()):
            model = models.model(kind, "language", Factory()).eval().to(where)
            odds = [value for value, _ in engine.likelihood(model, given, 256)]
            texts = engine.generate(model, [row.ids.tolist() for row in given], [0], 12, 256)
            told.append((odds, [item.ids for item in texts]))
        apart = max(apart, *(abs(a - b) / max(abs(a), 1) for a, b in zip(told[0][0], told[1][0], strict=True)))
        same.append(told[0][1] == told[1][1])
    return all(same) and apart < 1e-4, f"texts equal: {same}; likelihoods {apart:.1e} apart", {"apart": apart}


@check(150)
def resume(tiny: bool) -> Found:
    """stopped and gone on ends with the bits of a run that was not, for adamw, adafactor (and adamw-8bit)"""
    import tiny as models

    from burnish.train import loop

    told = {}
    for optimizer in ("adamw", "adafactor", "adamw-8bit"):
        if optimizer == "adamw-8bit" and importlib.util.find_spec("bitsandbytes") is None:
            continue
        ends = []
        for stop in (0, 2):
            with tempfile.TemporaryDirectory() as place:
                for last in (stop, 4) if stop else (4,):
                    own = {"precision": "bf16", "max_steps": 4, "save_every": 1, "optimizer": optimizer}
                    run = models.run("sft", "language", "answers", "llama", Factory(), Path(place), **own)
                    run.share(run.ranks)
                    for event in loop.fit(run):
                        if event.kind == "saved" and event.step == last and last < 4:
                            break
                ends.append({name: value.detach().cpu() for name, value in run.model.trainable().items()})
        told[optimizer] = all(torch().equal(value, ends[1][name]) for name, value in ends[0].items())
    return all(told.values()), f"equal bits: {told}", {"equal": told}


@check(120)
def memory(tiny: bool) -> Found:
    """a step that does not fit is done again, cut finer: at least one warning, the loss of small packs to 1e-3"""
    trainer = Trainer("tiny" if tiny else "1b", "lora", 256 if tiny else 4096, 2)
    trainer.step()
    wanted, warned = trainer.losses[0], []
    del trainer
    gc.collect()
    from burnish.train import loop
    from burnish.train import memory as out

    trainer = Trainer("tiny" if tiny else "1b", "lora", 256 if tiny else 1 << 20, 1)
    trainer.run.batches = replace(
        trainer.run.batches, rows=rows(512 if tiny else 8192, SIZES["tiny" if tiny else "1b"][-1])
    )
    trainer.run.batches = replace(trainer.run.batches, batch_size=len(trainer.run.batches.rows))
    if torch().cuda.is_available():
        torch().cuda.empty_cache()
        used, free = torch().cuda.memory_allocated(), torch().cuda.get_device_properties(0).total_memory
        torch().cuda.set_per_process_memory_fraction(min((used + 6e9) / free, 1.0))
    try:
        work = out.within(partial(loop.gradient, trainer.run, trainer.masters, 1), trainer.run.smaller)
        while True:
            warned.append(next(work).numbers["text"])
    except StopIteration as done:
        loss = done.value[1]
    finally:
        if torch().cuda.is_available():
            torch().cuda.set_per_process_memory_fraction(1.0)
    apart = abs(loss - wanted) / wanted
    return (
        bool(warned) and apart < 1e-3,
        f"{len(warned)} warnings, {apart:.1e} apart; {warned[-1:]}",
        {"warned": warned},
    )


@check(400)
def large(tiny: bool) -> Found:
    """8B, packs of 2,048, recomputed: LoRA under 20 GB, QLoRA under 8 GB (docs/gpu-checks.md)"""
    told = {}
    for rung in ("lora", "qlora"):
        trainer = Trainer("tiny" if tiny else "8b", rung, 256 if tiny else 2048, 1, recompute=True)
        gc.collect()
        if torch().cuda.is_available():
            torch().cuda.empty_cache()
            torch().cuda.reset_peak_memory_stats()
        told[rung] = {"tokens_per_second": trainer.rate(1 if tiny else 3), "peak": peak(), "losses": trainer.losses}
        del trainer
        gc.collect()
    said = ", ".join(
        f"{name} {row['peak'] / 1e9:.1f} GB at {row['tokens_per_second']:,.0f} tokens/s" for name, row in told.items()
    )
    return told["lora"]["peak"] < 20e9 and told["qlora"]["peak"] < 8e9, said, told


COMMAND = """
import json, sys
import burnish, torch
told = []
burnish.init(sys.argv[1], out="task.yaml", base=sys.argv[2])
burnish.train("task.yaml", rung="full", set=["train.max_steps=30"], say=lambda _, event: told.append(event.to_json()))
peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
print("TOLD " + json.dumps([peak, [row for row in told if row["kind"] in ("started", "finished")]], default=str))
"""


@check(240)
def command(tiny: bool) -> Found:
    """`burnish train` itself: it ends well and says its kernels; what it planned stands beside what it took"""
    import tiny as models

    words = ["amber", "brook", "cedar", "delta", "ember", "frost", "grove", "heron", "ivory", "juniper", "kestrel"]
    told = [" ".join(words[(i * 5 + j * j) % 11] for j in range(4 + i % 40)) for i in range(240)]
    with tempfile.TemporaryDirectory() as place:
        told = [f"{text} {i},{'good' if i % 2 else 'bad'}" for i, text in enumerate(told)]
        (Path(place) / "reviews.csv").write_text("\n".join(["review,stars", *told]))
        base = models.folder("llama", Factory())
        command = [sys.executable, "-c", COMMAND, str(Path(place) / "reviews.csv"), str(base)]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=200, check=False)
        lines = [line for line in done.stdout.splitlines() if line.startswith("TOLD ")]
        if not lines:
            raise RuntimeError(done.stderr[-1500:])
    top, (first, *_, last) = json.loads(lines[0][5:])
    kernels, needs = first["kernels"], first["needs"]
    said = f"{last.get('reason')} in {last['seconds']:.1f} s; {kernels}; most on the device {top / 1e6:.0f} MB"
    return bool(kernels) and last["kind"] == "finished", said, {"needs": needs, "peak": top, "kernels": kernels}
