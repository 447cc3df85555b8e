"""Makes the files of tests/migration/NAME with the code of an earlier commit.

`python -m tests.migration.make NAME COMMIT` from the root of a checkout, once, when a format changes or a version is
released. What the commit wrote is kept as it was, but for the host in stamp.json.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from shutil import copytree, ignore_patterns, rmtree

import numpy as np

from sae_cli.files import read_json, write_json

HERE = Path(__file__).parent
KILLED = """
import os, signal, sys
from sae_cli.training import trainer
save = trainer.save_checkpoint
def saved(folder, stepper, member, step, extra):
    save(folder, stepper, member, step, extra)
    if step == 20:
        os.kill(os.getpid(), signal.SIGKILL)
trainer.save_checkpoint = saved
from sae_cli.cli import main
main()
"""
SMALL = "sae.latents=16 train.batch=32 train.tokens=1280 train.log_every=10 train.checkpoint_every=10 tracker=jsonl"
VECTORS = f"source=vectors source.path=vectors.npy cache.tokens=320 cache.validation_tokens=16 {SMALL}"
TEXT = "model=tiny model.context=16 cache.tokens=32 cache.validation_tokens=16 eval.contexts=4 text.max_documents=40"
RUNS = {
    "vectors": f"{VECTORS} sae=prolu_ste orthogonality=chunked",
    "features": f"experiment=three_features {SMALL}",
    "text": f"{TEXT} {SMALL} train.tokens=320",
    "whole": f"{VECTORS} sae=prolu_relu",
    "killed": f"{VECTORS} sae=prolu_relu",
}


def make(name: str, commit: str) -> None:
    """Write HERE/name."""
    with tempfile.TemporaryDirectory() as folder:
        code, work = Path(folder, "code"), Path(folder, "work")
        subprocess.run(["git", "worktree", "add", "-q", "--detach", str(code), commit], check=True)
        try:
            for package in ("conf", "sweeps"):
                (code / "sae_cli" / package).symlink_to(f"../{package}")
            work.mkdir()
            np.save(work / "vectors.npy", np.random.default_rng(0).standard_normal((400, 8)).astype(np.float32))
            environment = os.environ | {"PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
            for run, words in RUNS.items():
                start = ["-c", KILLED] if run == "killed" else ["-m", "sae_cli"]
                command = [sys.executable, *start, "train", *words.split(), f"name={run}"]
                subprocess.run(command, cwd=work, env=environment, check=run != "killed")
            done = [f"runs/{run}" for run in RUNS if run != "killed"]
            subprocess.run([sys.executable, "-m", "sae_cli", "eval", *done], cwd=work, env=environment, check=True)
            for checkpoint in (work / "runs").glob("*/*/cfg.json"):
                rmtree(checkpoint.with_name("checkpoint"))
            for stamp in (work / "runs").glob("*/*/stamp.json"):
                write_json(stamp, read_json(stamp) | {"host": "host", "argv": []})
            copytree(work, HERE / name, ignore=ignore_patterns(".lock", "log.txt"))
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(code)], check=True)


if __name__ == "__main__":
    make(*sys.argv[1:])
