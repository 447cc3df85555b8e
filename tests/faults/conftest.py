"""What tests of faults begin with: caches, an uninterrupted end to compare with, and disks of their own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.processes import output, run
from tests.faults.test_kill import TINY, TRAINING, left

SWEEP = ["sweep", *TINY, *TRAINING, "sparsity.weight=0.5,1", "eval.contexts=0", "eval.rows=300"]
TRAIN = ["train", *TINY, *TRAINING]
MIXED = ["cache.shard_bytes=100000", "cache.mix_bytes=400000"]
"""Settings under which a cache is read group by group, and one epoch is 12 batches."""


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that mounts disks in a namespace where this user may, if it may not here."""
    if "mount" not in pyfuncitem.fixturenames or os.geteuid() == 0:
        return None
    words = ["unshare", "-rm", sys.executable, "-m", "pytest", "-q", "-m", "slow or not slow", pyfuncitem.nodeid]
    inside = subprocess.run(words, cwd=pyfuncitem.config.rootpath, capture_output=True, text=True)
    assert inside.returncode == 0, inside.stdout[-3000:] + inside.stderr[-1000:]
    return True


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Return a function that mounts a disk of some kB on a folder, or with 0 makes a folder read-only.

    Again on the same folder: with another size, or writable again.
    """
    mounted: list[Path] = []

    def mount(folder: Path, kilobytes: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        again = ["remount"] if folder in mounted else []
        if kilobytes:
            options = ",".join([*again, f"size={kilobytes}k"])
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
        elif again:
            subprocess.run(["umount", str(folder)], check=True)
            mounted.remove(folder)
            return
        else:
            subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        if not again:
            mounted.append(folder)

    yield mount
    for folder in reversed(mounted):
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="session")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the caches of TRAIN and of TRAIN with MIXED."""
    folder = tmp_path_factory.mktemp("cached")
    for words in ([], MIXED):
        assert run(["cache", *TINY, *words], folder) == 0, output(folder)
    (folder / "output.txt").unlink()
    return folder


@pytest.fixture(scope="session")
def whole(cached: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What uninterrupted commands leave: SWEEP, whose second point is that of TRAIN, and TRAIN with MIXED."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(cached, folder, dirs_exist_ok=True)
    for words in (SWEEP, [*TRAIN, *MIXED]):
        assert run(words, folder) == 0, output(folder)
    return left(folder)


@pytest.fixture
def folder(cached: Path, tmp_path: Path) -> Path:
    """A folder with the caches, where commands are run."""
    shutil.copytree(cached, tmp_path / "here")
    return tmp_path / "here"


def same(folder: Path, whole: dict[str, bytes]) -> list[str]:
    """Return the names of what commands left of runs in a folder; AssertionError where a byte differs from `whole`."""
    found = {name: data for name, data in left(folder).items() if "/report." not in name}
    assert [name for name in found if found[name] != whole[name]] == []
    return [name for name in found if name.startswith("runs/")]


def last_lines(folder: Path) -> str:
    """Return what the last command printed after its progress, without traceback, and forget it."""
    text = output(folder)
    (folder / "output.txt").unlink()
    assert "Traceback" not in text, text
    return "\n".join(line for line in text.splitlines() if not line.startswith("step "))
