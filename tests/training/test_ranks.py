"""Several processes train what one trains: rows or latents shared out, checkpoints for any number of them."""

import json
import os
import subprocess
import sys

import pytest
import torch

from sae_cli.dictionary import stack
from sae_cli.runs.directory import RunDirectory
from sae_cli.training.checkpoint import saved_steps
from sae_cli.training.execute import execute
from sae_cli.training.step import Stepper
from tests.training.points import SMALL, point
from tests.training.ranks import equal, folders, launch

TWENTY = ["train.tokens=1600", "train.dead_after=400"]
RESAMPLED = ["train.resample_at=[0.5]", "train.resample_rows=300", "sae.bias_init=-0.3"]
REVIVED = ["sae.auxk_weight=0.1", "sae.auxk_latents=4", "train.dead_after=200"]
CASES = {
    "relu": ["sae=relu", *RESAMPLED, "orthogonality=nearest", "orthogonality.weight=0.3"],
    "prolu": ["sae=prolu_ste", "train.clip=0.5", "orthogonality.weight=0.3"],
    "topk": [
        "sae=topk",
        "sae.k=3",
        *REVIVED,
        "orthogonality=neighbours",
        "orthogonality.search_rows=0",
        "orthogonality.weight=0.3",
    ],
    "batchtopk": ["sae=batchtopk", "sae.k=3", "orthogonality=nearest", "orthogonality.weight=0.3"],
    "jumprelu": ["sae=jumprelu", "sae.preact_weight=0.01", "orthogonality=active_only", "orthogonality.weight=0.3"],
    "gated": ["sae=gated", "sae.prefixes=[0.3]", "sae.decoder_norm=free"],
    "target": ["sae=relu", "sparsity.target_l0=3", "sparsity.target_rate=0.01", "sae.decoder_init=data"],
}
"""Every nonlinearity with another way of being shared out, and every penalty that can be."""
ROWS_ONLY = {"grow": ["sae.grow=[12,20]", "orthogonality=rica", "orthogonality.weight=0.1"]}


def members(folder, name, *words):
    """Return the words of two members of a case."""
    case = [*SMALL, *TWENTY, *(CASES | ROWS_ONLY)[name], *words, f"runs_dir={folder / name}"]
    return [[*case, f"seed={k}", f"train.lr={1e-3 * (k + 1)}"] for k in range(2)]


def here(folder, name, *words):
    """Execute the same in this process; return the states."""
    cut = len(SMALL)
    return [o.state for o in execute([point(folder / name, *case[cut:]) for case in members(folder, name, *words)])]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The cases trained by this process."""
    folder = tmp_path_factory.mktemp("alone")
    for name in (*CASES, *ROWS_ONLY):
        here(folder, name)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("way", "size"), [("rows", 2), ("latents", 2), ("rows", 4), ("latents", 4)])
def test_ranks_end_where_one_process_does_and_one_of_them_speaks(tmp_path, alone, way, size):
    names = [*CASES, *(ROWS_ONLY if way == "rows" else ())] if size == 2 else ["topk", "batchtopk"]
    states, said = launch(
        tmp_path, size, [{"points": members(tmp_path, name, f"train.parallel={way}")} for name in names]
    )
    assert states == [[["done"] * 2] * len(names)] * size
    assert said[1:] == [""] * (size - 1)
    for name in names:
        theirs = folders(tmp_path / name)
        for seed, run in folders(alone / name).items():
            assert RunDirectory(theirs[seed]).stamp["ranks"] == size
            assert run.name == theirs[seed].name
            equal(run, theirs[seed])


class Killed(BaseException):
    """What `except Exception` does not see, as a SIGKILL."""


def kill_at(monkeypatch, at, run):
    """Run until a step is about to begin."""
    step = Stepper.step

    def killing(self, index, x_BD):
        if index == at:
            raise Killed
        step(self, index, x_BD)

    with monkeypatch.context() as patched:
        patched.setattr(Stepper, "step", killing)
        with pytest.raises(Killed):
            run()


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_ranks(tmp_path, alone, monkeypatch):
    """One process begins and two ranks end; two ranks are stopped by a signal on one, and one process or rows end."""
    words, by_latents = ["train.checkpoint_every=7"], "train.parallel=latents"
    for name in ("prolu", "topk"):
        kill_at(monkeypatch, 9, lambda: here(tmp_path / "begun", name, *words))  # noqa: B023 (called at once)
    jobs = [{"points": members(tmp_path / "begun", name, *words, by_latents)} for name in ("prolu", "topk")]
    jobs += [{"points": members(tmp_path / "stopped", "topk", by_latents), "stop": [1, 9]}]
    jobs += [{"points": members(tmp_path / "rows", "prolu"), "stop": [1, 9]}]
    states, _ = launch(tmp_path, 2, jobs)
    assert states == [[["done"] * 2] * 2 + [["interrupted"] * 2] * 2] * 2
    for run in folders(tmp_path / "stopped").values():
        assert RunDirectory(run).status["step"] == 9
        assert saved_steps(run / "checkpoint") == [9]
    assert here(tmp_path / "stopped", "topk") == ["done"] * 2
    assert here(tmp_path / "rows", "prolu") == ["done"] * 2
    for folder, name in (("begun", "prolu"), ("begun", "topk"), ("stopped", "topk"), ("rows", "prolu")):
        theirs = folders(tmp_path / folder / name)
        for seed, run in folders(alone / name).items():
            equal(run, theirs[seed])


@pytest.mark.slow
@pytest.mark.parametrize("way", ["rows", "latents"])
def test_a_member_that_goes_non_finite_is_frozen_on_all_ranks_and_a_failure_ends_all(tmp_path, alone, way):
    words = members(tmp_path, "prolu", f"train.parallel={way}")
    broken = [words[0], [*words[1], "train.lr=1e30", "train.warmup=0"]]
    failing = [[*words[0][:-2], "seed=5", f"train.parallel={way}"]]
    states, said = launch(tmp_path, 2, [{"points": broken}, {"points": failing, "fail": [1, 4]}])
    assert states == [[["done", "failed"], ["failed"]]] * 2
    runs = folders(tmp_path / "prolu")
    equal(folders(alone / "prolu")[0], runs[0])
    assert "non-finite" in RunDirectory(runs[1]).status["error"]
    status = RunDirectory(runs[5]).status
    assert status["state"] == "failed"
    assert status["error"].startswith("rank 1: out of memory: set train.memory_bytes=")
    assert status["error"] in said[1]


@pytest.mark.slow
def test_torchrun_trains_one_point_and_refuses_what_does_not_divide(tmp_path):
    def run(*words):
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "sae_cli", *words]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)

    words = [*SMALL, "train.tokens=1600", f"runs_dir={tmp_path}"]
    done = run("train", *words, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "done"
    assert done.stderr.count("step 20/20") == 1
    refused = run("train", *words, "train.batch=81")
    assert refused.returncode == 1
    assert refused.stderr.count("error: train.batch=81 cannot be shared out to 2 ranks") == 1
    assert "exitcode  : 2" in refused.stderr


def test_a_share_of_the_initial_directions_is_cut_from_the_same_draws(monkeypatch):
    whole = torch.randn(70, 5, generator=torch.Generator().manual_seed(3))
    monkeypatch.setattr(stack, "DRAWN", 160)
    for own in (slice(0, 35), slice(35, 70), slice(16, 33)):
        rows = stack.draw_rows(70, 5, own, torch.Generator().manual_seed(3))
        assert torch.equal(rows, whole[own])
