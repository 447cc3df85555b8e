"""A sweep on a real SLURM: start one with tests/slurm/start_slurm.sh, then `pytest -m slurm`."""

import subprocess
from pathlib import Path

import pytest

from sae_cli.files import read_json
from sae_cli.runs.sweep import run_sweep

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_a_sweep_runs_as_an_array_of_slurm_jobs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True).stdout.strip()
    options = ["hydra.launcher.timeout_min=10", "hydra.launcher.cpus_per_task=1"]
    result = run_sweep(["smoke", "tracker=jsonl"], launcher="submitit_slurm", launcher_options=options)
    assert [row.state for row in result.rows] == ["done"] * 4
    assert (result.failed, result.interrupted) == ([], False)
    scripts = list(Path("runs/smoke/.stacks/.submitit").glob("*/*submission.sh"))
    assert any("#SBATCH --time=10" in script.read_text() for script in scripts)
    for row in result.rows:
        stamp = read_json(row.folder / "stamp.json")
        assert any("submitit" in word for word in stamp["argv"])
        assert (row.folder / "eval.json").exists()


def test_a_point_that_fails_on_slurm_is_listed_and_the_others_finish(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs/smoke").mkdir(parents=True)
    planned = run_sweep(["smoke", "tracker=jsonl"], dry_run=True)
    # A file where a run folder should be: the stack that holds this point cannot begin.
    planned.rows[0].folder.write_text("")
    result = run_sweep(["smoke", "tracker=jsonl"], launcher="submitit_slurm")
    assert {row.run_id for row in result.failed} == {row.run_id for row in planned.rows if row.stack == 0}
    assert [row.state for row in result.rows if row.stack == 1] == ["done", "done"]
