"""Two processes end where one ends, go on with each other's checkpoints, and die together with the reason said."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny
import together
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish import store, workflow
from burnish.errors import CheckpointError, Interrupted, TaskError, TrainError
from burnish.tokens.batch import Batches
from burnish.train import checkpoint, distributed, launch, peers, slurm
from burnish.train.distributed import Ranks

HERE = Path(__file__).parent
PRODUCT = 1e-5  # losses are sums of the same float32 numbers in another order
ROOM = {"loss": PRODUCT, "valid_loss": PRODUCT, "grad_norm": 100 * PRODUCT}  # Adam moves weights by rounding alone
MODES = ("replicated", "sharded")
SEEN: dict[str, tuple[Path, dict[str, Any]]] = {}  # by size: the folder, and what was seen alone and in both modes


def sizes(*names: str) -> Any:
    """A test for every case, fifty steps of which are slow."""
    slow: dict[str, Any] = {"quick": (), "whole": pytest.mark.slow}
    told = [(size, name) for size in together.STEPS for name in names or together.cases(size)]
    return pytest.mark.parametrize(("size", "name"), [pytest.param(*each, marks=slow[each[0]]) for each in told])


def seen(size: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """What one process saw, and what two did, each once for all tests."""
    if size not in SEEN:
        root = tmp_path_factory.mktemp(size)
        for kind in tiny.KINDS:
            shutil.copytree(tiny.folder(kind, tmp_path_factory), root / "models" / f"tiny-{kind}")
        told = {"alone": together.everything(root / "alone", Ranks(), size)}
        for mode in MODES:
            shutil.copytree(root / "alone" / "half", root / mode / "from-one")
        two([sys.executable, str(HERE / "together.py"), size, str(root)], root)
        SEEN[size] = root, told | json.loads((root / "seen.json").read_text())
    return SEEN[size]


def two(command: list[str], folder: Path) -> None:
    """Run a command on two ranks."""
    launch.run(command, launch.Cluster(2), folder / "logs", lambda told: None)


def apart(a: dict[str, list[float]], b: dict[str, list[float]]) -> float:
    """The largest difference of two lists of numbers with the same names."""
    return max(float((torch.tensor(a[name]) - torch.tensor(b[name])).abs().max()) for name in a)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.parametrize("mode", MODES)
@sizes()
def test_two_ranks_lose_what_one_loses(
    size: str, name: str, mode: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    _, told = seen(size, tmp_path_factory)
    one, both = ({number: told[which][name][number] for number in ROOM} for which in ("alone", mode))
    assert len(one["loss"]) == together.STEPS[size]
    assert one["loss"][0] != one["loss"][-1]
    print(f"{apart({'loss': one['loss']}, both):.0e} of losses, {apart(one, both):.0e} of all numbers")  # with -rP
    for number, room in ROOM.items():
        assert both[number] == pytest.approx(one[number], abs=room, rel=room), number
    assert told[mode][name]["tokens"] == told["alone"][name]["tokens"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["one row left", "sgd", "bf16, recomputing", "out of memory on one rank"])
def test_two_ranks_do_what_one_does(mode: str, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    _, told = seen("quick", tmp_path_factory)
    if (mode, name) == ("sharded", "out of memory on one rank"):
        assert "adafactor" in told[mode]["refused"]
        return
    one, both = told["alone"][name], told[mode][name]
    for number in ROOM:
        room = 1e-2 if "bf16" in name else PRODUCT
        assert both[number] == pytest.approx(one[number], abs=room, rel=room), number
    assert both["tokens"] == one["tokens"]
    assert any("Out of memory" in text for text in both["warned"]) == ("memory" in name)


@pytest.mark.parametrize("mode", MODES)
@sizes("to its end")
def test_two_go_on_with_what_one_began_and_one_with_what_two_began(
    size: str, name: str, mode: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root, told = seen(size, tmp_path_factory)
    expected = told["alone"][name]["weights"]
    assert apart(told[mode][name]["weights"], expected) < PRODUCT
    assert told[mode]["from-one"]["first"] == "resumed"
    assert apart(told[mode]["from-one"]["weights"], expected) < PRODUCT
    kept = root / f"back-{mode}"
    shutil.copytree(root / mode / "half", kept)
    steps = together.STEPS[size]
    back = together.told(together.run(together.EXACT, "full", kept, Ranks(), steps, validation=False))
    assert back["first"] == "resumed"
    assert apart(back["weights"], expected) < PRODUCT


@pytest.mark.parametrize("mode", MODES)
def test_no_rank_goes_on_before_a_checkpoint_is_written(mode: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """One that ended after a stop had the others killed, five seconds later, while the main one still wrote."""
    _, told = seen("quick", tmp_path_factory)
    assert told[mode]["written"]


def test_a_share_that_changed_is_not_gone_on_with(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    root, _ = seen("quick", tmp_path_factory)
    shutil.copytree(root / "sharded" / "half", tmp_path / "half")
    shard = next((tmp_path / "half").rglob("weights/shard-00002-*"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CheckpointError, match="No checkpoint"):
        checkpoint.newest(tmp_path / "half")


def world(folder: Path, tmp_path_factory: Any, steps: int) -> Path:
    """A task of two classes on a tiny model."""
    with (folder / "rows.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["text", "label"])
        rows.writerows([f"{'good' if i % 2 else 'bad'} row {i}", "yes" if i % 2 else "no"] for i in range(30))
    base = tiny.folder("llama", tmp_path_factory)
    (folder / "task.yaml").write_text(
        f"goal: {{task: classify}}\ndata: {{files: [rows.csv], near_duplicates: 1.0}}\nbase: {{name: {base}}}\n"
        f"method: {{kind: classify}}\ntrain: {{max_steps: {steps}, epochs: 0, batch_size: 4, evaluate_every: 1000, "
        f"save_every: 3, patience: 0, precision: fp32, micro_tokens: 8192}}\n"
    )
    return folder / "task.yaml"


@pytest.mark.parametrize("shard", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_killed_rank_ends_all_with_the_reason(
    shard: bool, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("BURNISH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(store, "_stop", False)
    task = str(world(tmp_path, tmp_path_factory, 150))
    killed: list[psutil.Process] = []

    def kill(rung: str, event: Any) -> None:
        if event.kind == "saved" and not killed:
            killed.extend(psutil.Process().children())
            next(child for child in killed if child.environ()["RANK"] == "1").kill()

    with pytest.raises(TrainError, match="Rank 1 was ended by SIGKILL") as caught:
        workflow.train(task, rung="full", devices=2, shard=shard, say=kill)
    assert caught.value.exit_code == 3
    assert not any(child.is_running() for child in killed)
    found = checkpoint.newest(next(tmp_path.glob("home/runs/*/rungs/full/checkpoints")))
    assert found is not None
    assert not found.quarantined

    again = workflow.train(task, rung="full")  # one process goes on with what two began
    monkeypatch.setenv("BURNISH_HOME", str(tmp_path / "other"))
    whole = workflow.train(task, rung="full")
    weights = [
        checkpoint.newest(Path(result.artifact).parent / "checkpoints").tensors("weights")  # type: ignore[union-attr]
        for result in (again, whole)
    ]
    assert max(float((weights[0][name] - value).abs().max()) for name, value in weights[1].items()) < 1e-5


@pytest.mark.slow
def test_a_stop_is_asked_of_all(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("BURNISH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(store, "_stop", False)
    task = str(world(tmp_path, tmp_path_factory, 5000))
    kinds = []

    def stop(rung: str, event: Any) -> None:
        kinds.append(event.kind)
        store.request_stop()

    with pytest.raises(Interrupted, match="saved"):
        workflow.train(task, rung="lora", devices=2, say=stop)
    assert kinds[-2:] == ["saved", "stopped"]


@pytest.mark.slow
def test_no_rank_outlives_its_watcher(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    task = world(tmp_path, tmp_path_factory, 100_000)
    environment = {**os.environ, "BURNISH_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "burnish.cli.main", "train", str(task), "--rung", "lora", "--devices", "2"]
    with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) as watcher:
        assert watcher.stderr is not None
        next(line for line in watcher.stderr if "training" in line)
        ranks = psutil.Process(watcher.pid).children()
        watcher.kill()
    assert len(ranks) == 2
    assert not psutil.wait_procs(ranks, timeout=30)[1]


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=30), ranks=st.integers(1, 9), batch_size=st.integers(1, 9)
)
@settings(deadline=None, max_examples=60)
def test_every_row_of_a_step_is_some_ranks(lengths: list[int], ranks: int, batch_size: int) -> None:
    rows = [
        tiny.Tokens(*(torch.ones(n).int().numpy(), torch.ones(n).numpy()), f"{i}", f"{i}")
        for i, n in enumerate(lengths)
    ]
    shares = [Batches(rows, batch_size, 64, 0, 0, rank=rank, ranks=ranks) for rank in range(ranks)]
    for step in range(1, shares[0].per_epoch + 1):
        drawn = sorted(str(i) for _, i in shares[0].drawn(step))
        taken = [[row for batch in share.step(step) for row in batch.examples] for share in shares]
        assert sorted(row for own in taken for row in own) == drawn
        loads = [sum(lengths[int(row)] for row in own) for own in taken]
        assert max(loads) - min(loads) <= max(lengths[int(row)] for row in drawn)
    everything = [row for share in shares for batch in share.once() for row in batch.examples]
    assert sorted(everything, key=int) == [row.example for row in rows]


def test_a_rank_tells_its_reason_where_nothing_can_be_logged(tmp_path: Path) -> None:
    """Its log lies on the disk that is full."""
    told = json.dumps({"task": str(tmp_path / "none.yaml"), "rung": "full"})
    words = [sys.executable, "-m", "burnish.cli.rank", told]
    environment = {**os.environ, "RANK": "0"}
    with Path("/dev/full").open("w") as full:
        rank = subprocess.Popen(words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=full)
        with rank:  # its stdin stays open: its end would say that nobody listens
            assert rank.stdout is not None
            said, code = rank.stdout.read(), rank.wait()
    assert "none.yaml" in json.loads(said)["error"]["where"]
    assert code == 2


# --- the watcher, with ranks that only talk -------------------------------------------------------------------

TALK = """
import json, os, signal, sys
rank = int(os.environ["RANK"])
print(json.dumps({"told": rank}), flush=True)
KIND = sys.argv[1]
if KIND == "signal" and rank == 1: os.kill(os.getpid(), signal.SIGKILL)
if KIND == "error" and rank == 1:
    print(json.dumps({"error": {"what": "The disk is full", "where": "x", "do": "y"}}), flush=True)
    sys.exit(3)
if KIND in ("signal", "error") and rank == 0:  # loses its connection, and ends before the other is looked at
    print(json.dumps({"error": {"what": "lost", "where": "", "do": "", "lost": True}}), flush=True)
    sys.exit(3)
if KIND == "well": sys.exit(0)
sys.stdin.read()
"""


def talk(kind: str) -> list[str]:
    return [sys.executable, "-c", TALK, kind]


def test_what_ranks_tell_is_heard(tmp_path: Path) -> None:
    heard: list[int] = []
    launch.run(talk("well"), launch.Cluster(3), tmp_path, lambda told: heard.append(told["told"]))
    assert sorted(heard) == [0, 1, 2]


@pytest.mark.parametrize(("kind", "what"), [("signal", "Rank 1 was ended by SIGKILL"), ("error", "The disk is full")])
def test_the_cause_is_told_and_not_its_consequence(
    kind: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 2 hangs, as a rank in a collective does: it is ended too."""
    monkeypatch.setattr(launch, "GRACE", 1.0)
    with pytest.raises(TrainError, match=what) as caught:
        launch.run(talk(kind), launch.Cluster(3), tmp_path, lambda told: None)
    assert caught.value.where
    assert not psutil.Process().children()


def test_machines_end_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 1 is alone on the second machine; the first one hears why it ended."""
    monkeypatch.setattr(launch, "GRACE", 0.2)
    port = launch._free_port()
    told: dict[int, TrainError] = {}

    def machine(node: int) -> None:
        cluster = launch.Cluster(1, 2, node, f"127.0.0.1:{port}").checked()
        kind = "hang" if node == 0 else "signal"
        try:
            launch.run(talk(kind), cluster, tmp_path / str(node), lambda line: None)
        except TrainError as problem:
            told[node] = problem

    machines = [threading.Thread(target=machine, args=(node,)) for node in range(2)]
    for one in machines:
        one.start()
    for one in machines:
        one.join(60)
    assert {node: problem.what[:27] for node, problem in told.items()} == dict.fromkeys(
        (0, 1), "Rank 1 was ended by SIGKILL"
    )
    assert "machine 1" in told[0].where


def test_a_stop_of_one_machine_is_a_stop_of_all() -> None:
    """Not a failure of the others: whoever stopped the run gives the same command again."""
    here, there = socket.socketpair()
    with here, there:
        peers.Peer(1, there).end(Interrupted("Stopped after step 7; saved", "runs/a", "go on"))
        told = peers.Peer(1, here).hear()
        assert isinstance(told, Interrupted)
        assert (told.what, told.where) == ("Stopped after step 7; saved", "machine 1: runs/a")
        peers.Peer(1, there).end(None)
        assert peers.Peer(1, here).hear() is None


def knock(port: int, said: bytes) -> socket.socket:
    """A connection to the first machine, as soon as it listens."""
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            line = socket.create_connection(("127.0.0.1", port))
            line.sendall(said)
            return line


def test_a_stranger_at_the_door_is_no_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scanner of ports says nothing, or nothing that is ours."""
    monkeypatch.setattr(peers, "HELLO", 0.2)
    port = launch._free_port()
    met: list[peers.Peer] = []
    door = threading.Thread(target=lambda: met.extend(peers.meet(0, 2, 2, "", port)))
    door.start()
    lines = [knock(port, said) for said in (b"", b"GET / HTTP/1.1\r\n\r\n", b"{GET\n", b'{"node": 7}\n')]
    lines += [peer.line for peer in peers.meet(1, 2, 2, "127.0.0.1", port)]
    door.join(30)
    assert [peer.node for peer in met] == [1]
    for line in (*lines, *(peer.line for peer in met)):
        line.close()


@pytest.mark.parametrize(("node", "size", "what"), [(1, 5, "5 processes"), (3, 3, "no machine 3"), (2, 3, "Two")])
def test_machines_that_do_not_fit_are_told_so(node: int, size: int, what: str) -> None:
    port = launch._free_port()
    told: list[TrainError] = []

    def first() -> None:
        try:
            peers.meet(0, 3, 3, "", port)
        except TrainError as problem:
            told.append(problem)

    door = threading.Thread(target=first)
    door.start()
    others = [peers.meet(node, 3, size, "127.0.0.1", port)[0] for _ in range(2 if what == "Two" else 1)]
    door.join(30)
    assert what in told[0].what
    for other in others:
        heard = other.hear()
        assert heard is not None
        assert heard.what == told[0].what
        other.line.close()


@pytest.mark.parametrize(
    "cluster",
    [
        launch.Cluster(0),
        launch.Cluster(1, 0),
        launch.Cluster(1, 2, 2, "a:1"),
        launch.Cluster(1, 2, 0),
        launch.Cluster(1, 2, 0, "host"),
        launch.Cluster(1, 2, 0, "host:65535"),
    ],
)
def test_what_cannot_be_a_cluster_is_refused(cluster: launch.Cluster) -> None:
    with pytest.raises(TaskError):
        cluster.checked()


def test_the_slurm_script_is_a_script(tmp_path: Path) -> None:
    script = slurm.script(["my task.yaml", "--rung", "lora"], "My Task", 8, 4, "01:00:00")
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for part in ("--nodes=4", "--gpus-per-node=8", "--time=01:00:00", "--job-name=my-task", "'my task.yaml'"):
        assert part in script
    fake = tmp_path / "bin"
    fake.mkdir()
    for name, does in (
        ("scontrol", "seq -f n%.0f 7 20000"),  # more than a pipe holds
        ("srun", 'shift; SLURM_NODEID=3 "$@"'),
        ("burnish", 'printf "%s|" "$@"'),
    ):
        (fake / name).write_text(f"#!/bin/sh\n{does}\n")
        (fake / name).chmod(0o755)
    environment = {"PATH": f"{fake}:{os.environ['PATH']}", "SLURM_NNODES": "4", "SLURM_JOB_ID": "42"}
    environment |= {"SLURM_JOB_NODELIST": "n[7-8]"}
    done = subprocess.run(["bash"], input=script, env=environment, capture_output=True, text=True, check=True)
    words = "train|my task.yaml|--rung|lora|--devices|8|--nodes|4|--rendezvous|n7:20042|--node-rank|3|"
    assert done.stdout == words


def test_one_process_agrees_with_itself() -> None:
    ranks = Ranks()
    assert ranks.sum(1, 0.5) == [1.0, 0.5]
    assert ranks.tell({"a": 1}) == {"a": 1}
    assert list(ranks.passes([], None)) == []  # type: ignore[arg-type]
    with distributed.begin() as alone:
        assert alone == ranks
