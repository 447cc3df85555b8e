"""Sweeps on a real SLURM: start one with tests/slurm/start_slurm.sh, then `pytest -m slurm`."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sae_cli.files import read_json
from sae_cli.runs.sweep import Row, run_sweep

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

BASE = [
    "source=three_features",
    "tracker=jsonl",
    "sae.latents=3",
    "train.batch=64",
    "train.precision=fp32",
    "eval.rows=256",
]
LONG = [*BASE, "train.tokens=150000", "train.log_every=20", "sae=relu,prolu_ste", "seed=1,2"]
NAME = "sae-test"
OPTIONS = ["hydra.launcher.timeout_min=60", "hydra.launcher.cpus_per_task=1", f"hydra.launcher.name={NAME}"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command("sinfo", "--noheader")
    yield
    command("scancel", f"--name={NAME}")


def command(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def start(*words: str) -> subprocess.Popen:
    """Start `sae sweep` on SLURM; its jobs are those of the returned process's queue."""
    whole = [sys.executable, "-m", "sae_cli", "sweep", *words, "--launcher", "submitit_slurm", *OPTIONS]
    return subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ))


def when_training(actions: dict[Path, list[str]]) -> None:
    """Run the command of each run folder once its run has trained some steps."""
    deadline, started = time.monotonic() + 240, []
    while actions and time.monotonic() < deadline:
        for folder in list(actions):
            if (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").stat().st_size:
                # Not waited for: scancel tries again for a minute on a job that went back to the queue meanwhile.
                started.append(subprocess.Popen(actions.pop(folder), stderr=subprocess.DEVNULL))
        time.sleep(0.1)
    assert not actions


def job_of(stack: int | None) -> str:
    """Return the id of a stack's job in the array of the sweep that was started; None: of its only one."""
    deadline = time.monotonic() + 60
    while not (jobs := command("squeue", "--noheader", "--array", "--format=%F", f"--name={NAME}").split()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return jobs[0] if stack is None else f"{jobs[0]}_{stack}"


def artefacts(runs_dir: str, rows: list[Row]) -> list[bytes]:
    return [Path(runs_dir, "default", row.run_id, "sae.safetensors").read_bytes() for row in rows]


def test_a_sweep_runs_as_an_array_of_slurm_jobs():
    options = ["hydra.launcher.timeout_min=10", "hydra.launcher.cpus_per_task=1", "hydra.launcher.array_parallelism=1"]
    result = run_sweep(["smoke", "tracker=jsonl"], launcher="submitit_slurm", launcher_options=options)
    assert [row.state for row in result.rows] == ["done"] * 4
    assert (result.failed, result.interrupted) == ([], False)
    scripts = [path.read_text() for path in Path("runs/smoke/.stacks/.submitit").glob("*/*submission.sh")]
    assert any("#SBATCH --time=10" in script and "#SBATCH --array=0-1%1" in script for script in scripts)
    for row in result.rows:
        stamp = read_json(row.folder / "stamp.json")
        assert any("submitit" in word for word in stamp["argv"])
        assert (row.folder / "eval.json").exists()


def test_a_point_that_fails_on_slurm_is_listed_and_the_others_finish():
    Path("runs/smoke").mkdir(parents=True)
    planned = run_sweep(["smoke", "tracker=jsonl"], dry_run=True)
    # A file where a run folder should be: the stack that holds this point cannot begin.
    planned.rows[0].folder.write_text("")
    result = run_sweep(["smoke", "tracker=jsonl"], launcher="submitit_slurm")
    assert {row.run_id for row in result.failed} == {row.run_id for row in planned.rows if row.stack == 0}
    assert [row.state for row in result.rows if row.stack == 1] == ["done", "done"]


def test_jobs_that_are_preempted_in_any_way_go_on_where_they_stopped():
    words = [*LONG[:-2], "sae=relu,prolu_ste,prolu_relu,jumprelu", "seed=1"]
    sweep = start(*words)
    rows = run_sweep(words, dry_run=True).rows
    ways = [["scontrol", "requeue"], *(["scancel", f"--signal={name}"] for name in ("TERM", "USR1", "USR2"))]
    when_training({row.folder: [*way, job_of(row.stack)] for row, way in zip(rows, ways, strict=True)})
    assert sweep.wait(240) == 0, sweep.stdout.read()
    for row in rows:
        log = (row.folder / "log.txt").read_text()
        assert "stopping after this step" in log
        assert "resuming 1 member(s) at step" in log
        assert (row.folder / "eval.json").exists()
    run_sweep([*words, "runs_dir=whole"], evaluate=False)
    assert artefacts("runs", rows) == artefacts("whole", rows)


def test_a_cancelled_job_stays_cancelled_and_the_same_command_goes_on():
    sweep = start(*LONG)
    rows = run_sweep(LONG, dry_run=True).rows
    when_training({rows[0].folder: ["scancel", job_of(0)]})
    assert sweep.wait(120) == 130, sweep.stdout.read()
    after = run_sweep(LONG, dry_run=True).rows
    assert [row.state for row in after] == ["interrupted", "interrupted", "done", "done"]
    assert after[0].resume_step > 0
    assert run_sweep(LONG, launcher="submitit_slurm", launcher_options=OPTIONS).failed == []
    run_sweep([*LONG, "runs_dir=whole"], evaluate=False)
    assert artefacts("runs", rows) == artefacts("whole", rows)


def test_a_sweep_that_is_submitted_twice_trains_once():
    words = [*LONG[:-2], "sae=relu", "seed=1,2"]
    first = start(*words)
    rows = run_sweep(words, dry_run=True).rows
    job = job_of(None)
    when_training({rows[0].folder: ["true"]})
    second = run_sweep(words, launcher="submitit_slurm", launcher_options=OPTIONS)
    assert "is being trained by process" in second.failed[0].error
    assert f"SLURM job {job}" in second.failed[0].error
    assert first.wait(120) == 0, first.stdout.read()
    assert [row.state for row in run_sweep(words).rows] == ["done", "done"]
    assert all((row.folder / "log.txt").read_text().count("evaluating") == 1 for row in rows)
    run_sweep([*words, "runs_dir=whole"], evaluate=False)
    assert artefacts("runs", rows) == artefacts("whole", rows)
