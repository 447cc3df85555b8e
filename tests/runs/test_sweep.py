"""Sweeps: all points checked before any starts, stacks, skipping, failures, interruptions, launchers."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from sae_cli import doctor
from sae_cli.errors import UserError
from sae_cli.files import read_json, short_hash, write_json
from sae_cli.runs import sweep
from sae_cli.runs.sweep import plan_sweep, read_points, run_sweep
from sae_cli.training import execute as training
from sae_cli.training.execute import Outcome, PointPlan

BASE = ["source=three_features", "tracker=jsonl", "sae.latents=3"]
TINY = [*BASE, "train.tokens=512", "train.batch=64", "train.precision=fp32", "eval.rows=256"]


@dataclass
class Call:
    seeds: list[int]
    fresh: bool
    evaluate: bool
    overrides: list[list[str]]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def calls(monkeypatch) -> list[Call]:
    """Replace training by a record of calls. Seed 13 fails, seed 14 breaks its stack, seed 15 is interrupted."""
    made: list[Call] = []

    def plan(config):
        run_id = short_hash([config.seed, config.sae.nonlinearity, config.sparsity.weight])
        folder = Path(config.runs_dir) / config.name / run_id
        status = folder / "status.json"
        state, step = read_json(status).values() if status.exists() else ("new", 0)
        return PointPlan(run_id, folder, config.sae.nonlinearity, state, step, 10, 100)

    def execute(configs, *, fresh, evaluate, overrides):
        made.append(Call([config.seed for config in configs], fresh, evaluate, overrides))
        if any(config.seed == 14 for config in configs):
            raise UserError("disk full")
        outcomes = []
        for config in configs:
            state = {13: "failed", 15: "interrupted"}.get(config.seed, "done")
            point = plan(config)
            write_json(point.folder / "status.json", {"state": state, "step": 7})
            if state == "done" and evaluate:
                write_json(point.folder / "eval.json", {})
            outcomes.append(Outcome(point.run_id, point.folder, state, "boom" if state == "failed" else ""))
        return outcomes

    monkeypatch.setattr(training, "plan_point", plan)
    monkeypatch.setattr(training, "execute", execute)
    return made


def states(result: sweep.SweepResult) -> list[str]:
    return [row.state for row in result.rows]


def test_points_of_one_kind_share_a_stack(calls):
    result = run_sweep([*BASE, "sae=relu,prolu_ste", "seed=1,2"])
    assert [call.seeds for call in calls] == [[1, 2], [1, 2]]
    assert calls[0].overrides[1] == [*BASE, "sae=relu", "seed=2"]
    assert [row.stack for row in result.rows] == [0, 0, 1, 1]
    assert (states(result), result.failed, result.interrupted) == (["done"] * 4, [], False)
    assert result.folder == Path("runs/default")
    assert not Path("multirun").exists()
    assert not Path("outputs").exists()


def test_finished_points_are_skipped_and_fresh_trains_them_again(calls):
    run_sweep([*BASE, "seed=1,2"])
    result = run_sweep([*BASE, "seed=1,2,3"])
    assert calls[1].seeds == [3]
    assert [row.stack for row in result.rows] == [None, None, 0]
    run_sweep([*BASE, "seed=1,2"], fresh=True)
    assert (calls[2].seeds, calls[2].fresh) == ([1, 2], True)


def test_a_finished_point_without_an_evaluation_is_evaluated(calls):
    run_sweep([*BASE, "seed=1,2"], evaluate=False)
    run_sweep([*BASE, "seed=1,2"], evaluate=False)
    assert [call.evaluate for call in calls] == [False]
    run_sweep([*BASE, "seed=1,2"])
    assert [call.evaluate for call in calls] == [False, True]


def test_a_failed_point_does_not_stop_the_others_and_is_the_only_one_to_run_again(calls):
    result = run_sweep([*BASE, "sae=relu,prolu_ste", "seed=1,13"])
    assert [(row.overrides[-1], row.error) for row in result.failed] == [("seed=13", "boom")] * 2
    run_sweep([*BASE, "sae=relu,prolu_ste", "seed=1,13"])
    assert [call.seeds for call in calls] == [[1, 13], [1, 13], [13], [13]]


def test_a_stack_that_breaks_does_not_stop_the_others(calls):
    result = run_sweep([*BASE, "sae=relu,prolu_ste,prolu_relu", "seed=14", "sae.bias_init=0"])
    assert len(calls) == 3
    assert [row.error for row in result.failed] == ["disk full"] * 3


def test_an_interrupted_stack_is_the_last_to_start(calls):
    result = run_sweep([*BASE, "sae=relu,prolu_ste", "seed=1,15"])
    assert len(calls) == 1
    assert (result.interrupted, states(result)) == (True, ["done", "interrupted", "new", "new"])
    assert result.failed == []


def test_points_that_go_on_and_points_that_begin_are_not_in_one_stack(calls):
    run_sweep([*BASE, "seed=13,15"])
    run_sweep([*BASE, "seed=1,13,15,2"])
    assert [call.seeds for call in calls[1:]] == [[1, 2], [13, 15]]


def test_dry_run_trains_nothing_and_writes_nothing(calls, tmp_path):
    result = run_sweep([*BASE, "sae=relu,prolu_ste"], dry_run=True)
    assert [(row.state, row.stack, row.parameters, row.memory_bytes) for row in result.rows] == [
        ("new", 0, 10, 100),
        ("new", 1, 10, 100),
    ]
    assert calls == []
    assert list(tmp_path.iterdir()) == []


def test_all_problems_of_all_points_are_told_before_any_starts(calls):
    with pytest.raises(UserError) as caught:
        run_sweep([*BASE, "train.tokens=-1,100000", "train.lr=1e-3,x", "train.batch=64"])
    message = str(caught.value)
    assert "point 1 (" in message
    assert "train.tokens=-1" in message
    assert "train.lr=x" in message
    assert calls == []


def test_a_problem_that_many_points_share_is_told_once(calls):
    with pytest.raises(UserError) as caught:
        run_sweep([*BASE, "seed=1,2,3", "train.lrr=1"])
    assert str(caught.value).count("unknown key") == 1
    assert "and 2 more" in str(caught.value)


def test_equal_points_run_once(calls):
    result = run_sweep([*BASE, "seed=1,1"])
    assert (len(result.rows), calls[0].seeds) == (1, [1])


@pytest.mark.parametrize("words", [["name=a,b"], ["runs_dir=a,b", "seed=1,2"]])
def test_several_places_for_one_run_are_refused(calls, words):
    with pytest.raises(UserError, match="are one run: give one `name`"):
        run_sweep([*BASE, *words])
    assert calls == []


def test_large_groups_are_cut_into_stacks(calls):
    rows, stacks = plan_sweep(read_points([*BASE, "seed=range(7)"]), max_members=3)
    assert [len(stack) for stack in stacks] == [3, 3, 1]
    assert [row.stack for row in rows] == [0, 0, 0, 1, 1, 1, 2]


def test_a_file_names_its_sweep_unless_the_line_does(calls):
    Path("mine.yaml").write_text("method: grid\nparameters: {seed: {values: [1, 2]}, source: {value: three_features}}")
    assert run_sweep(["mine.yaml", "sae.latents=3"]).folder == Path("runs/mine")
    assert run_sweep(["mine.yaml", "sae.latents=3", "name=other", "seed=5"]).folder == Path("runs/other")
    assert [call.seeds for call in calls] == [[1, 2], [5]]


def test_odd_folder_names_reach_the_jobs(calls):
    run_sweep([*BASE, "seed=1,2", "runs_dir='a, b=it\\'s'"])
    assert calls[0].seeds == [1, 2]
    assert Path("a, b=it's/default/.stacks").is_dir()


@pytest.mark.parametrize(
    ("launcher", "options", "message"),
    [
        ("slurm", [], "not one of .*submitit_slurm"),
        ("joblib", [], r"sae-cli\[joblib\]"),
        ("submitit_slurm", [], r"sae-cli\[slurm\]"),
        ("basic", ["timeout_min=3"], "hydra.launcher.KEY=VALUE"),
    ],
)
def test_launchers_that_cannot_work_are_refused_at_once(calls, monkeypatch, launcher, options, message):
    monkeypatch.setattr(doctor, "EXTRAS", dict.fromkeys(doctor.EXTRAS, "missing.plugin"))
    with pytest.raises(UserError, match=message):
        run_sweep([*BASE, "seed=1,2"], launcher=launcher, launcher_options=options)
    assert calls == []


def test_a_launcher_option_that_hydra_refuses_is_a_user_error(calls, capfd):
    with pytest.raises(UserError, match=r"launcher basic"):
        run_sweep([*BASE, "seed=1,2"], launcher_options=["hydra.launcher.nothing=1"])
    assert calls == []


def test_without_words_it_says_what_to_give():
    with pytest.raises(UserError, match="grid file"):
        run_sweep([])


@pytest.mark.parametrize("launcher", ["basic", pytest.param("joblib", marks=pytest.mark.slow)])
def test_a_real_sweep_trains_and_evaluates(launcher):
    result = run_sweep([*TINY, "sae=relu,prolu_ste", "sparsity.weight=1,2"], launcher=launcher)
    assert states(result) == ["done"] * 4
    for row in result.rows:
        assert (row.folder / "sae.safetensors").exists()
        assert read_json(row.folder / "eval.json")["version"] == 1
    assert [row.stack for row in run_sweep([*TINY, "sae=relu", "sparsity.weight=1,2"]).rows] == [None, None]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_sweep_and_the_next_one_goes_on(number):
    words = [*BASE, "train.tokens=4000000", "train.batch=64", "train.precision=fp32", "sae=relu,prolu_ste", "seed=1,2"]
    code = "import sys, sae_cli.runs.sweep as s; r = s.run_sweep(sys.argv[1:]); sys.exit(130 if r.interrupted else 0)"
    process = subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.PIPE, env=dict(os.environ))
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(Path("runs").glob("default/*/metrics.jsonl")):
        time.sleep(0.2)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 130
    rows = run_sweep(words, dry_run=True).rows
    assert [row.state for row in rows] == ["interrupted", "interrupted", "new", "new"]
    assert all(row.resume_step > 0 for row in rows[:2])
