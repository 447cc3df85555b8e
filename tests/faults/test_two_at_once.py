"""Two processes on one run, one folder of runs or one cache, and one that is told to end: nothing is mixed or lost."""

import os
import re
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from sae_cli.runs.directory import find_runs
from tests.faults.conftest import MIXED, SWEEP, TRAIN, last_lines, same
from tests.faults.processes import output, pause, run, start, wait_for
from tests.faults.test_kill import TINY, left

pytestmark = pytest.mark.slow
Whole = dict[str, bytes]
GRACE = 10.0
"""Seconds that a scheduler leaves between SIGTERM and SIGKILL at least (Kubernetes, Slurm: 30)."""


@pytest.mark.parametrize("further", [[], ["--fresh"]], ids=["", "fresh"])
def test_a_second_training_of_a_run_is_told_of_the_first_and_disturbs_nothing(
    folder: Path, whole: Whole, further: list[str]
) -> None:
    first = start([*TRAIN, *MIXED], folder, partial(pause, 8))
    wait_for(folder / "paused")
    assert run([*TRAIN, *MIXED, *further], folder) == 2
    line = rf"error: runs/default/\w+ is being trained by process {first.pid} on \S+; wait for it or stop it"
    assert re.search(line, output(folder))
    (folder / "go").touch()
    first.join(60)
    assert first.exitcode == 0
    assert same(folder, whole)


def test_two_sweeps_of_one_folder(folder: Path, whole: Whole) -> None:
    first = start(SWEEP, folder, partial(pause, 8))
    wait_for(folder / "paused")
    second = [word.replace("weight=0.5,1", "weight=1,2") for word in SWEEP]
    assert run(second, folder) == 1
    assert f"is being trained by process {first.pid}" in last_lines(folder)
    (folder / "go").touch()
    first.join(60)
    assert first.exitcode == 0
    found = left(folder)
    shared = [name for name in found.keys() & whole.keys() if name.endswith("sae.safetensors")]
    assert [found[name] == whole[name] for name in shared] == [True, True]
    assert run(second, folder) == 0  # the point of both and the second's own
    assert [one.status["state"] for one in find_runs(folder / "runs")] == ["done"] * 3


def test_sweeps_that_begin_at_the_same_moment(folder: Path, whole: Whole) -> None:
    both = [start(SWEEP, folder) for _ in range(2)]
    for process in both:
        process.join(90)
    assert 0 in {process.exitcode for process in both} <= {0, 1}
    assert "Traceback" not in output(folder)
    assert same(folder, whole)


def test_two_caches_at_once_are_one(tmp_path: Path) -> None:
    words = ["cache", *TINY, "cache.shard_bytes=100000", "cache.shuffle_bytes=200000"]
    (tmp_path / "alone").mkdir()
    assert run(words, tmp_path / "alone") == 0
    (tmp_path / "both").mkdir()
    both = [start(words, tmp_path / "both") for _ in range(2)]
    for process in both:
        process.join(90)
    assert [process.exitcode for process in both] == [0, 0]
    assert "Traceback" not in output(tmp_path / "both")
    assert left(tmp_path / "both") == left(tmp_path / "alone")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_end_saves_in_time_and_goes_on_from_there(
    folder: Path, whole: Whole, number: signal.Signals
) -> None:
    words = [*TRAIN, *MIXED, "train.checkpoint_every=0"]
    process = start(words, folder, partial(pause, 8))
    wait_for(folder / "paused")
    began = time.monotonic()
    os.kill(process.pid or 0, number)
    (folder / "go").touch()
    process.join(GRACE)
    assert time.monotonic() - began < GRACE / 2
    assert process.exitcode == 130
    assert "stopping after this step; the run resumes from here" in last_lines(folder)
    (one,) = find_runs(folder / "runs")
    assert one.status["state"] == "interrupted"
    assert [file.name for file in one.checkpoint.iterdir()] == ["step-000000008.safetensors"]
    assert run(words, folder) == 0
    assert "resuming 1 member(s) at step 8 of 23" in output(folder)
    assert same(folder, whole)
