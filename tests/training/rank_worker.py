"""One rank of a test: executes the jobs of a file in turn, as torchrun's processes would.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=... MASTER_PORT=... python -m tests.training.rank_worker JOBS

A job is {"points": [[word, ...], ...], "stop": [rank, step] or null}: the signal SIGTERM comes on that rank then.
"""

import json
import os
import signal
import sys
from pathlib import Path

from sae_cli.config.compose import compose
from sae_cli.torchrun import rank
from sae_cli.training.execute import execute
from sae_cli.training.step import Stepper

plain_step = Stepper.step


def run(job: dict) -> list[str]:
    """Execute a job; return its members' states."""
    done = 0

    def step(self, index, x_BD):
        nonlocal done
        done += 1
        if job.get("stop") == [rank(), done]:
            os.kill(os.getpid(), signal.SIGTERM)
        if job.get("fail") == [rank(), done]:
            raise RuntimeError("not enough memory: you tried to allocate 9 bytes")
        plain_step(self, index, x_BD)

    Stepper.step = step
    return [outcome.state for outcome in execute([compose(words) for words in job["points"]])]


if __name__ == "__main__":
    states = [run(job) for job in json.loads(Path(sys.argv[1]).read_text())]
    print(json.dumps(states))
