"""Shared by the tests of the store."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sae_cli.store.find import cache_fingerprint, cache_folder
from sae_cli.store.writer import write_caches
from tests.store.fakes import FakeRows, small_cache


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk; test_files_are_on_disk_before_they_have_their_name watches the calls."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def make_cache(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a cache of hook `a` and returns its folder."""

    def make(source: FakeRows | None = None, **changes: Any) -> Path:
        source, cache = source or FakeRows({"a": 8}), small_cache(**changes)
        folder = cache_folder(tmp_path, "fake", "a", cache_fingerprint(source.fingerprint("a"), cache))
        write_caches(source, cache, {"a": folder})
        return folder

    return make
