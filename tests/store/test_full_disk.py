"""A disk that fills up while caches are written: one line, nothing lost, the same bytes in the end."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sae_cli.errors import UserError
from sae_cli.store.find import cache_fingerprint, verify
from sae_cli.store.writer import write_caches
from tests.store.fakes import FakeRows, small_cache

WIDTHS = {"a": 8, "b": 5}
PAGE = 4096


def write(root: Path, parts: int = 1) -> dict[str, bytes]:
    """Write both hooks' caches; return the bytes of every file."""
    cache = small_cache(parts=parts)
    folders = {h: root / f"{h}-{cache_fingerprint(FakeRows(WIDTHS).fingerprint(h), cache)}" for h in WIDTHS}
    for share in range(parts):
        write_caches(FakeRows(WIDTHS), cache, folders, share=share)
    assert [line for folder in folders.values() for line in verify(folder)] == []
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


class SmallDisk:
    """A tmpfs of some pages where that may be mounted; else writes are refused once a folder's files take as many."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self.pages = path, 14
        path.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={self.pages * PAGE}", "none", str(path)]
        self.real = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
        if not self.real:
            monkeypatch.setattr(os, "fsync", self.refuse)

    def refuse(self, descriptor: int) -> None:
        files = [file for file in self.path.rglob("*") if file.is_file()]
        if sum(-(-file.stat().st_size // PAGE) for file in files) > self.pages:
            raise OSError(errno.ENOSPC, "No space left on device")

    def grow(self) -> None:
        self.pages += 7
        if self.real:
            subprocess.run(["mount", "-o", f"remount,size={self.pages * PAGE}", self.path], check=True)


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallDisk]:
    disk = SmallDisk(tmp_path / "disk", monkeypatch)
    yield disk
    if disk.real:
        subprocess.run(["umount", disk.path], check=True)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_disk_that_is_full_again_and_again(tmp_path, small_disk, parts):
    expected = write(tmp_path / "whole", parts)
    failures = []
    for _ in range(50):
        try:
            found = write(small_disk.path, parts)
            break
        except UserError as error:
            failures.append(str(error))
            small_disk.grow()
    assert found == expected
    # Folders that do not even take an empty file, data that does not fit, and what is known before it is written.
    assert len(failures) > 3
    assert {"no space left on the disk" in line or "bytes needed" in line for line in failures} == {True}
    assert any("no space left" in line and "same command" in line for line in failures)
    assert not any("\n" in line for line in failures)


@pytest.mark.parametrize("moment", ["sync", "rename"])
def test_no_space_at_any_moment(tmp_path, monkeypatch, moment):
    """All syncs or renames of an attempt fail from the third, sixth, ninth... on, until an attempt ends."""
    expected, calls, attempts, says = write(tmp_path / "whole"), 0, 0, ""

    def fail(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls > attempts * 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    if moment == "sync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        replace = Path.replace
        monkeypatch.setattr(Path, "replace", lambda path, target: (fail(), replace(path, target))[1])
    while True:
        calls, attempts = 0, attempts + 1
        try:
            found = write(tmp_path / "full")
            break
        except UserError as error:
            says = str(error)
    assert "no space left on the disk" in says
    assert attempts > 4
    assert found == expected
