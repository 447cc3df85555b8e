"""N steps = some steps + SIGKILL + the rest, bit for bit."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from sae_cli.training.checkpoint import checkpoint_file, saved_steps
from sae_cli.training.execute import execute
from sae_cli.training.step import Stepper
from tests.training.points import SMALL, point

RESAMPLED = ["train.dead_after=400", "train.resample_at=[0.3,0.6]", "train.resample_rows=500", "sae.bias_init=-0.3"]

KILLED = """
import itertools, os, signal, sys
from sae_cli.config.compose import compose
from sae_cli.training.execute import execute
from sae_cli.training.step import Stepper

members, kill_at, words = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
step, done = Stepper.step, itertools.count()

def killing(self, index, x):
    if next(done) == kill_at:
        os.kill(os.getpid(), getattr(signal, os.environ["KILL"]))
    step(self, index, x)

Stepper.step = killing
outcomes = execute([compose([*words, f"sparsity.weight={0.5 * (k + 1)}", f"seed={k}"]) for k in range(members)])
sys.exit(0 if all(outcome.state == "interrupted" for outcome in outcomes) else 9)
"""


def points(folder, members, *words):
    return [point(folder, *words, f"sparsity.weight={0.5 * (k + 1)}", f"seed={k}") for k in range(members)]


def last_state(outcome):
    return load_file(checkpoint_file(outcome.folder / "checkpoint", 40))


def run_and_kill(folder, members, kill_at, name, words):
    command = [sys.executable, "-c", KILLED, str(members), str(kill_at), *SMALL, *words, f"runs_dir={folder}"]
    threads = str(torch.get_num_threads())
    environment = {"KILL": name, "PATH": "", "HOME": str(folder), "OMP_NUM_THREADS": threads}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(("name", "code", "members", "sparse"), [
    ("SIGKILL", -9, 1, "auto"), ("SIGKILL", -9, 4, "auto"), ("SIGTERM", 0, 1, "auto"), ("SIGTERM", 0, 4, "auto"),
    ("SIGKILL", -9, 2, "sparse"),
])  # fmt: skip
def test_interrupted_training_ends_bit_for_bit_as_uninterrupted(tmp_path, members, name, code, sparse):
    words = [*RESAMPLED, "train.checkpoint_every=17", f"train.sparse={sparse}"]
    whole = execute(points(tmp_path / "whole", members, *words))
    done = run_and_kill(tmp_path / "parts", members, 23, name, words)
    assert done.returncode == code, done.stderr
    resumed = execute(points(tmp_path / "parts", members, *words))
    for expected, outcome in zip(whole, resumed, strict=True):
        assert outcome.state == "done"
        assert saved_steps(outcome.folder / "checkpoint")[-1] == 40
        one, other = last_state(expected), last_state(outcome)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert artefact(expected) == artefact(outcome)
        assert values(expected) == values(outcome)


def test_a_run_killed_in_a_later_stage_ends_bit_for_bit_as_uninterrupted(tmp_path):
    words = ["sae.grow=[20,12]", "train.checkpoint_every=13"]
    whole = execute(points(tmp_path / "whole", 2, *words))
    assert run_and_kill(tmp_path / "parts", 2, 30, "SIGKILL", words).returncode == -9
    resumed = execute(points(tmp_path / "parts", 2, *words))
    assert [artefact(outcome) for outcome in whole] == [artefact(outcome) for outcome in resumed]
    assert [values(outcome) for outcome in whole] == [values(outcome) for outcome in resumed]


class Killed(BaseException):
    """What `except Exception` does not see, as a SIGKILL; cheaper than a process."""


def killed_and_resumed(monkeypatch, configs):
    """Execute points that are killed before step 23, then again to their end."""
    step = Stepper.step

    def killing(self, index, x_BD):
        if index == 23:
            raise Killed
        step(self, index, x_BD)

    with monkeypatch.context() as patched:
        patched.setattr(Stepper, "step", killing)
        with pytest.raises(Killed):
            execute(configs)
    return execute(configs)


@pytest.mark.parametrize("kind", ["cells", "unique_nearest", "neighbours", "rica", "decomposable"])
def test_what_a_penalty_keeps_is_resumed(tmp_path, kind, monkeypatch):
    """The end falls between two refreshes, so what was kept at the last one must come from the checkpoint."""
    words = [f"orthogonality={kind}", "orthogonality.chunk=10", "orthogonality.refresh=10", "orthogonality.meta_k=1"]
    words += ["train.checkpoint_every=17", "train.lr=1e-2"]
    whole = execute(points(tmp_path / "whole", 2, *words))
    resumed = killed_and_resumed(monkeypatch, points(tmp_path / "parts", 2, *words))
    for expected, outcome in zip(whole, resumed, strict=True):
        one, other = last_state(expected), last_state(outcome)
        assert saved_steps(outcome.folder / "checkpoint") == [34, 40]
        kept = [name for name in one if name.startswith("penalty.")]
        assert kept
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert values(expected) == values(outcome)


def artefact(outcome):
    return (outcome.folder / "sae.safetensors").read_bytes()


def values(outcome):
    lines = [json.loads(line) for line in (outcome.folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second", "data_wait")} for line in lines]


@pytest.mark.parametrize(
    "words",
    [
        ("sae=batchtopk", "sae.k=3", "sae.auxk_latents=4", "sae.bias_init=-0.3"),
        ("sae=jumprelu", "sae.preact_weight=0.01"),
        ("sae=gated", "sparsity.weight=0.5"),
        ("sae=relu", "sparsity.target_l0=3", "sparsity.target_rate=0.01", "train.precision=bf16"),
        ("sae.freeze_decoder=true", "orthogonality.weight=0", "train.resample_at=[]"),
    ],
    ids=lambda words: words[0],
)
def test_what_a_method_keeps_between_steps_survives_a_kill(tmp_path, monkeypatch, words):
    words = (*RESAMPLED[:3], "train.checkpoint_every=17", *words)
    (whole,) = execute([point(tmp_path / "whole", *words)])
    (resumed,) = killed_and_resumed(monkeypatch, [point(tmp_path / "parts", *words)])
    one, other = last_state(whole), last_state(resumed)
    assert saved_steps(resumed.folder / "checkpoint") == [34, 40]
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert artefact(whole) == artefact(resumed)
    assert values(whole) == values(resumed)


def test_resampling_happens_in_these_runs(tmp_path):
    with_resampling = execute(points(tmp_path, 1, *RESAMPLED))
    without = execute(points(tmp_path, 1, *RESAMPLED[:1], *RESAMPLED[2:], "train.resample_at=[]"))
    assert artefact(with_resampling[0]) != artefact(without[0])


def test_a_finished_point_is_skipped_and_fresh_starts_over(tmp_path):
    config = point(tmp_path)
    assert [outcome.state for outcome in execute([config])] == ["done"]
    before = artefact(execute([config])[0])
    assert execute([config])[0].state == "skipped"
    again = execute([config], fresh=True)[0]
    assert again.state == "done"
    assert artefact(again) == before


def test_members_one_checkpoint_apart_resume_from_the_common_one(tmp_path):
    words = ["train.checkpoint_every=10"]
    whole = execute(points(tmp_path / "whole", 2, *words))
    assert run_and_kill(tmp_path / "parts", 2, 23, "SIGKILL", words).returncode == -9
    folders = sorted((tmp_path / "parts" / "default").iterdir())
    checkpoint_file(folders[0] / "checkpoint", 20).unlink()
    resumed = execute(points(tmp_path / "parts", 2, *words))
    assert [artefact(outcome) for outcome in whole] == [artefact(outcome) for outcome in resumed]
