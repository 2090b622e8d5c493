"""How fast rows are judged, and that the scores are the peers': eight-shot classification of SST-2, multiple choice.

    BURNISH_SHARED=FOLDER python benchmarks/evaluate.py [--rows N] [--peer-rows N] [--dtype float32] [--json]

Speed: a Llama of 135M parameters with random weights (its scores are compared too); the programs work in turns in one
process, on the same weights and ids; the peers' model is transformers' own.  Burnish is timed from the rows on,
rendering and tokenising included; the peers are given finished ids.  "transformers" is one plain pass for
each row and label (one for each row where labels have one token), logits asked at the last places only; lm-eval is its
HFLM with the batch size that was fastest.  Peers answer every n-th row (`--peer-rows`); rates are rows a second of
the processor's time, all threads together.
The ratio is the smaller of two cases: labels of one token, the peers' best, and labels with their end, as rungs ask.
Scores: real small models, as many shots as their context holds, every label of every row, in float32, and again in
float64 to tell rounding from mistakes: how far each program is from its own model in float64.  Differences are of a
score where it is more than one nat (1e-5 of it is then a float32's last two digits), else in nats.

Multiple choice: ARC-easy and HellaSwag, every choice of a row scored behind its question.  All three are given texts,
and lm-eval makes ids of them itself, so that the requests are equal and not only the arithmetic; zero-shot on the real
models for the scores, and on the random Llama, also five-shot, for the speed.

FOLDER holds data/sentiment-sst2, data/bench-arc-easy, data/bench-hellaswag, models/tokenizers/gpt2 and
models/stories260k-llama.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

import torch

from burnish.models import base

HERE = Path(__file__).resolve().parent
sys.path[:] = [str(HERE.parent), *(path for path in sys.path if path and Path(path).resolve() != HERE)]
# this file's name is also a package's, which lm-eval imports: its own folder is no place to look for modules

from benchmarks.judging import choices, labels, programs  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--peer-rows", type=int, default=250, help="the peers' rows, evenly taken from those")
    parser.add_argument("--score-rows", type=int, default=200, help="rows whose scores are compared; choices' rows")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on a line of its own")
    told = parser.parse_args()
    if "BURNISH_SHARED" not in os.environ:
        print("Set BURNISH_SHARED to a folder that holds data/ and models/", file=sys.stderr)
        return 2
    import lm_eval  # type: ignore[import-untyped]
    import transformers

    shared = Path(os.environ["BURNISH_SHARED"])
    models = (base.find("burnish-tiny"), shared / "models/stories260k-llama")
    real = {folder.name: labels.scores(folder, shared, told.score_rows) for folder in models}
    for name, part in real.items():
        print(json.dumps({name: part}), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        fast = labels.speed(shared, told.rows, min(told.peer_rows, told.rows), told.dtype, Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        picked = choices.measured(
            shared, models, told.score_rows, max(told.peer_rows // 8, programs.ROUNDS), Path(folder)
        )
    least = {who: min(part["ratio"][who] for part in fast.values()) for who in ("transformers", "lm-eval")}
    report = {
        "rows_per_second_ratio": least,
        "max_score_difference": max(max(part["max_score_difference"].values()) for part in real.values()),
        "dtype": told.dtype,
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "lm_eval": lm_eval.__version__,
        },
        "speed": fast,
        "scores": real,
        "choices": picked,
    }
    print(json.dumps(report if told.json else {name: report[name] for name in list(report)[:2]}))
    ahead = all(value >= 5 for value in least.values())
    return 0 if ahead and max(report["max_score_difference"], picked["max_score_difference"]) <= 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())
