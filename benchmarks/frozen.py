"""What keeping the output of frozen layers saves: the last two layers tuned on SST-2, with and without, in turn.

    BURNISH_SHARED=FOLDER python benchmarks/frozen.py [--rows 2000] [--epochs 3 10] [--json]

FOLDER holds data/ and models/.  Each pair of runs shares a process, rows and seed: first with nothing on disk yet, then
without.  Seconds are those of the whole tuning, the first pass and its file included, by the clock and (as a ratio) of
the processor.  Exit code 1 when a final validation loss differs by more than 1e-5 of itself.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

import burnish
from burnish.records import Event

BASES = ("burnish-tiny", "models/stories3m-bitnet")


def one(path: Path, name: str, keep: bool) -> dict[str, Any]:
    """Tune once; what was said of it."""
    os.environ["BURNISH_STATES"] = "" if keep else "off"
    said: list[tuple[Event, float, float]] = []
    burnish.train(
        str(path),
        rung="partial",
        again=True,
        say=lambda _, event: said.append((event, time.monotonic(), time.process_time())),
    )
    begun = next(item for item in said if item[0].kind == "started")
    done = next(item for item in said if item[0].kind == "finished")
    losses = [event.numbers["valid_loss"] for event, _, _ in said if event.kind == "validated"]
    return {
        "seconds": done[1] - begun[1],
        "processor": done[2] - begun[2],
        "loss": losses[-1],
        "states": begun[0].numbers["needs"]["states"],
    }


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--rows", type=int, default=2000)
    words.add_argument("--epochs", type=int, nargs="+", default=[3, 10])
    words.add_argument("--json", action="store_true")
    asked = words.parse_args()
    shared = os.environ.get("BURNISH_SHARED")
    if not shared:
        print("set BURNISH_SHARED to the folder that holds data/ and models/", file=sys.stderr)
        return 2
    heads = "base                     epochs   s with  without  ratio  processor  the plan saves  last validation loss"
    print(heads)
    found = []
    for epochs in asked.epochs:
        for name in BASES:
            with tempfile.TemporaryDirectory() as home:
                os.environ["BURNISH_HOME"] = home
                task = {
                    "goal": {"task": "classify"},
                    "data": {
                        "files": [f"{shared}/data/sentiment-sst2/train.txt"],
                        "limit": asked.rows,
                        "too_long": "cut-prompt",
                    },
                    "base": f"{shared}/{name}" if "/" in name else name,
                    "train": {"epochs": epochs},
                }
                path = Path(home) / "frozen.yaml"
                path.write_text(yaml.safe_dump(task))
                kept, plain = one(path, name, True), one(path, name, False)
            found.append({"base": name, "epochs": epochs, "kept": kept, "plain": plain})
            ratio, busy = (plain[key] / kept[key] for key in ("seconds", "processor"))
            told = f"{kept['states'].get('seconds', 0):.0f} s {'+'.join(kept['states'].get('splits', ()))}"
            losses = f"{kept['loss']:.6f} {plain['loss']:.6f}"
            print(
                f"{name.rpartition('/')[2]:24}{epochs:7}{kept['seconds']:9.1f}{plain['seconds']:9.1f}"
                f"{ratio:7.2f}{busy:11.2f}  {told}  {losses}",
                flush=True,
            )
    apart = max(abs(one["kept"]["loss"] / one["plain"]["loss"] - 1) for one in found)
    if asked.json:
        print(json.dumps({"runs": found, "loss_difference": apart}))
    return int(apart > 1e-5)


if __name__ == "__main__":
    sys.exit(main())
