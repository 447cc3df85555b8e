"""Run directories: records, locks, discovery."""

import subprocess
import sys

import pytest
import torch

from sae_cli.config.identity import run_id
from sae_cli.errors import UserError
from sae_cli.files import read_json
from sae_cli.runs.directory import RunDirectory, find_runs
from sae_cli.training.execute import execute
from sae_cli.training.step import Stepper
from tests.training.points import point


@pytest.fixture
def run(tmp_path):
    made = RunDirectory(tmp_path / "default" / "abc")
    made.prepare(point(tmp_path), ["sae=relu"], "source", "abc", "cpu")
    made.set_status("running", 3, 10, "abc")
    return made


def test_configuration_and_stamp_are_written_before_work(run, tmp_path):
    assert RunDirectory(run.path).config == point(tmp_path)
    assert (run.path / "overrides.txt").read_text() == "sae=relu\n"
    assert run.fingerprint == "source"
    assert run.stamp["versions"]["torch"]
    assert run.stamp["device"] == "cpu"


def test_an_attempt_keeps_its_id_until_the_run_starts_over(run, tmp_path):
    attempt = run.stamp["attempt"]
    run.prepare(point(tmp_path), [], "source", "abc", "cpu")
    assert run.stamp["attempt"] == attempt
    run.clear()
    assert run.status["state"] == "new"
    run.prepare(point(tmp_path), [], "source", "abc", "cpu")
    assert run.stamp["attempt"] != attempt


def test_metrics_lose_lines_after_a_step_and_an_unfinished_line(run):
    for step in (10, 20, 30):
        run.append_metrics({"step": step, "loss": float("nan") if step == 10 else 1.0})
    with (run.path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 40, "lo')
    run.truncate_metrics(20)
    assert [line["step"] for line in run.metrics()] == [10, 20]
    assert run.metrics()[0]["loss"] is None


def test_a_second_process_is_told_who_holds_the_run(run):
    holder = (
        "import sys, pathlib; from sae_cli.runs.directory import RunDirectory\n"
        "with RunDirectory(pathlib.Path(sys.argv[1])).lock(): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", holder, str(run.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {process.pid} on "), run.lock():
            pass
        process.stdin.close()
    with run.lock():
        assert run.path.exists()


def test_runs_are_found_below_a_folder_and_alone(run, tmp_path):
    assert find_runs(run.path) == [run]
    assert [found.path for found in find_runs(tmp_path)] == [run.path]


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_without_runs_is_named(tmp_path, make):
    folder = tmp_path / "nothing"
    if make:
        folder.mkdir()
    with pytest.raises(UserError, match="nothing"):
        find_runs(folder)


def test_status_is_complete_json_at_all_times(run):
    run.set_status("failed", 4, 10, "abc", "because")
    status = read_json(run.path / "status.json")
    assert (status["state"], status["step"], status["error"]) == ("failed", 4, "because")


@pytest.mark.parametrize("name", ["status", "stamp", "evaluation"])
def test_a_damaged_record_is_named(run, name):
    file = run.path / {"evaluation": "eval.json"}.get(name, f"{name}.json")
    file.write_text("{")
    with pytest.raises(UserError, match=rf"{file.name}: damaged"):
        getattr(run, name)


def test_a_run_without_its_stamp_is_named(run):
    (run.path / "stamp.json").unlink()
    with pytest.raises(UserError, match=r"stamp\.json is missing"):
        assert run.fingerprint


@pytest.mark.parametrize("words", [[], ["train.precision=bf16", "train.tf32=true", "train.deterministic=true"]])
def test_the_numeric_modes_of_a_run_are_stamped_and_in_force(tmp_path, monkeypatch, words):
    """What stamp.json says is what torch was told while the run trained, and it is part of the run's identity."""
    config, seen = point(tmp_path, "train.tokens=512", "train.batch=256", *words), []
    step = Stepper.step

    def watched(self, *rest):
        modes = (torch.backends.cuda.matmul.allow_tf32, torch.are_deterministic_algorithms_enabled())
        seen.append((*modes, self.shared.train.precision))
        return step(self, *rest)

    monkeypatch.setattr(Stepper, "step", watched)
    try:
        (outcome,) = execute([config])
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cuda.matmul.allow_tf32 = False
    stamp = RunDirectory(outcome.folder).stamp
    assert [(stamp["tf32"], stamp["deterministic"], stamp["precision"])] * 2 == seen
    assert seen[0] == ((True, True, "bf16") if words else (False, False, config.train.precision))
    plain = point(tmp_path, "train.tokens=512", "train.batch=256")
    assert (run_id(config, "x") == run_id(plain, "x")) == (not words)


def test_what_a_killed_attempt_left_half_written_is_removed(run, tmp_path):
    for name in (".status.json.17.tmp", "checkpoint/.step-000000003.safetensors.17.tmp"):
        (run.path / name).parent.mkdir(exist_ok=True)
        (run.path / name).touch()
    run.prepare(point(tmp_path), [], "source", "abc", "cpu")
    assert [*run.path.glob("**/.*.tmp")] == []
