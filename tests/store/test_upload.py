"""A cache behind a URL has the bytes of one on disk, however often writing it was interrupted."""

import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_cli.config.compose import compose
from sae_cli.errors import UserError
from sae_cli.sources import registry
from sae_cli.store import upload
from sae_cli.store.find import finished
from sae_cli.store.loader import CacheReader
from sae_cli.store.remote import RemotePath, place
from tests.store.fakes import ROOT, FakeRows
from tests.store.s3 import write


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(upload, "PAUSE", 0.01)


@pytest.fixture
def uploads(monkeypatch):
    """The names of the files that are uploaded."""
    names, send = [], RemotePath.upload
    monkeypatch.setattr(RemotePath, "upload", lambda self, file: names.append(file.name) or send(self, file))
    return names


def content(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_an_uploaded_cache_is_that_on_disk(tmp_path, make_cache, uploads):
    folder = write(f"memory://{tmp_path.name}", tmp_path / "staging")
    assert finished(folder)
    assert content(folder) == content(make_cache())
    assert uploads[-1] == "manifest.json"
    assert sorted(uploads) == sorted(set(uploads))
    assert not list((tmp_path / "staging").iterdir())


class Broken(FakeRows):
    def rows(self, split, start):
        yield from islice(super().rows(split, start), 12)
        if split == "train":
            raise KeyboardInterrupt


def test_finished_files_go_up_while_others_are_written_and_only_once(tmp_path, make_cache, uploads):
    url, staging = f"memory://{tmp_path.name}", tmp_path / "staging"
    with pytest.raises(KeyboardInterrupt):
        write(url, staging, source=Broken({"a": 8}, pause=0.05))
    before = list(uploads)
    assert any(name.startswith("train") for name in before)
    assert "manifest.json" not in before
    folder = write(url, staging)
    assert len(uploads) == len(set(uploads))
    assert content(folder) == content(make_cache())


def test_a_file_that_vanished_from_the_server_is_uploaded_again(tmp_path, make_cache):
    url, staging = f"memory://{tmp_path.name}", tmp_path / "staging"
    with pytest.raises(KeyboardInterrupt):
        write(url, staging, source=Broken({"a": 8}, pause=0.05))
    (folder,) = staging.iterdir()
    gone = place(url) / folder.name / "train-00000.safetensors"
    gone.system.rm_file(gone.path)
    assert content(write(url, staging)) == content(make_cache())


def test_a_failed_upload_leaves_no_manifest_and_the_next_call_ends_it(tmp_path, make_cache, monkeypatch):
    url, staging, send = f"memory://{tmp_path.name}", tmp_path / "staging", RemotePath.upload

    def failing(self, file):
        if file.name == "train-00003.safetensors":
            raise UserError(f"{self}: access denied")
        send(self, file)

    monkeypatch.setattr(RemotePath, "upload", failing)
    with pytest.raises(UserError, match=r"train-00003.safetensors: access denied"):
        write(url, staging)
    monkeypatch.setattr(RemotePath, "upload", send)
    (local,) = staging.iterdir()
    assert not finished(place(url) / local.name)
    assert content(write(url, staging)) == content(make_cache())


def test_a_whole_local_cache_is_uploaded_and_stays(tmp_path, make_cache):
    local = make_cache()
    before = content(local)
    folder = write(f"memory://{tmp_path.name}", local.parent)
    assert content(folder) == before == content(local)


def test_training_from_a_url_gives_the_batches_of_a_local_cache(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float32))
    words = ["source=vectors", f"source.path={tmp_path}/x.npy", "cache.tokens=0", "cache.shard_bytes=4000"]
    words += ["cache.mix_bytes=20000", f"cache.staging={tmp_path}/staging"]
    roots = (f"cache.dir={tmp_path}/caches", f"cache.dir=memory://{tmp_path.name}")
    one, other = (registry.open_source(compose([*words, root]), "cpu") for root in roots)
    assert one.fingerprint == other.fingerprint
    for x_BD, y_BD in zip(islice(one.batches(0, 100), 40), islice(other.batches(0, 100), 40), strict=True):
        assert torch.equal(x_BD, y_BD)


@pytest.mark.slow
def test_a_killed_writer_is_followed_by_another(tmp_path, make_cache, bucket):
    staging, environment = tmp_path / "staging", {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.store.s3", bucket, str(staging), "0.1"]
    writer = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        limit = time.monotonic() + 60
        while not list(Path(staging).glob("*/uploaded.json")) and time.monotonic() < limit:
            time.sleep(0.05)
    finally:
        writer.send_signal(signal.SIGKILL)
    assert writer.wait() == -signal.SIGKILL
    (local,) = staging.iterdir()
    assert not finished(place(bucket) / local.name)
    folder = write(bucket, staging)
    expected = make_cache()
    assert content(folder) == content(expected)
    for mix in (2500, 100_000):
        one, other = (CacheReader(path, mix, 0).batches(0, 50) for path in (expected, folder))
        assert all(torch.equal(x, y) for x, y in zip(islice(one, 20), islice(other, 20), strict=True))
