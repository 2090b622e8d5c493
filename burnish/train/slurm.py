"""A script for Slurm that runs `burnish train` on whole machines.

In: the words of the command, and how many devices and machines.  Out: an sbatch script as text; nothing is submitted.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from burnish import store

SCRIPT = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={devices}
#SBATCH --time={time}
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# Written by `burnish launch`.  Adjust partition, account and cpus for your cluster, then: sbatch THIS_FILE
# A requeued or repeated job goes on from its newest checkpoint.  BURNISH_HOME, task, data and base must lie on a
# file system that all machines share.
set -euo pipefail
export BURNISH_HOME={home}
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
port=$((20000 + SLURM_JOB_ID % 20000))
# shellcheck disable=SC2016  # each machine fills in its own number
srun --kill-on-bad-exit=1 bash -c 'exec "$@" --node-rank "$SLURM_NODEID"' burnish \\
  {command} --nodes "$SLURM_NNODES" --rendezvous "${{hosts%%$'\\n'*}}:$port"
"""


def script(words: Sequence[str], name: str, devices: int, nodes: int, limit: str) -> str:
    """An sbatch script that runs `burnish train` on whole machines; nothing is submitted."""
    command = shlex.join(["burnish", "train", *words, "--devices", str(devices)])
    home = shlex.quote(str(store.home().absolute()))
    return SCRIPT.format(name=store.slug(name), nodes=nodes, devices=devices, time=limit, home=home, command=command)
