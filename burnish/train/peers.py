"""The watchers of several machines: each holds a connection to the first one, whose end is noticed like a death.

In: how many machines there are and where they meet.  Out: a Peer for each other watcher that this one talks to.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from burnish.errors import BurnishError, Interrupted, TrainError

MEETING = 600.0  # seconds that machines wait for one another at the start
HELLO = 10.0  # seconds for a connection, and for what is said first over it
SILENCE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # a machine without power is missed after 20 s
AGAIN = "give the same command again to go on; the last checkpoint is intact"


@dataclass
class Peer:
    """The watcher of another machine.  gone: it has said goodbye."""

    node: int
    line: socket.socket
    rest: bytes = b""
    gone: bool = False

    def hear(self) -> BurnishError | None:
        """Whether something failed there."""
        try:
            data = self.line.recv(1 << 16)
        except OSError:
            data = b""
        told, self.rest = heard(self.rest + data)
        for line in told:
            if "failed" in line:
                kind = Interrupted if line["stopped"] else TrainError
                return kind(line["failed"], f"machine {self.node}: {line['where']}", AGAIN)
            self.gone = self.gone or "done" in line
        if not data and not self.gone:
            return TrainError(f"Machine {self.node} is gone", "the connection between machines", AGAIN)
        return None

    def tell(self, value: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self.line.sendall(json.dumps(value).encode() + b"\n")

    def end(self, problem: BurnishError | None) -> None:
        """Say goodbye, and why."""
        stopped = isinstance(problem, Interrupted)
        told = {"failed": problem.what, "where": problem.where, "stopped": stopped} if problem else {"done": True}
        self.tell(told)


def meet(node: int, nodes: int, size: int, host: str, port: int) -> list[Peer]:
    """Connect the watchers: every machine with node 0.  size: ranks of all machines, which all must be told alike."""
    until = time.monotonic() + MEETING
    return _gather(nodes, size, port, until) if node == 0 else [_join(node, size, host, port, until)]


def _gather(nodes: int, size: int, port: int, until: float) -> list[Peer]:
    """As node 0, wait for the others."""
    where = f"--rendezvous, port {port - 1}"
    peers: list[Peer] = []
    try:
        door = socket.create_server(("", port))
    except OSError as problem:
        raise TrainError(f"Port {port} cannot be used: {problem.strerror}", where, "give another port") from None
    with door:
        while len(peers) < nodes - 1:
            door.settimeout(max(until - time.monotonic(), 0.1))
            try:
                line, _ = door.accept()
            except TimeoutError:
                raise TrainError(
                    f"{nodes - 1 - len(peers)} machines did not come within {MEETING / 60:.0f} minutes",
                    where,
                    "start the same command on each, with its own --node-rank",
                ) from None
            told = _greeting(line)
            if not told.keys() >= {"node", "size"}:  # none of ours
                line.close()
                continue
            peers.append(Peer(told["node"], _alive(line)))
            if what := _misfit([peer.node for peer in peers], nodes, told["size"], size):
                do = "give each machine the same --devices and --nodes, and its own --node-rank"
                refused = TrainError(what, where, do)
                for peer in peers:
                    peer.end(refused)
                    peer.line.close()
                raise refused
    return peers


def _misfit(others: list[int], nodes: int, told: int, size: int) -> str:
    """What is wrong with the last of the other machines that have come; '' where nothing is."""
    if told != size:
        return f"Machine {others[-1]} was started for {told} processes in all, the first one for {size}"
    if not 0 < others[-1] < nodes:
        return f"There is no machine {others[-1]} of {nodes}, counted from 0"
    return f"Two machines were started as machine {others[-1]}" if others[-1] in others[:-1] else ""


def _greeting(line: socket.socket) -> dict[str, Any]:
    """What a machine says first of itself; {} where it is none of ours."""
    line.settimeout(HELLO)
    try:
        told, _ = heard(line.recv(1 << 10))
    except (OSError, ValueError):
        return {}
    return told[0] if told else {}


def _join(node: int, size: int, host: str, port: int, until: float) -> Peer:
    """Find node 0 and say who this is."""
    while True:
        try:
            line = socket.create_connection((host, port), timeout=HELLO)
            break
        except OSError as problem:
            if time.monotonic() > until:
                what = f"The first machine does not answer: {problem}"
                raise TrainError(what, f"--rendezvous {host}:{port - 1}", AGAIN) from None
            time.sleep(1)
    peer = Peer(0, _alive(line))
    peer.tell({"node": node, "size": size})
    return peer


def _alive(line: socket.socket) -> socket.socket:
    line.settimeout(None)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in SILENCE.items():
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return line


def heard(data: bytes) -> tuple[list[dict[str, Any]], bytes]:
    """The JSON objects of whole lines, and what is left of the last one."""
    whole, _, rest = data.rpartition(b"\n")
    return [json.loads(line) for line in whole.splitlines() if line.startswith(b"{")], rest
