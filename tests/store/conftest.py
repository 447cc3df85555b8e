"""Shared by the tests of the store."""

import logging
import os
import uuid
from collections.abc import Callable, Iterator
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


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Start an S3 server on loopback and return its URL."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the URL of an empty bucket that fsspec finds by the environment."""
    import s3fs

    words = {"ENDPOINT_URL": s3_server, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1"}
    words |= {"EC2_METADATA_DISABLED": "true", "CONFIG_FILE": "/nowhere", "SHARED_CREDENTIALS_FILE": "/nowhere"}
    for name, value in words.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"bucket-{uuid.uuid4().hex}"
    s3fs.S3FileSystem().mkdir(name)
    yield f"s3://{name}/caches"
    s3fs.S3FileSystem.clear_instance_cache()
