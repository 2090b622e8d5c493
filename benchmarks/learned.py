"""What an engine learns: a small model trained to the end of two epochs on tales, judged on tales held out.

In: nothing; the embedded base and examples/tales.  Out: cases of benchmarks/train.py, which runs them
(`python benchmarks/train.py --cases learned-lora,learned-full`), a seed a round, and what three seeds say of each peer.
Every engine has the same rows of 128 ids, eight a step, and the same rates; TRL and the Trainer have them in the same
order, too.  All are judged by plain float32 arithmetic.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
from pathlib import Path
from typing import Any

LENGTH, ROWS, EPOCHS = 128, 8, 2  # ids a row; rows a step
RATES = {"lora": 5e-3, "full": 5e-4}  # peak learning rates
WITHIN = (3.0, 0.01)  # a difference within 3 spreads between seeds and 0.01 nats is noise


def prepare(folder: Path) -> dict[str, Any]:
    """The base, rows and held rows in files of a folder, and what of a Job follows from them."""
    import burnish
    from burnish.tokens.tokenizer import Tokenizer

    base = folder / "embedded"
    if not base.exists():
        shutil.copytree(Path(burnish.__file__).parent / "bundled" / "burnish-tiny", base)
    tokenizer = Tokenizer.load(base)
    made = []
    for tale in sorted((Path(__file__).parent.parent / "examples" / "tales").glob("*.txt")):
        ids = tokenizer.backend.encode(tale.read_text(encoding="utf-8")).ids
        made.append([[ids[at : at + LENGTH], 1, 0] for at in range(0, len(ids) - LENGTH + 1, LENGTH)])
    cut = len(made) * 3 // 4
    train, held = ([row for part in parts for row in part] for parts in (made[:cut], made[cut:]))
    train *= EPOCHS  # in one pass, so that every engine can be given one order
    random.Random(0).shuffle(train)  # LLaMA Factory packs neighbours, and a step of one tale's pieces teaches less
    del train[len(train) // ROWS * ROWS :]  # a short step at the end would not be a pack
    for name, rows in (("learned", train), ("held", held)):
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return {
        "model": str(base),
        "rows": str(folder / "learned.json"),
        "held": str(folder / "held.json"),
        "pack": LENGTH * ROWS,
        "packs": 1,
        "batch": ROWS,
        "steps": len(train) // ROWS,
        "pad": json.loads((base / "config.json").read_text())["pad_token_id"],
    }


def difference(losses: dict[str, list[float]], peer: str) -> dict[str, float]:
    """Mean final loss of ours less the peer's, the spread between seeds, and 1 where the difference is noise.

    >>> difference({"ours": [1.0, 1.2], "p": [1.1, 1.3]}, "p")["difference"]
    -0.1
    """
    mine, other = losses["ours"], losses[peer]
    spread = statistics.mean(statistics.stdev(found) if len(found) > 1 else 0.0 for found in (mine, other))
    apart = round(statistics.mean(mine) - statistics.mean(other), 6)
    return {"difference": apart, "spread": spread, "within": float(abs(apart) <= WITHIN[0] * spread + WITHIN[1])}


def table(rounds: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Print the curves beside each other and each seed's end; returns the difference to each peer."""
    print("  held-out nats a token after each eighth of the run, mean of the seeds; then each seed's end")
    losses = {}
    for engine, found in rounds.items():
        curves = [row["curve"] for row in found if "failed" not in row]
        if curves:
            losses[engine] = [curve[-1] for curve in curves]
            middle = " ".join(f"{statistics.mean(at):.3f}" for at in zip(*curves, strict=True))
            print(f"  {engine:13} {middle}   ends {' '.join(f'{loss:.4f}' for loss in losses[engine])}")
    told = {peer: difference(losses, peer) for peer in losses if peer != "ours" and "ours" in losses}
    for peer, found in told.items():
        verdict = "within noise" if found["within"] else "NOT within noise"
        print(f"  ours - {peer}: {found['difference']:+.4f}, between seeds {found['spread']:.4f}: {verdict}")
    return told
