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

from burnish.errors import BurnishError, TrainError

MEETING = 600.0  # seconds that machines wait for one another at the start
SILENCE = (
    ("TCP_KEEPIDLE", 5),
    ("TCP_KEEPINTVL", 5),
    ("TCP_KEEPCNT", 3),
)  # a machine without power is missed after 20 s
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
                return TrainError(str(line["failed"]), f"machine {self.node}: {line.get('where', '')}", AGAIN)
            self.gone = self.gone or "done" in line
        if not data and not self.gone:
            return TrainError(f"Machine {self.node} is gone", f"{self.line}", AGAIN)
        return None

    def tell(self, value: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self.line.sendall(json.dumps(value).encode() + b"\n")


def meet(node: int, nodes: int, size: int, host: str, port: int) -> list[Peer]:
    """Connect the watchers: every machine with node 0.  size: ranks of all machines, which all must be told alike."""
    where = f"{host}:{port - 1}"
    until = time.monotonic() + MEETING
    if node == 0:
        with socket.create_server(("", port)) as door:
            peers: list[Peer] = []
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
                told = json.loads(line.makefile().readline() or "{}")
                if told.get("size") == size:
                    peers.append(Peer(told["node"], _alive(line)))
            return peers
    while True:
        try:
            line = socket.create_connection((host, port), timeout=10)
            break
        except OSError as problem:
            if time.monotonic() > until:
                raise TrainError(f"The first machine does not answer: {problem}", where, AGAIN) from None
            time.sleep(1)
    peer = Peer(0, _alive(line))
    peer.tell({"node": node, "size": size})
    return [peer]


def _alive(line: socket.socket) -> socket.socket:
    line.settimeout(None)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in SILENCE:
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return line


def heard(data: bytes) -> tuple[list[dict[str, Any]], bytes]:
    """The JSON objects of whole lines, and what is left of the last one."""
    whole, _, rest = data.rpartition(b"\n")
    return [json.loads(line) for line in whole.splitlines() if line.startswith(b"{")], rest
