"""Faults on purpose: a training run is killed, or its newest checkpoint damaged, and must end as if nothing happened.

    python benchmarks/faults.py kills 200      SIGKILL at moments drawn uniformly over a run; some inside a save
    python benchmarks/faults.py corrupt 200    flip, cut, empty, lengthen, delete or swap files; then resume

In: nothing but this file and the public `burnish.train`; the model (32 wide, random) and the rows are made here.
Out: a line per surprise, a summary, and JSON as the last line; exit code 1 when a final weight differs, a run needs a
person, or damage goes unnamed.  Each run is a child forked from one warm parent, so a start costs milliseconds.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import itertools
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}  # before torch

AIMED = 0.3  # share of the kills that wait for a save to begin; the others fall anywhere
CLEAN = 3  # exit code of a TrainError
TASK = """
goal: {task: classify}
data: {files: [rows.csv], near_duplicates: 1.0}
base: {name: BASE}
method: {kind: METHOD}
train: {epochs: 3, batch_size: 4, evaluate_every: 2, save_every: 3, patience: 0, dropout: 0.1, seed: 7}
"""


def world(folder: Path, method: str, rows: int = 40) -> Path:
    """A tiny random model, rows and a task file; returns the task file."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(letters)}, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|end|>", pad_token="<|pad|>")
    tokenizer.save_pretrained(folder / "base")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    draw = random.Random(0)
    good, bad = ["fine", "lovely", "swift", "sound"], ["poor", "broken", "late", "dull"]
    lines = ["text,label"]
    for number in range(rows):
        kind = draw.choice(["good", "bad"])
        noise = "".join(draw.choice("abcdefghij ") for _ in range(20))
        lines.append(f"{noise} {draw.choice(good if kind == 'good' else bad)} {number},{kind}")
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    (folder / "task.yaml").write_text(TASK.replace("BASE", str(folder / "base")).replace("METHOD", method))
    return folder / "task.yaml"


class Marks(ctypes.Structure):
    """What a child did until it died.  begun, ended: its saves.  resumed: 1 when it went on from a checkpoint."""

    _fields_ = (("begun", ctypes.c_uint64), ("ended", ctypes.c_uint64), ("resumed", ctypes.c_uint64))


MARKS = Marks.from_buffer(mmap.mmap(-1, mmap.PAGESIZE))  # shared with every child


def warm(task: Path, rungs: list[str], home: Path) -> None:
    """Train a step of each rung here, so that children import nothing; then have saves and resumes leave marks."""
    import burnish
    from burnish.train import checkpoint

    os.environ["BURNISH_HOME"] = str(home)
    for rung in rungs:
        burnish.train(str(task), rung=rung, set=["train.max_steps=1"])

    save, newest = checkpoint.save, checkpoint.newest

    def marked_save(*given: Any, **more: Any) -> Path:
        MARKS.begun += 1
        path = save(*given, **more)
        MARKS.ended += 1
        return path

    def marked_newest(*given: Any, **more: Any) -> checkpoint.Checkpoint | None:
        found = newest(*given, **more)
        MARKS.resumed = int(found is not None)
        return found

    checkpoint.save, checkpoint.newest = marked_save, marked_newest


@dataclass(frozen=True)
class Command:
    """The same command, given again and again: train one rung of one task in one home."""

    task: Path
    rung: str
    home: Path

    def start(self) -> int:
        """Fork a child that does it; returns its process id."""
        self.home.mkdir(parents=True, exist_ok=True)
        MARKS.begun = MARKS.ended = MARKS.resumed = 0
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            with (self.home / "output.txt").open("a", buffering=1) as stream:
                os.dup2(stream.fileno(), 1)
                os.dup2(stream.fileno(), 2)
                code = self._train()
        finally:
            os._exit(code)

    def _train(self) -> int:
        import burnish
        from burnish.errors import BurnishError

        os.environ["BURNISH_HOME"] = str(self.home)

        def say(rung: str, event: Any) -> None:
            if event.kind == "warned":
                print(f"warned: {event.numbers}", flush=True)

        try:
            result = burnish.train(str(self.task), rung=self.rung, say=say)
        except BurnishError as problem:
            print(f"error: {problem}", flush=True)
            return problem.exit_code
        except BaseException:
            traceback.print_exc()
            return 70
        (self.home / "artifact.txt").write_text(result.artifact)
        return 0

    def told(self) -> str:
        """All that the children of this home have printed."""
        return (self.home / "output.txt").read_text()

    def weights(self) -> str:
        """SHA-256 over the tensor files of the artifact, names and bytes."""
        artifact = Path((self.home / "artifact.txt").read_text())
        files = sorted(artifact.rglob("*.safetensors"))
        assert files, f"no tensors in {artifact}"
        whole = hashlib.sha256()
        for file in files:
            whole.update(f"{file.relative_to(artifact)} {file.stat().st_size}\n".encode())
            whole.update(file.read_bytes())
        return whole.hexdigest()


def running(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def ended(child: int) -> int:
    """Wait for a child; returns its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@dataclass(frozen=True)
class Reference:
    """An uninterrupted run: what it ends in, how long it and one of its saves take, and how often it saves."""

    weights: str
    seconds: float
    save_seconds: float
    saves: int


def reference(task: Path, rung: str, folder: Path) -> Reference:
    """Train without a fault, twice: a run that does not repeat itself can prove nothing."""
    weights, seconds, inside = set(), 0.0, 0.0
    for turn in ("a", "b"):
        command = Command(task, rung, folder / f"reference-{rung}-{turn}")
        began = time.monotonic()
        child = command.start()
        while running(child):
            inside += 0.0005 * (MARKS.begun > MARKS.ended)
            time.sleep(0.0005)
        seconds = time.monotonic() - began
        if code := ended(child):
            sys.exit(f"The uninterrupted run failed with exit code {code}:\n{command.told()}")
        weights.add(command.weights())
    if len(weights) > 1:
        sys.exit("Two uninterrupted runs end in different weights: there is nothing to compare with")
    print(f"{rung}: {seconds:.2f} s, {MARKS.begun} saves, weights {min(weights)[:16]}", flush=True)
    return Reference(weights.pop(), seconds, inside / 2 / max(MARKS.begun, 1), MARKS.begun)


def strike(child: int, at: Reference, draw: random.Random) -> None:
    """SIGKILL a child at a drawn moment of its run, or of one of its saves."""
    if draw.random() < AIMED:
        wanted = draw.randint(1, at.saves)
        while MARKS.begun < wanted and running(child):
            time.sleep(0.0002)
        time.sleep(draw.random() * at.save_seconds)
    else:
        time.sleep(draw.random() * at.seconds)
    os.kill(child, signal.SIGKILL)


def kills(
    count: int, task: Path, rungs: list[str], folder: Path, draw: random.Random
) -> tuple[dict[str, int], list[str]]:
    """Kill and restart runs until `count` kills have landed; returns the figures and what went wrong."""
    expected = {rung: reference(task, rung, folder) for rung in rungs}
    seen, wrong = Counter({"kills": 0, "inside_a_save": 0, "resumed": 0, "human_steps": 0, "different": 0}), []
    for trial in itertools.count():
        if seen["kills"] >= count:
            break
        rung = rungs[trial % len(rungs)]
        command = Command(task, rung, folder / f"trial-{trial}")
        code = -signal.SIGKILL
        while code == -signal.SIGKILL:
            child = command.start()
            if seen["kills"] < count:
                strike(child, expected[rung], draw)
            code = ended(child)
            seen["kills"] += code == -signal.SIGKILL
            seen["inside_a_save"] += code == -signal.SIGKILL and MARKS.begun > MARKS.ended
            seen["resumed"] += MARKS.resumed
        seen["runs"] += 1
        seen["human_steps"] += code != 0
        different = code == 0 and command.weights() != expected[rung].weights
        seen["different"] += different
        if code or different:
            wrong.append(f"{command.home}: {'other weights' if different else f'exit code {code}'}\n{command.told()}")
        else:
            shutil.rmtree(command.home)
    if count >= 20 and seen["inside_a_save"] < 0.15 * count:  # of five, none is inside once in twenty runs
        wrong.append(f"only {seen['inside_a_save']} kills were inside a save: the harness must aim better")
    if not seen["resumed"]:
        wrong.append("no start went on from a checkpoint: nothing was shown")
    return dict(seen), wrong


def damage(path: Path, draw: random.Random) -> tuple[str, list[str]]:
    """Damage one file of a checkpoint, or swap two; returns how, and the names of the files."""
    how = draw.choice(["flip", "flip", "cut", "append", "empty", "delete", "swap"])
    file, other = draw.sample(sorted(path.iterdir()), 2)
    data = bytearray(file.read_bytes())
    if how == "swap":
        file.write_bytes(other.read_bytes())
        other.write_bytes(data)
        return how, [file.name, other.name]
    if how == "flip":
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif how == "cut":
        del data[len(data) // 2 :]
    elif how == "append":
        data.append(draw.randrange(256))
    elif how == "empty":
        data.clear()
    file.write_bytes(data)
    if how == "delete":
        file.unlink()
    return how, [file.name]


def corrupt(
    count: int, task: Path, rungs: list[str], folder: Path, draw: random.Random
) -> tuple[dict[str, int], list[str]]:
    """Interrupt, damage the newest checkpoint, resume, `count` times; returns the figures and what went wrong."""
    expected = {rung: reference(task, rung, folder) for rung in rungs}
    seen, wrong = Counter({"cases": 0, "equal": 0, "clean_errors": 0, "silently_wrong": 0, "unclean": 0}), []
    for case in range(count):
        rung = rungs[case % len(rungs)]
        command = Command(task, rung, folder / f"case-{case}")
        wanted = draw.randint(1, expected[rung].saves - 1)  # after the last one it would not be read again
        child = command.start()
        while MARKS.ended < wanted and running(child):
            time.sleep(0.0002)
        os.kill(child, signal.SIGKILL)
        ended(child)
        newest = max(command.home.glob("**/checkpoints/[0-9]*"))
        how, names = damage(newest, draw)
        before = len(command.told())
        code = ended(command.start())
        told = command.told()[before:]
        named = any(f"{newest.name}/{name}" in told for name in names)
        verdict = "unclean"
        if code == 0:
            same = command.weights() == expected[rung].weights
            verdict = "equal" if same and named else "unclean" if same else "silently_wrong"
        elif code == CLEAN and named:
            verdict = "clean_errors"
        seen["cases"] += 1
        seen[verdict] += 1
        if verdict in ("unclean", "silently_wrong"):
            wrong.append(f"{command.home}: {how} {names} of {newest.name}: {verdict}, exit code {code}\n{told}")
        else:
            shutil.rmtree(command.home)
    return dict(seen), wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fault", choices=["kills", "corrupt"])
    parser.add_argument("count", type=int)
    parser.add_argument("--rungs", default="lora,full", help="taken in turn")
    parser.add_argument("--method", default="classify", help="classify, sft or selfsupervised")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the damage")
    given = parser.parse_args()
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    rungs = given.rungs.split(",")
    task = world(folder, given.method)
    warm(task, rungs, folder / "warm")
    run = {"kills": kills, "corrupt": corrupt}[given.fault]
    seen, wrong = run(given.count, task, rungs, folder, random.Random(given.seed))
    for line in wrong:
        print(f"WRONG {line}")
    if wrong:
        print(f"kept for a look: {folder}")
    else:
        shutil.rmtree(folder)
    print(
        json.dumps(
            {
                "fault": given.fault,
                "method": given.method,
                **seen,
                "wrong": len(wrong),
                "seconds": round(time.monotonic() - began, 1),
            }
        )
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
