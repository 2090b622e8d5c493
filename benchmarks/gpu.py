"""Every check and benchmark that needs a GPU, in one command: what was expected, what was found.

    python benchmarks/gpu.py [--only NAME,NAME] [--budget SECONDS] [--tiny] [--out FILE] [--json]

The checks are the functions of gpu_checks/, the most valuable first; docs/gpu-checks.md says what to carry to a
borrowed machine.  They run one after the other in a process beside this one, which is begun anew when a check fails
hard or takes longer than it may, so that one cannot spoil the next.  --budget: seconds in all; what does not fit is not
begun.  --out: each result as it is made, one JSON object a line.  --json: the last line is one JSON object of all.
--tiny: small sizes, on the CPU too, where the figures mean nothing: to see that everything runs.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import gpu_checks


class Worker:
    """A process that runs checks by name and tells each result in one line."""

    def __init__(self, tiny: bool, own: dict[str, str]) -> None:
        command = [sys.executable, __file__, "--work", *(["--tiny"] if tiny else [])]
        self.own = own
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | own,
        )
        self.lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def run(self, name: str, limit: float) -> dict[str, Any]:
        """The result of a check, or {"failed": why}."""
        assert self.process.stdin is not None
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        until, said = time.monotonic() + limit, [""]
        while True:
            try:
                line = self.lines.get(timeout=max(until - time.monotonic(), 0.01))
            except queue.Empty:
                self.end()
                return {"failed": f"no result within {limit:.0f} s", "said": said[-20:]}
            if line is None:
                return {"failed": f"the process ended ({self.process.wait()}): {said[-1]}", "said": said[-20:]}
            if line.startswith("RESULT "):
                told: dict[str, Any] = json.loads(line[7:])
                return told
            said.append(line.rstrip())

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def work(tiny: bool) -> None:
    """Run the checks that come by name on standard input."""
    for line in sys.stdin:
        try:
            told = gpu_checks.run(line.strip(), tiny)
        except Exception as problem:
            told = {"failed": f"{type(problem).__name__}: {problem}"[:500], "said": gpu_checks.traced(problem)}
        print("RESULT " + json.dumps(told), flush=True)


def shown(row: dict[str, Any]) -> str:
    """A row of the table."""
    state = (
        "FAILED" if "failed" in row else "-" if "skipped" in row else {True: "ok", False: "NOT", None: "?"}[row["ok"]]
    )
    found = row.get("failed") or row.get("skipped") or row["found"]
    return f"{row['name']:<12} {state:<6} {row['seconds']:>5.0f} s  {found}\n{'':<28}expected: {row['expected']}"


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--only", default="")
    asked.add_argument("--budget", type=float, default=1e9)
    asked.add_argument("--out", default="")
    for name in ("tiny", "json", "work"):
        asked.add_argument(f"--{name}", action="store_true", help=argparse.SUPPRESS if name == "work" else None)
    told = asked.parse_args()
    if told.work:
        work(told.tiny)
        return
    names = told.only.split(",") if told.only else list(gpu_checks.CHECKS)
    if unknown := set(names) - set(gpu_checks.CHECKS):
        raise SystemExit(f"no check is called {', '.join(sorted(unknown))}; there are {', '.join(gpu_checks.CHECKS)}")
    began, rows, worker = time.monotonic(), [], None
    for name in names:
        check = gpu_checks.CHECKS[name]
        left = told.budget - (time.monotonic() - began)
        clock = time.monotonic()
        if left < min(check.limit, 20):
            row: dict[str, Any] = {"skipped": "the budget is spent"}
        else:
            if worker is None or not worker.alive or worker.own != check.environment:
                if worker:
                    worker.end()
                worker = Worker(told.tiny, check.environment)
            row = worker.run(name, min(check.limit, left))
        row = {"name": name, "expected": check.expected, "seconds": time.monotonic() - clock} | row
        rows.append(row)
        print(shown(row), flush=True)
        if told.out:
            with Path(told.out).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    if worker:
        worker.end()
    if told.json:
        print(json.dumps({"checks": rows, "seconds": time.monotonic() - began}))


if __name__ == "__main__":
    main()
