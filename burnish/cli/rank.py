"""One of several processes that train together: does `burnish.train`, and tells its watcher in JSON lines on stdout.

In: the verb's arguments as JSON, torchrun's variables, and a stdin that says `stop`, or ends when the watcher does.
Out: events of the main rank, an error of any; the exit code is the command line's.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import traceback
from typing import Any

from burnish import store
from burnish.cli.main import as_error
from burnish.errors import BurnishError, TrainError
from burnish.records import Event

PEER = ("closed by peer", "Connection reset", "Broken pipe", "gloo", "NCCL", "ncclRemoteError", "TCPStore")


def listen() -> None:
    """Stop when told to; end when nobody is left to tell."""
    for word in sys.stdin:
        if word.strip() == "stop":
            store.request_stop()
    os._exit(3)


def main() -> int:
    """Train; returns the exit code."""
    with os.fdopen(os.dup(1), "w", buffering=1) as out:
        os.dup2(2, 1)  # what libraries print goes to the log

        def tell(value: dict[str, Any]) -> None:
            out.write(json.dumps(value) + "\n")

        for number in (signal.SIGINT, signal.SIGTERM):  # a scheduler may ask every process
            signal.signal(number, lambda number, frame: store.request_stop())
        threading.Thread(target=listen, daemon=True).start()
        main_rank = os.environ["RANK"] == "0"

        def say(rung: str, event: Event) -> None:
            if main_rank:
                tell({"rung": rung, **event.to_json()})

        try:
            from burnish import workflow

            workflow.train(**json.loads(sys.argv[1]), say=say)
        except BaseException as problem:
            lost = not isinstance(problem, BurnishError) and any(sign in str(problem) for sign in PEER)
            error = as_error(problem) if not lost else TrainError("The connection to another process was lost")
            tell({"error": {**error.to_json(), "lost": lost}})
            with contextlib.suppress(OSError):  # the log may lie on the disk that is full
                traceback.print_exception(problem)
            return error.exit_code
        return 0


if __name__ == "__main__":
    code = main()
    os._exit(code)  # threads of a broken connection may not hold it up
