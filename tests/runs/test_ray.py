"""Sweeps on a local Ray of two processors: the same results, failures and interruptions of single stacks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sae_cli.errors import UserError
from sae_cli.runs.sweep import run_sweep

ray = pytest.importorskip("ray")
pytest.importorskip("hydra_plugins.hydra_ray_launcher")
pytestmark = pytest.mark.slow

OPTIONS = ["hydra.launcher.ray.init.num_cpus=2", "hydra.launcher.ray.init.include_dashboard=false"]
BASE = [
    "source=three_features",
    "tracker=jsonl",
    "sae.latents=3",
    "train.batch=64",
    "train.precision=fp32",
    "eval.rows=256",
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else Ray leaves a key in the home folder
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_results_are_those_of_the_basic_launcher_and_a_stack_that_fails_stops_no_other():
    words = [*BASE, "train.tokens=4096", "sae=relu,prolu_ste,prolu_relu", "seed=1,2"]
    alone = run_sweep([*words, "runs_dir=alone"])
    rows = run_sweep(words, dry_run=True).rows
    rows[0].folder.parent.mkdir(parents=True)
    rows[0].folder.write_text("")  # a file where a run folder should be: the first stack cannot begin
    result = run_sweep(words, launcher="ray", launcher_options=OPTIONS)
    assert not ray.is_initialized()
    assert [row.state for row in result.rows] == ["failed"] * 2 + ["done"] * 4
    rows[0].folder.unlink()
    assert run_sweep(words, launcher="ray", launcher_options=OPTIONS).failed == []
    for one, other in zip(alone.rows, rows, strict=True):
        for name in ("sae.safetensors", "eval.json"):
            texts = [(folder / name).read_bytes() for folder in (one.folder, other.folder)]
            assert texts[0].replace(b"alone/", b"runs/") == texts[1], name


def test_tasks_save_a_checkpoint_when_the_sweep_is_interrupted():
    words = [*BASE, "train.tokens=4000000", "sae=relu,prolu_ste", "seed=1,2"]
    command = [sys.executable, "-m", "sae_cli", "sweep", *words, "--launcher", "ray", *OPTIONS]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=dict(os.environ), start_new_session=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(list(Path("runs").glob("default/*/metrics.jsonl"))) < 4:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)  # as Ctrl-C, but that Ray has a handler of its own for it
    assert process.wait(60) == 130
    rows = run_sweep(words, dry_run=True).rows
    assert [row.state for row in rows] == ["interrupted"] * 4
    assert all(0 < row.resume_step < 62500 for row in rows)


@pytest.mark.parametrize("option", ["init.nothing=1", "remote.nothing=1", "nothing=1"])
def test_an_option_that_ray_refuses_is_a_user_error(option):
    with pytest.raises(UserError, match="launcher ray: "):
        run_sweep([*BASE, "seed=1"], launcher="ray", launcher_options=[*OPTIONS, f"hydra.launcher.ray.{option}"])
    assert not ray.is_initialized()
