"""Runs jobs on several ranks, as torchrun would start them, and compares what came of it.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=... MASTER_PORT=... python -m tests.training.ranks JOBS

A job is {"points": [[word, ...], ...]}, with "stop": [rank, step] if SIGTERM comes on that rank then, and with "fail":
[rank, step] if its memory ends.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sae_cli.config.compose import compose
from sae_cli.dictionary.artifact import load_sae
from sae_cli.runs.directory import RunDirectory, find_runs
from sae_cli.torchrun import rank
from sae_cli.training.execute import execute
from sae_cli.training.step import Stepper

TIMED = ("seconds", "tokens_per_second", "data_wait", "neighbour_recall", "neighbour_gap")
"""Metrics that differ between equal runs, or that several ranks do not have."""


def launch(folder, size, jobs):
    """Run jobs on so many ranks; return each rank's states of the members of each job, and what it said."""
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    places = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.training.ranks", str(file)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    ranks = [subprocess.Popen(command, env=os.environ | places | {"RANK": str(r)}, **pipes) for r in range(size)]
    try:
        ended = [(*process.communicate(timeout=300), process.returncode) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [code for _, _, code in ended] == [0] * size, ended
    return [json.loads(states.splitlines()[-1]) for states, _, _ in ended], [errors for _, errors, _ in ended]


def run(job):
    """Execute a job on this rank; return its members' states."""
    step, done = Stepper.step, 0

    def watched(self, index, x_BD):
        nonlocal done
        done += 1
        if job.get("stop") == [rank(), done]:
            os.kill(os.getpid(), signal.SIGTERM)
        if job.get("fail") == [rank(), done]:
            raise RuntimeError("not enough memory: you tried to allocate 9 bytes")
        step(self, index, x_BD)

    Stepper.step = watched
    try:
        return [outcome.state for outcome in execute([compose(words) for words in job["points"]])]
    finally:
        Stepper.step = step


def equal(one, other):
    """Hold two runs' artefacts and last metrics together."""
    first, second = load_sae(one), load_sae(other)
    for name in ("W_enc_DF", "b_enc_F", "W_dec_FD", "b_dec_D"):
        a, b = getattr(first, name), getattr(second, name)
        assert (a - b).norm() <= 1e-4 * a.norm() + 1e-6, name
    for name, values in first.stored.items():
        torch.testing.assert_close(values, second.stored[name], rtol=1e-4, atol=1e-5)
    lines = [RunDirectory(folder).metrics()[-1] for folder in (one, other)]
    last, its = ({name: value for name, value in line.items() if name not in TIMED} for line in lines)
    assert last == pytest.approx(its, rel=1e-3, abs=1e-5)


def folders(path):
    """Return the folders of the runs below a path by seed."""
    return {found.config.seed: found.path for found in find_runs(path)}


if __name__ == "__main__":
    print(json.dumps([run(job) for job in json.loads(Path(sys.argv[1]).read_text())]))
