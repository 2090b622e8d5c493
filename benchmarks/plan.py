"""What `burnish plan` says before a run against what the run then takes: memory and seconds a step.

    python benchmarks/plan.py [PATTERN ...] [--cases fitted|held-out] [--again] [--busy] [--fit] [--json] [--work DIR]

Each case (model x method x rung x length of rows) trains a few steps in a process of its own on random weights made
here; its first line is compared with its peak resident memory and its mean step.  PATTERN: the cases whose names hold
one.  The fitted cases are those that the constants of train/costs.py were fitted to; the held-out ones were not, and
say how good a plan is on what it has not seen.
--busy takes seconds of the processor, for the rates of the machine as for the steps, instead of the clock's: with
OMP_NUM_THREADS=1 they are nearly those of a quiet machine.
What has been measured is kept in DIR (default BURNISH_HOME/plan), so that a stopped benchmark goes on; --again
measures anew, rates of the machine included.  --fit prints the constants of train/costs.py that fit the measured
best, and what they would give; nothing is run.  The last line of --json is one object.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import shutil
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from foreseen import FITTED, HELD_OUT, LENGTHS, prepare

STEPS, WARM = 6, 2  # steps at least, and steps not timed
ENOUGH = (
    1200  # median tokens of a row times steps: some 30 micro-batches, after which a heap has what gaps it comes to have
)
WITHIN = {"memory": 0.1, "seconds": 0.2}


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("patterns", nargs="*")
    for flag in ("again", "busy", "fit", "json"):
        words.add_argument(f"--{flag}", action="store_true")
    words.add_argument("--cases", choices=("fitted", "held-out"))
    words.add_argument("--work", type=Path, default=Path(os.environ.get("BURNISH_HOME", "burnish_home")) / "plan")
    asked = words.parse_args()
    groups = {"fitted": FITTED, "held-out": HELD_OUT}
    chosen = [case for name in groups if asked.cases in (None, name) for case in groups[name]]
    chosen = [case for case in chosen if not asked.patterns or any(word in case for word in asked.patterns)]
    results = asked.work / "results"
    if not asked.fit:
        results.mkdir(parents=True, exist_ok=True)
        for case in chosen:
            if asked.again or not _file(results, case).exists():
                measure(case, asked.work, results, asked.busy)
    found = {case: json.loads(_file(results, case).read_text()) for case in chosen if _file(results, case).exists()}
    if asked.fit:
        return fit([found[case] for case in FITTED if case in found])
    return table({name: [found[case] for case in groups[name] if case in found] for name in groups}, asked.json)


def _file(results: Path, case: str) -> Path:
    return results / f"{case.replace(' ', '-')}.json"


# --- one case, in a process of its own -------------------------------------------------------------------------


def peak_memory() -> int:
    """Most bytes this process has had in memory; Linux's getrusage would count what its parent had before it began."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def measure(case: str, work: Path, results: Path, busy: bool) -> None:
    """Run a case in a process that has imported everything and done nothing (fork), and keep what it took."""
    import burnish.train.tune  # noqa: F401 (once for all cases)

    fresh = multiprocessing.get_context("fork")
    for step in (lambda: prepare(case, work), lambda: one(case, work, _file(results, case), busy)):
        process = fresh.Process(target=step)
        process.start()
        process.join()
        if process.exitcode:
            print(f"{case}: failed", file=sys.stderr)
            return
    print(_row(json.loads(_file(results, case).read_text())), flush=True)


def one(case: str, work: Path, into: Path, busy: bool) -> None:
    """Run a case as a user would and write down what was said and what it took."""
    model, method, rung, length, *recomputed = case.split()
    import yaml

    import burnish
    from burnish.records import Event
    from burnish.train import calibrate, estimate, rehearse

    rehearse.WORTH = 0.0  # these steps stand for a run of many
    os.environ["BURNISH_HOME"] = str(work / "home")
    for old in (work / "home" / "cache").glob("*.json"):
        old.unlink()  # rates and rehearsals are those of this hour
    if busy:
        calibrate.clock = time.process_time
    seen: list[Any] = []
    events: list[tuple[Event, float]] = []
    told, choose = estimate.estimate, estimate.choose

    def noting(*given: Any) -> Any:
        seen.append(given)
        return told(*given)

    estimate.estimate = noting
    if recomputed:
        estimate.choose = lambda *given: (choose(*given)[0], True)
    goal = {"classify": "classify", "regress": "regress", "sft": "answer", "selfsupervised": "write"}[method]
    files = [str((work / f"{method}-{length}.jsonl").resolve())]
    steps = max(STEPS, ENOUGH // (LENGTHS.get(length) or int(length)))
    data = {"files": files, "validation": 0.2, "test": 0.05, "near_duplicates": 0, "on_problem": "drop"}
    task = {"goal": {"task": goal}, "data": data, "base": {"name": str((work / model).resolve())}}
    task |= {"method": {"kind": method}, "train": {"max_steps": steps, "epochs": 0, "evaluate_every": steps // 2}}
    path = work / "home" / f"{case.replace(' ', '-')}.yaml"
    shutil.rmtree(work / "home" / "runs", ignore_errors=True)  # checkpoints of all cases are 20 GB
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(task))
    burnish.train(str(path), rung=rung, again=True, say=lambda _, event: events.append((event, time.process_time())))
    peak = peak_memory()
    needs = next(event.numbers["needs"] for event, _ in events if event.kind == "started")
    timed = [
        (event.numbers["tokens"], event.numbers["tokens"] / event.numbers["tokens_per_second"], clock - before)
        for (last, before), (event, clock) in pairwise(events)
        if last.kind == event.kind == "step" and event.step > WARM
    ]
    tokens, took, worked = (sum(part) for part in zip(*timed, strict=True))
    run, machine = seen[-1][:2]
    each = float(run.train.ids.sum()) * min(run.batch_size, len(run.train)) / len(run.train)
    result = {
        "case": case,
        "peak": peak,
        "step": (worked if busy else took) / tokens * each,
        "needs": needs,
        "work": {name: _plain(value) for name, value in vars(run).items()},
        "machine": {**asdict(machine), "products": [[*key, *rate] for key, rate in machine.products.items()]},
        "load": os.getloadavg()[0],
    }
    into.write_text(json.dumps(result) + "\n")


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


# --- all cases together ----------------------------------------------------------------------------------------


def again(result: Mapping[str, Any], constants: Any) -> tuple[float, float]:
    """(bytes, seconds a step) that given constants predict for a measured case."""
    from burnish.train import costs
    from burnish.train.terms import Linear, Machine, Rows, Shape, Side, Work

    told = dict(result["work"])
    shape = dict(told["shape"])
    shape |= {side: Side(**shape[side]) for side in ("ids", "source")}
    shape["linears"] = tuple(Linear(**item) for item in shape["linears"])
    told["shape"] = Shape(**shape)
    for name in ("train", "validation"):
        told[name] = Rows(**{key: np.array(value, np.int64) for key, value in told[name].items()})
    run = Work(**told)
    machine = Machine(
        **{**result["machine"], "products": {(a, b): (c, d, e) for a, b, c, d, e in result["machine"]["products"]}}
    )
    cut = result["needs"]["micro_tokens"], result["needs"]["recompute"]
    peak = costs.memory(run, *cut, machine, constants)["peak"]
    return peak, costs.seconds(run, *cut, machine, constants)["step"]


def _row(result: Mapping[str, Any]) -> str:
    from burnish.train.costs import FIT

    peak, step = again(result, FIT)
    parts = [f"{result['case']:38} {result['needs']['micro_tokens']:6} "]
    parts.append(f"{peak / 1e6:8.0f} {result['peak'] / 1e6:8.0f} {peak / result['peak'] - 1:+7.0%}   ")
    parts.append(f"{step:8.3f} {result['step']:8.3f} {step / result['step'] - 1:+7.0%}")
    return "".join(parts)


def _shares(found: list[dict[str, Any]], constants: Any) -> dict[str, float]:
    """Which share of the cases is predicted within the bounds."""
    close = {"memory": 0, "seconds": 0}
    for result in found:
        peak, step = again(result, constants)
        close["memory"] += abs(peak / result["peak"] - 1) <= WITHIN["memory"]
        close["seconds"] += abs(step / result["step"] - 1) <= WITHIN["seconds"]
    return {name: count / max(len(found), 1) for name, count in close.items()}


def table(groups: Mapping[str, list[dict[str, Any]]], as_json: bool) -> int:
    """Said and taken, case by case; the shares of the two groups are never mixed."""
    from burnish.train.costs import FIT

    print(f"{'case':38} {'micro':>6} {'MB said':>8} {'MB took':>8} {'off':>7}   {'s said':>8} {'s took':>8} {'off':>7}")
    told: dict[str, Any] = {}
    for name, found in groups.items():
        for result in found:
            print(_row(result))
        if found:
            shares, off = _shares(found, FIT), _errors(found, FIT)
            words = f"memory within 10 % in {shares['memory']:.0%}, seconds within 20 % in {shares['seconds']:.0%}"
            words += f"; 19 of 20 within {off['memory']:.0%} and {off['seconds']:.0%}"
            print(f"{len(found)} {name} cases: {words}")
            told[name] = {"cases": [result["case"] for result in found], "within": shares, "error": off}
    if as_json:
        print(json.dumps(told))
    return 0


def _errors(found: list[dict[str, Any]], constants: Any) -> dict[str, float]:
    """The relative error, of what was said, that 95 % of the cases stay within: what a plan's bounds should be."""
    said = np.array([again(result, constants) for result in found])
    took = np.array([(result["peak"], result["step"]) for result in found])
    off = np.quantile(np.abs(took / said - 1), 0.95, axis=0, method="higher")
    return {"memory": float(off[0]), "seconds": float(off[1])}


MEMORY = ("kept", "scratch", "logits", "update", "process", "kernel")
TIME = ("arithmetic", "stream", "attention", "words", "calls", "passes", "step", "compiling")


def fit(found: list[dict[str, Any]]) -> int:
    """Print the constants that predict the measured cases best; each is drawn a little towards what it is now.

    Those of time without what a rehearsal says: what arithmetic alone is to know.
    """
    from scipy.optimize import least_squares

    from burnish.train.costs import FIT

    chosen = FIT
    found = [{**result, "machine": {**result["machine"], "pace": 1.0, "updates": 1.0}} for result in found]
    for names, which, measured in ((MEMORY, 0, "peak"), (TIME, 1, "step")):
        start = np.log([max(getattr(chosen, name), 1e-3) for name in names])

        def constants(values: np.ndarray, names: Any = names, known: Any = chosen) -> Any:
            return replace(known, **dict(zip(names, np.exp(values).tolist(), strict=True)))

        def apart(values: np.ndarray, which: int = which, key: str = measured, start: Any = start) -> np.ndarray:
            off = [math.log(again(result, constants(values))[which] / result[key]) for result in found]
            return np.array([*off, *(0.03 * (values - start))])

        chosen = constants(least_squares(apart, start, loss="soft_l1", f_scale=0.05).x)
    for name in (*MEMORY, *TIME):
        print(f"    {name}: float = {getattr(chosen, name):.3g}")
    print(f"now {_shares(found, FIT)}, fitted {_shares(found, chosen)}")
    for which, key in enumerate(("peak", "step")):
        off = statistics.median(abs(math.log(again(result, chosen)[which] / result[key])) for result in found)
        print(f"median error of {key}: {off:.1%}")
    print(f"19 of 20 within {_errors(found, chosen)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
