"""The Hydra application: stack jobs leave their outcomes in files, points run as plain Hydra jobs."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sae_cli.config.compose import compose
from sae_cli.config.convert import to_dict
from sae_cli.errors import UserError
from sae_cli.files import read_json, write_json
from sae_cli.runs.launch import result_path, run_point, run_stack
from sae_cli.runs.sweep import run_sweep
from sae_cli.training import execute as training
from sae_cli.training.execute import Outcome

WORDS = ["source=three_features", "tracker=jsonl", "sae.latents=3"]


@pytest.fixture
def stack_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    points = [{"config": to_dict(compose([*WORDS, f"seed={seed}"])), "overrides": [f"seed={seed}"]} for seed in (1, 2)]
    path = tmp_path / "s.json"
    write_json(path, {"fresh": True, "evaluate": False, "points": points})
    return path


def outcome(run_id: str, state: str, error: str = "") -> Outcome:
    return Outcome(run_id, Path(run_id), state, error)


def test_a_stack_job_passes_its_points_on_and_writes_their_outcomes(stack_file, monkeypatch, caplog):
    seen = {}

    def execute(configs, **options):
        seen.update(options, seeds=[config.seed for config in configs])
        return [outcome("a", "done"), outcome("b", "failed", "boom")]

    monkeypatch.setattr(training, "execute", execute)
    assert run_stack(stack_file) is False
    assert seen == {"seeds": [1, 2], "fresh": True, "evaluate": False, "overrides": [["seed=1"], ["seed=2"]]}
    assert read_json(result_path(stack_file)) == {
        "a": {"state": "done", "error": ""},
        "b": {"state": "failed", "error": "boom"},
    }
    assert "point b failed: boom" in caplog.text


@pytest.mark.parametrize(("error", "text"), [(UserError("disk full"), "disk full"), (KeyError("k"), "KeyError: 'k'")])
def test_an_error_of_a_whole_stack_is_written_and_not_raised(stack_file, monkeypatch, error, text):
    def execute(configs, **options):
        raise error

    monkeypatch.setattr(training, "execute", execute)
    run_stack(stack_file)
    assert read_json(result_path(stack_file)) == {"": {"state": "failed", "error": text}}


def test_an_interrupted_stack_says_so_and_does_not_start_over_when_it_is_queued_again(stack_file, monkeypatch):
    fresh = []

    def execute(configs, **options):
        fresh.append(options["fresh"])
        return [outcome("a", "interrupted"), outcome("b", "done")]

    monkeypatch.setattr(training, "execute", execute)
    assert run_stack(stack_file) is True
    assert run_stack(stack_file) is True
    assert read_json(result_path(stack_file))["a"]["state"] == "interrupted"
    assert fresh == [True, False]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_before_training_interrupts_the_stack_and_handlers_come_back(stack_file, monkeypatch, number):
    monkeypatch.setattr(training, "open_source", lambda *arguments: signal.raise_signal(number))
    before = signal.getsignal(number)
    assert run_stack(stack_file) is True
    assert read_json(result_path(stack_file)) == {"": {"state": "interrupted", "error": ""}}
    states = [read_json(path)["state"] for path in Path("runs").glob("default/*/status.json")]
    assert states == ["interrupted"] * 2
    assert signal.getsignal(number) is before


def test_a_slurm_job_gets_what_the_launcher_options_ask_for(tmp_path, monkeypatch, capfd):
    """A submission that fails leaves its script; the plugin needs to find srun."""
    for name, text in {"srun": "", "sbatch": f"cp $1 {tmp_path}/script; exit 1"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    options = ["gpus_per_node=1", "array_parallelism=2", "additional_parameters.nice=5"]
    words = [*WORDS, "sae=relu,prolu_ste,prolu_relu"]
    with pytest.raises(UserError, match="Hydra ran no stack"):
        run_sweep(words, launcher="submitit_slurm", launcher_options=[f"hydra.launcher.{word}" for word in options])
    script = (tmp_path / "script").read_text()
    for line in ("--gpus-per-node=1", "--array=0-2%2", "--nice=5", "--signal=USR2@120"):
        assert f"#SBATCH {line}\n" in script


def test_a_point_is_checked_trained_and_evaluated(monkeypatch):
    seen = []

    def execute(configs, **options):
        seen.append((configs[0].seed, options))
        return [outcome("a", "failed" if configs[0].seed else "done", "boom")]

    monkeypatch.setattr(training, "execute", execute)
    values = to_dict(compose(WORDS))
    run_point(values, ["x=1"])
    assert seen == [(0, {"evaluate": True, "overrides": [["x=1"]]})]
    with pytest.raises(UserError, match="boom"):
        run_point({**values, "seed": 1}, [])
    with pytest.raises(UserError, match=r"train\.tokens"):
        run_point({**values, "train": {**values["train"], "tokens": -1}}, [])
    with pytest.raises(UserError, match="unknown key"):
        run_point({**values, "sead": 1}, [])


@pytest.mark.slow
def test_it_is_a_plain_hydra_application(tmp_path):
    words = [*WORDS, "sae=relu,prolu_ste", "train.tokens=512", "train.batch=64", "train.precision=fp32"]
    command = [sys.executable, "-m", "sae_cli.runs.launch", "-m", *words, "eval.rows=64", "name=expert"]
    ended = subprocess.run(command, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert len(list(tmp_path.glob("runs/expert/*/eval.json"))) == 2
    bad = subprocess.run([*command, "train.tokens=-1"], cwd=tmp_path, capture_output=True, text=True)
    assert bad.returncode == 1
    assert bad.stdout.count("train.tokens=-1 is outside") + bad.stderr.count("train.tokens=-1 is outside") >= 2
