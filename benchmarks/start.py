"""How long a user waits: seconds from the command to the first optimizer step, and for `burnish --help`.

    python benchmarks/start.py [--starts 5] [--threads N] [--json]

Fresh processes of `burnish train examples/reviews/task.yaml --rung lora` on the embedded base; the first start of all
(rows encoded, kernels compiled, machine measured) is shown apart, the others find all that in BURNISH_HOME's cache.
The step is done when its event stands in events.jsonl; processor seconds are those of the process and its children.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
GOALS = {"first step": 5.0, "help": 0.2}  # seconds of the clock
Seconds = tuple[float, float]  # of the clock, of the processor


def command(*words: str) -> list[str]:
    """The installed `burnish` of this Python."""
    return [str(Path(sys.executable).with_name("burnish")), *words]


def first_step(home: Path, threads: int) -> Seconds:
    """One fresh training process, up to its first step; raises SystemExit with what it said if none comes."""
    shutil.rmtree(home / "runs", ignore_errors=True)
    environment = os.environ | {"BURNISH_HOME": str(home), "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    words = command("train", str(ROOT / "examples/reviews/task.yaml"), "--rung", "lora", "--set", "train.max_steps=1")
    with (home / "said.txt").open("w+") as said:
        began = time.perf_counter()
        child = subprocess.Popen(words, env=environment, stdout=said, stderr=said)
        process = psutil.Process(child.pid)
        while not stepped(home):
            if child.poll() is not None and not stepped(home):
                raise SystemExit(f"`{' '.join(words)}` failed:\n{(home / 'said.txt').read_text()}")
            time.sleep(0.005)
        waited, worked = time.perf_counter() - began, sum(process.cpu_times()[:4])
        child.wait()
    return waited, worked


def stepped(home: Path) -> bool:
    """Whether the run of a home has an event of a step."""
    return any('"kind": "step"' in path.read_text() for path in (home / "runs").rglob("events.jsonl"))


def helped() -> Seconds:
    """One fresh `burnish --help`."""
    began = time.perf_counter()
    child = subprocess.Popen(command("--help"), stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    waited = time.perf_counter() - began
    if status:
        raise subprocess.CalledProcessError(status, command("--help"))
    return waited, used.ru_utime + used.ru_stime


def table(name: str, found: list[Seconds]) -> dict[str, float]:
    """Print every start of a kind and return the medians."""
    clock, processor = (statistics.median(item[i] for item in found) for i in (0, 1))
    rounds = " ".join(f"{waited:.2f}" for waited, _ in found)
    print(f"{name}: {clock:.2f} s, of the processor {processor:.2f} s (starts {rounds}; asked {GOALS[name]} s)")
    return {"seconds": clock, "processor_seconds": processor, "asked": GOALS[name]}


def main() -> int:
    read = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    read.add_argument("--starts", type=int, default=5)
    read.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    read.add_argument("--json", action="store_true")
    told = read.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cold = first_step(Path(folder), told.threads)
        print(f"the first start of all: {cold[0]:.2f} s, of the processor {cold[1]:.2f} s", flush=True)
        steps = table("first step", [first_step(Path(folder), told.threads) for _ in range(told.starts)])
    helped()
    found = {"first step": steps, "help": table("help", [helped() for _ in range(told.starts)])}
    if told.json:
        print(json.dumps({"threads": told.threads, "first_start_of_all": cold[0], **found}))
    return int(any(item["seconds"] > item["asked"] for item in found.values()))


if __name__ == "__main__":
    sys.exit(main())
