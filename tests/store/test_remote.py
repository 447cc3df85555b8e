"""Caches behind URLs give the rows of the same caches on disk; what goes wrong is told in one line."""

import time
from itertools import islice

import pytest
import torch
from typer.testing import CliRunner

from sae_cli.cli import app
from sae_cli.errors import UserError
from sae_cli.store import remote
from sae_cli.store.contexts import read_contexts, read_tokens
from sae_cli.store.find import finished, verify
from sae_cli.store.loader import CacheReader
from sae_cli.store.remote import RemoteFile, is_remote, place
from tests.store.fakes import identities

MIX = 2500


@pytest.fixture(params=["memory", "s3"])
def both(request, make_cache):
    """A cache on disk and the same behind a URL."""
    local = make_cache()
    root = request.getfixturevalue("bucket") if request.param == "s3" else f"memory://{local.parent.name}"
    folder = place(root) / local.name
    for path in local.iterdir():
        if path.name != ".lock":
            (folder / path.name).upload(path)
    return local, folder


def test_plain_paths_and_file_urls_are_plain_paths(tmp_path):
    assert place("caches") == place(place("caches"))
    assert place(f"file://{tmp_path}/x") == tmp_path / "x"
    assert not is_remote(place(tmp_path))
    assert is_remote(place("memory://x"))


def test_every_way_to_read_gives_the_same_as_on_disk(both):
    local, folder = both
    assert finished(folder)
    assert verify(folder) == []
    for mix in (MIX, 100_000):
        one, other = (CacheReader(path, mix, 3) for path in (local, folder))
        for x_BD, y_BD in zip(islice(one.batches(2, 37), 15), islice(other.batches(2, 37), 15), strict=True):
            assert torch.equal(x_BD, y_BD)
        assert all(torch.equal(x, y) for x, y in zip(one.validation(25), other.validation(25), strict=True))
    rows = [row for batch in read_contexts(folder, "train", 40) for row in identities(batch.x_ND)]
    assert rows == list(range(450))
    assert read_tokens(folder, "train", [3, 88]) == read_tokens(local, "train", [3, 88])


def test_large_files_are_read_in_ranges(both, monkeypatch):
    local, folder = both
    monkeypatch.setattr(remote, "RANGE_BYTES", 100)
    for path in local.glob("t*"):
        buffer, stream = bytearray(path.stat().st_size), (folder / path.name).open()
        assert stream.readinto(buffer) == 100
        assert buffer[:100] == path.read_bytes()[:100]
        assert (folder / path.name).read_bytes() == path.read_bytes()


def cut(path, folder, count):
    """Put a file into a remote folder without its last bytes."""
    folder.system.pipe_file((folder / path.name).path, path.read_bytes()[:-count])


def test_a_truncated_shard_is_named(both):
    local, folder = both
    name = "train-00002.safetensors"
    cut(local / name, folder, 1)
    with pytest.raises(UserError, match=rf"{folder}/{name}: \d+ bytes instead of \d+; see `sae cache verify {folder}`"):
        CacheReader(folder, MIX, 0)
    (problem,) = verify(folder)
    assert f"{folder}/{name}" in problem


def test_a_shard_that_is_cut_while_it_is_read_is_named(both, monkeypatch):
    monkeypatch.setattr(remote, "PAUSES", (0.0,))
    local, folder = both
    stream = CacheReader(folder, MIX, 0).batches(0, 50)
    next(stream)
    for path in local.glob("train-*"):
        cut(path, folder, 200)
    with pytest.raises(UserError, match=rf"{folder}/train-\d+.safetensors: ends early"):
        list(islice(stream, 50))


def test_a_read_that_fails_is_tried_again(both, monkeypatch):
    monkeypatch.setattr(remote, "PAUSES", (0.0, 0.0))
    local, folder = both
    path = folder / "train-00000.safetensors"
    cat_file, failures = path.system.cat_file, [TimeoutError("slow"), OSError("reset")]

    def unsteady(*arguments, **options):
        if failures:
            raise failures.pop()
        return cat_file(*arguments, **options)

    monkeypatch.setattr(path.system, "cat_file", unsteady)
    assert RemoteFile(path).read(8) == (local / path.name).read_bytes()[:8]
    failures += [OSError("reset")] * 3
    with pytest.raises(UserError, match=rf"{path}: .*\(reset\)"):
        RemoteFile(path).read(8)


def test_what_is_absent(bucket):
    assert not finished(place(f"{bucket}/nothing"))
    assert list(place(f"{bucket}/nothing").iterdir()) == []
    with pytest.raises(UserError, match=f"{bucket}/nothing: no finished cache here"):
        CacheReader(place(f"{bucket}/nothing"), MIX, 0)


@pytest.mark.parametrize(
    ("change", "url", "says"),
    [
        ({}, "s3://no-such-bucket/p", "no such bucket or file: create the bucket"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "{bucket}", "cannot be reached: check the network"),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "{bucket}", "no credentials: set AWS_ACCESS"),
        ({}, "gs://bucket/p", "needs another package"),
        ({}, "nonsense://bucket/p", "unknown kind of URL"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong_with_a_url(tmp_path, monkeypatch, bucket, change, url, says):
    for name, value in change.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    url, began = url.format(bucket=bucket), time.monotonic()
    result = CliRunner().invoke(app, ["cache", "cache.tokens=3000", "cache.validation_tokens=100", f"cache.dir={url}"])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {url}")
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert time.monotonic() - began < 30
    assert not list(tmp_path.glob("**/*.safetensors"))
