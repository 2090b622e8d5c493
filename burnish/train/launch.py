"""One command becomes several processes, watched: what one says is said, and when one dies all end, with the reason.

In: the words of a command for each process, and how many of them on how many machines.  Out: events as they come, then
nothing, or the error behind the first failure.  No torch here: this process only listens.

A process gets torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR ...), so `torchrun` may stand in for this
file.  It tells JSON lines on stdout and ends when its stdin does, so none outlives the watcher.  Watchers of several
machines hold a connection (rendezvous port + 1) whose end is noticed like the death of a process.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from burnish import store
from burnish.errors import BurnishError, Interrupted, TaskError, TrainError
from burnish.train.peers import AGAIN, Peer, heard, meet

GRACE = 5.0  # seconds for the others to end by themselves once one has failed, so that the first cause is known
TICK = 0.2  # seconds between looks at what no file descriptor tells

Say = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Cluster:
    """devices: processes on each machine.  node: which of `nodes` this machine is.  rendezvous: HOST:PORT of node 0."""

    devices: int = 1
    nodes: int = 1
    node: int = 0
    rendezvous: str = ""

    @property
    def size(self) -> int:
        return self.devices * self.nodes

    def checked(self) -> Cluster:
        """This cluster, if it can be; raises TaskError."""
        if self.devices < 1 or self.nodes < 1 or not 0 <= self.node < self.nodes:
            raise TaskError(
                f"{self.devices} devices on machine {self.node} of {self.nodes} cannot be",
                "--devices, --nodes, --node-rank",
                "count machines from 0; give at least one device",
            )
        host, _, port = self.rendezvous.rpartition(":")
        if self.nodes > 1 and not (host and port.isdigit() and 0 < int(port) < 65535):
            raise TaskError(
                "Several machines need a place to meet",
                "--rendezvous",
                "give HOST:PORT of the first machine, with PORT and the one after it free there",
            )
        return self


def inside() -> bool:
    """Whether this process is already one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def run(command: Sequence[str], cluster: Cluster, logs: Path, say: Say) -> None:
    """Start this machine's processes, watch them to their end, and hand on what the main one tells.

    logs: a folder for what each prints on stderr.  Raises what the first failure was: TrainError for a death,
    Interrupted after a stop, else as it was told.
    """
    logs.mkdir(parents=True, exist_ok=True)
    host, _, port = cluster.rendezvous.rpartition(":") if cluster.nodes > 1 else ("127.0.0.1", "", str(_free_port()))
    peers = meet(cluster.node, cluster.nodes, cluster.size, host, int(port) + 1) if cluster.nodes > 1 else []
    children: list[Child] = []
    try:
        for local in range(cluster.devices):
            rank = cluster.node * cluster.devices + local
            told = {
                **{"RANK": rank, "WORLD_SIZE": cluster.size, "LOCAL_RANK": local, "LOCAL_WORLD_SIZE": cluster.devices},
                **{"MASTER_ADDR": host, "MASTER_PORT": port},
                "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", max((os.cpu_count() or 1) // cluster.devices, 1)),
            }
            children.append(_start(command, rank, {name: str(value) for name, value in told.items()}, logs))
        problem = _watch(children, peers, say)
        for peer in peers:
            peer.end(problem)
        if problem:
            raise problem
    finally:
        for child in children:
            child.end()
        for peer in peers:
            peer.line.close()


@dataclass
class Child:
    """One process.  error: what it told of its failure.  ended: whether we ended it."""

    rank: int
    process: subprocess.Popen[bytes]
    log: Path
    rest: bytes = b""
    error: dict[str, Any] = field(default_factory=dict)
    ended: bool = False

    def hear(self) -> list[dict[str, Any]] | None:
        """What it has told since, an error aside, which is remembered; None when it tells no more."""
        assert self.process.stdout is not None
        data = os.read(self.process.stdout.fileno(), 1 << 16)
        lines, self.rest = heard(self.rest + data)
        self.error = next((line["error"] for line in lines if "error" in line), self.error)
        return [line for line in lines if "error" not in line] if data else None

    def tell(self, word: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{word}\n".encode())
            self.process.stdin.flush()

    def end(self) -> None:
        """Kill it if it lives (a checkpoint survives that at any instant), and let go of its pipes."""
        self.ended = self.ended or self.process.poll() is None
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def problem(self) -> BurnishError | None:
        """Why it ended, if not well."""
        code = self.process.returncode
        if self.ended or not code:
            return None
        if code < 0:
            name = signal.Signals(-code).name
            hint = " (often the system, out of memory)" if name == "SIGKILL" else ""
            return TrainError(f"Rank {self.rank} was ended by {name}{hint}", str(self.log), AGAIN)
        if not self.error:
            return TrainError(f"Rank {self.rank} ended with exit code {code}", str(self.log), AGAIN)
        kind = {130: Interrupted, 2: BurnishError}.get(code, TrainError)
        return kind(self.error["what"], self.error["where"], self.error["do"])


def _start(command: Sequence[str], rank: int, variables: Mapping[str, str], logs: Path) -> Child:
    log = logs / f"rank-{rank}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            env={**os.environ, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stream,
            start_new_session=True,  # Ctrl-C reaches the watcher alone, which asks all ranks to stop after one step
        )
    return Child(rank, process, log)


def _watch(children: Sequence[Child], peers: Sequence[Peer], say: Say) -> BurnishError | None:
    """Listen until all have ended; what went wrong first, if anything did."""
    failure: BurnishError | None = None
    deadline, stopping = float("inf"), False
    with selectors.DefaultSelector() as ears:
        for child in children:
            ears.register(child.process.stdout, selectors.EVENT_READ, child)  # type: ignore[arg-type]
        for peer in peers:
            ears.register(peer.line, selectors.EVENT_READ, peer)
        while any(child.process.poll() is None for child in children) or _unheard(ears):
            for key, _ in ears.select(TICK):
                one = key.data
                if isinstance(one, Peer):
                    failure = failure or one.hear()
                    if failure or one.gone:
                        ears.unregister(key.fileobj)
                    continue
                told = one.hear()
                for line in told or ():
                    say(line)
                if told is None:
                    ears.unregister(key.fileobj)
            if store.stop_requested() and not stopping:
                stopping = True
                for child in children:
                    child.tell("stop")
            if deadline == float("inf") and (failure or any(child.process.poll() for child in children)):
                deadline = time.monotonic() + GRACE
            if time.monotonic() > deadline:
                for child in children:
                    child.end()
                break
    return failure or _first([child for child in children if child.problem()])


def _unheard(ears: selectors.BaseSelector) -> bool:
    return any(isinstance(key.data, Child) for key in ears.get_map().values())


def _first(failed: Sequence[Child]) -> BurnishError | None:
    """The cause rather than its consequences: a death by signal, then an own error, then a lost connection."""

    def order(child: Child) -> tuple[bool, bool, int]:
        return child.process.returncode > 0, bool(child.error.get("lost")), child.rank

    return min(failed, key=order).problem() if failed else None


def _free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])
