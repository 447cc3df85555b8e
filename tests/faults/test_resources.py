"""Disks that are full or read-only, few files, little memory, a clock that jumps: one line, and runs that go on."""

import os
import resource
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from tests.faults.conftest import MIXED, SWEEP, TRAIN, last_lines, same
from tests.faults.processes import pause, run, start, wait_for
from tests.faults.test_kill import TINY

pytestmark = pytest.mark.slow
FULL = "no space left on the disk: free some, then the same command goes on where it stopped"
CLOSED = "it may not be written or read: change that, or set runs_dir, cache.dir or --out to another folder"
Mount = Callable[..., None]
Whole = dict[str, bytes]


def fill(folder: Path) -> Path:
    """Fill the disk of a folder to the last byte; return the file that does."""
    with (ballast := folder / "ballast").open("wb", buffering=0) as stream:
        try:
            while stream.write(bytes(4096)):
                pass
        except OSError:
            return ballast


@pytest.mark.parametrize("command", [TRAIN, SWEEP], ids=["train", "sweep"])
def test_a_disk_that_fills_up_while_training(command: list[str], folder: Path, mount: Mount, whole: Whole) -> None:
    mount(folder / "runs", 700)
    assert run(command, folder) == 1
    told = last_lines(folder)
    assert FULL in told
    assert "checkpoint/step-0000000" in told  # the file
    assert not [*folder.glob("runs/**/.*.tmp")]
    assert run(["doctor", "runs"], folder) == 0
    mount(folder / "runs", 20_000)
    assert run(command, folder) == 0
    assert same(folder, whole)


def test_a_disk_without_a_byte_before_training_evaluation_and_report(folder: Path, mount: Mount, whole: Whole) -> None:
    mount(folder / "runs", 20_000)
    shutil.copytree(folder / "caches", folder / "runs" / "caches")
    ballast = fill(folder / "runs")
    for words in (TRAIN, SWEEP):
        assert run(words, folder) == 2
        assert FULL in last_lines(folder).splitlines()[-1]
    ballast.unlink()
    assert run([word for word in SWEEP if word != "sparsity.weight=0.5,1"] + ["--no-eval"], folder) == 0
    last_lines(folder)
    evaluate = ["eval", "runs", "eval.contexts=0", "eval.rows=300"]
    for words, file in ((evaluate, "eval.json"), (["report", "runs"], "report.html")):
        ballast = fill(folder / "runs")
        assert run(words, folder) == 2
        last = last_lines(folder).splitlines()[-1]
        assert last.startswith("error: runs/")
        assert f"{file}: {FULL}" in last
        ballast.unlink()
        assert run(words, folder) == 0
        last_lines(folder)
    shutil.rmtree(folder / "runs" / "caches")
    assert any(name.endswith("eval.json") for name in same(folder, whole))


def test_read_only_caches_are_read_and_a_read_only_place_is_named(folder: Path, mount: Mount, whole: Whole) -> None:
    mount(folder / "caches")
    assert run(SWEEP, folder) == 0
    assert same(folder, whole)
    last_lines(folder)
    assert run(["cache", *TINY, "cache.seed=3"], folder) == 2
    assert CLOSED in (told := last_lines(folder))
    assert "error: caches/tiny-" in told
    mount(folder / "runs")
    (one, _) = sorted(path.parent for path in (folder / "runs").glob("*/*/cfg.json"))
    for words, place in (
        ([*TRAIN, "seed=3"], "runs/default/"),
        ([*TRAIN, "--fresh"], "runs/default/"),
        ([*SWEEP, "seed=3"], "runs/default/.stacks"),
        (["eval", "runs", "eval.contexts=0"], "eval.json"),
        (["report", "runs"], "report.html"),
        (["dashboard", str(one), "--latents", "0-3"], "dashboard.html"),
    ):
        assert run(words, folder) == 2, words
        last = last_lines(folder).splitlines()[-1]
        assert last.startswith("error: ")
        assert place in last
        assert CLOSED in last
    for words in (TRAIN, SWEEP, ["show", "runs"], ["doctor", "runs"], ["report", "runs", "--out", "page.html"]):
        assert run(words, folder) == 0, words  # what writes nothing there works
    mount(folder / "runs")
    assert run([*TRAIN, "--fresh"], folder) == 0
    same(folder, whole)


def at_most(files: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))


def test_few_files_are_enough_for_many_shards_and_too_few_are_named(tmp_path: Path) -> None:
    shards = [*TRAIN, "cache.shard_bytes=20000", "cache.mix_bytes=200000"]
    assert run(shards, tmp_path, partial(at_most, 24)) == 0
    assert len([*tmp_path.glob("caches/*/train-*")]) > 70
    many = [word for word in SWEEP if not word.startswith("sparsity")] + ["seed=range(12)"]
    last_lines(tmp_path)
    assert run(many, tmp_path, partial(at_most, 24)) == 1
    assert "too many open files: raise the limit (`ulimit -n 4096`), then the same command" in last_lines(tmp_path)
    assert run(many, tmp_path) == 0


def little_memory(more: int) -> None:
    """Let the process take so many bytes beyond what it has."""
    has = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (has + more, has + more))


def test_without_memory_it_says_what_to_lower_and_the_run_goes_on(folder: Path, tmp_path: Path) -> None:
    wide = ["train", *TINY, "sae.latents=8192", "train.batch=2048", "train.tokens=12288", "train.checkpoint_every=1"]
    shutil.copytree(folder, tmp_path / "whole")
    assert run(wide, tmp_path / "whole") == 0
    assert run(wide, folder, partial(little_memory, 200 << 20)) == 1
    assert "out of memory: set train.memory_bytes=201326592 (half of what" in last_lines(folder)
    assert run(wide, folder) == 0
    (expected,), (found,) = ((place / "runs").glob("*/*/sae.safetensors") for place in (tmp_path / "whole", folder))
    assert found.read_bytes() == expected.read_bytes()


def jumping_clock() -> None:
    """Make each look at the clock a day or thirty years later or earlier than the last one."""
    steps = [86_400.0, -86_400.0, 9e8, -9e8]
    now, looks = time.time(), [0.0]

    def jumped() -> float:
        looks.append(looks[-1] + steps[len(looks) % 4])
        return now + looks[-1]

    time.time, time.time_ns = jumped, lambda: int(jumped() * 1e9)

    class Jumping(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return datetime.fromtimestamp(jumped(), UTC)

    import sae_cli.reporting.report
    import sae_cli.runs.directory

    for module in (sae_cli.runs.directory, sae_cli.reporting.report):
        module.datetime = Jumping  # type: ignore[attr-defined]


def test_a_clock_that_jumps_changes_nothing(folder: Path, whole: Whole) -> None:
    for words in (SWEEP, TRAIN, ["show", "runs"], ["report", "runs"], ["doctor", "runs"]):
        assert run(words, folder, jumping_clock) == 0, words
    last_lines(folder)
    same(folder, whole)


@pytest.mark.parametrize("year", [1971, 2099])
def test_files_of_another_time_are_gone_on_from(folder: Path, whole: Whole, year: int) -> None:
    process = start([*TRAIN, *MIXED], folder, partial(pause, 14))
    wait_for(folder / "paused")
    process.kill()
    process.join()
    for file in folder.rglob("*"):
        os.utime(file, times=(datetime(year, 1, 1).timestamp(),) * 2)
    assert run(["show", "runs"], folder) == 0
    assert run([*TRAIN, *MIXED], folder) == 0
    assert "resuming 1 member(s) at step 12 of 23" in last_lines(folder)
    assert same(folder, whole)
