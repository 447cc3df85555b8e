"""No file leads out of its folder, or claims more memory than it has bytes; what a terminal shows is text."""

import gzip
import io
import json
import os
import resource
import shutil
import struct
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sae_cli.cli import app
from sae_cli.config.convert import load_config
from sae_cli.config.schema_data import TextConfig
from sae_cli.dictionary.artifact import save_sae
from sae_cli.errors import UserError
from sae_cli.files import HASH, read_json, replace_atomically, sha256_of
from sae_cli.interop.reading import open_sae
from sae_cli.interop.writing import save_foreign
from sae_cli.reporting.collect import Point
from sae_cli.reporting.composites import composites
from sae_cli.runs.directory import RunDirectory
from sae_cli.runs.grid import read_grid_file
from sae_cli.sources import text
from sae_cli.sources.vectors import _shape
from sae_cli.store.format import MANIFEST, read_manifest
from sae_cli.store.writer import write_caches
from sae_cli.training.checkpoint import is_sound, saved_steps
from tests.fuzz.target import unsealed
from tests.interop.test_writing import example
from tests.reporting.test_composites import content, edge, level
from tests.store.fakes import FakeRows, small_cache

MEMORY = 1 << 30
"""Address space that a reader may add."""


def refused(read: Callable[[], object]) -> str:
    """Return the UserError that a reader raises in a process of little memory."""
    before, after = os.pipe()
    child = os.fork()
    if not child:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        said = "nothing"
        try:
            read()
        except UserError as problem:
            said = f"refused: {problem}"
        except BaseException as problem:
            said = repr(problem)
        os.write(after, said.encode()[:4000])
        os._exit(0)
    os.close(after)
    with os.fdopen(before, "rb") as stream:
        said = stream.read().decode()
    os.waitpid(child, 0)
    assert said.startswith("refused: "), said
    return said


def header(shape: list[int], size: int) -> bytes:
    told = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(told)) + told


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.safetensors", header([10**6, 10**6], 4 * 10**12) + b"\0" * 64),
        ("x.safetensors", header([10**6, 10**6], 64) + b"\0" * 64),
        ("x.safetensors", struct.pack("<Q", 2**62) + b"{}"),
        ("x.safetensors", struct.pack("<Q", 99_000_000) + b"{}"),
        ("x.npy", b"\x93NUMPY\x02\0" + struct.pack("<I", 2**31) + b"{"),
        ("x.npy", b"\x93NUMPY\x01\0v\0" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (10**9, 4)}".ljust(118)),
        (
            "x.npy",
            b"\x93NUMPY\x01\0v\0" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 4)}".ljust(118),
        ),
    ],
)
def test_headers_of_vectors(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert "cannot read" in refused(lambda: _shape(tmp_path / name))


@pytest.mark.parametrize("library", ["saelens", "sparsify"])
def test_sizes_of_an_artefact(tmp_path: Path, library: str) -> None:
    save_foreign(tmp_path, example("topk"), library)
    cfg = json.loads(unsealed((tmp_path / "cfg.json").read_bytes()))
    (tmp_path / "cfg.json").write_text(json.dumps(cfg | {"d_in": 10**9, "d_sae": 10**9, "num_latents": 10**9}))
    assert "has shape" in refused(lambda: open_sae(tmp_path))


def _view(folder: Path) -> None:
    torch.save({"encoder.weight": torch.ones(1).expand(10**6, 10**6)}, folder / "ae.pt")


def _packed(folder: Path) -> None:
    torch.save({"x": torch.zeros(10**6)}, stream := io.BytesIO())
    with zipfile.ZipFile(stream) as plain, zipfile.ZipFile(folder / "ae.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))


@pytest.mark.parametrize("make", [_view, _packed])
def test_tensors_larger_than_their_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    save_foreign(tmp_path, example("gated"), "dictionary_learning")
    make(tmp_path)
    assert (tmp_path / "ae.pt").stat().st_size < 10**5
    assert "ae.pt is not tensors" in refused(lambda: open_sae(tmp_path))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    write_caches(FakeRows({"a": 8}), small_cache(), {"a": tmp_path / "cache"})
    return tmp_path / "cache"


BAD_NAMES = ["../../etc/passwd", "/etc/passwd", "..", "a/b", "a\\b", ".hidden", "", "a\0", "a" * 300]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_in_a_manifest(cache: Path, name: str) -> None:
    manifest = json.loads(unsealed((cache / MANIFEST).read_bytes()))
    manifest["train"]["shards"][0]["name"] = name
    (cache / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="unfit file name"):
        read_manifest(cache)


def test_counts_in_a_manifest(cache: Path) -> None:
    manifest = json.loads(unsealed((cache / MANIFEST).read_bytes()))
    manifest["train"]["shards"][0]["rows"] += 10**12
    manifest["train"]["rows"] += 10**12
    (cache / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="bytes are not those of"):
        read_manifest(cache)


def test_aliases_that_multiply(tmp_path: Path) -> None:
    lines = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefghij", "bcdefghijk", strict=True)]
    for read, name in ((load_config, "config.yaml"), (read_grid_file, "grid.yaml")):
        (tmp_path / name).write_text("\n".join(lines))
        assert "aliases" in refused(lambda read=read, name=name: read(tmp_path / name))


@pytest.mark.parametrize("data", ["[" * 10**5, '{"a":' * 10**5, "9" * 10**6, '"\\ud800'])
def test_deep_and_long_json(tmp_path: Path, data: str) -> None:
    (tmp_path / "status.json").write_text(data)
    assert "damaged" in refused(lambda: RunDirectory(tmp_path).status)
    (tmp_path / "step-000000004.shards").mkdir()
    (tmp_path / "step-000000004.shards" / "extra.json").write_text(data)
    assert saved_steps(tmp_path) == []


def test_many_values_that_look_like_a_hash(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({str(number): "0" * 16 for number in range(30_000)}))
    assert len(read_json(tmp_path / "x.json")) == 30_000  # squared, this would take an hour


def test_a_tree_with_many_paths(tmp_path: Path) -> None:
    names = [f"D{index}" for index in range(40)]
    pairs = list(pairwise(names))
    levels = [level(a, b, [edge(0, 0), edge(0, 0), edge(1, 0), edge(0, 1), edge(1, 1)]) for a, b in pairs] * 2
    (tmp_path / "compare.json").write_text(json.dumps(content() | {"splitting": levels}))
    assert len(composites([Point("id", str(tmp_path), "done")])) < 200_000


def test_a_line_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "LONGEST", 1000)
    sound, long = json.dumps({"text": "x" * 900}), json.dumps({"text": "x" * 2000})
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(f"{sound}\n{long}\n".encode()))
    settings = TextConfig(name="x", path=str(tmp_path / "x.jsonl.gz"), validation=0.0)
    with pytest.raises(UserError, match=r"line 2 is longer than 1,000 characters"):
        list(text.documents(settings, "train"))


@pytest.mark.parametrize("special", ["/dev/zero", "pipe"])
def test_what_is_no_file(tmp_path: Path, special: str) -> None:
    target = Path(special) if special.startswith("/") else tmp_path / "a-pipe"
    if special == "pipe":
        os.mkfifo(target)
    save_sae(tmp_path, example("relu"))
    for name in ("status.json", "metrics.jsonl"):
        (tmp_path / name).symlink_to(target)
    for read in (lambda: RunDirectory(tmp_path).status, lambda: RunDirectory(tmp_path / "x").record("y")):
        with pytest.raises(UserError):
            read()
    with pytest.raises(ValueError, match="not an ordinary file"):
        sha256_of(tmp_path / "metrics.jsonl")
    (tmp_path / "cfg.json").unlink()
    (tmp_path / "cfg.json").symlink_to(target)
    with pytest.raises(UserError, match="not an ordinary file"):
        open_sae(tmp_path)


@pytest.mark.parametrize("name", [".lock", "log.txt", "metrics.jsonl", "checkpoint", "wandb"])
def test_links_in_a_run(tmp_path: Path, name: str) -> None:
    outside, run = tmp_path / "outside", tmp_path / "run"
    outside.write_text("precious")
    run.mkdir()
    (run / name).symlink_to(outside)
    with pytest.raises(UserError, match=r"is a link"), RunDirectory(run).lock():
        pass
    assert outside.read_text() == "precious"


def test_links_where_a_file_is_begun(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("precious")
    for name in ("eval.json", f".eval.json.{os.getpid()}.tmp"):
        (tmp_path / name).symlink_to(outside)
    replace_atomically(tmp_path / "eval.json", b"{}")
    assert outside.read_text() == "precious"
    assert not (tmp_path / "eval.json").is_symlink()


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "~/x", "a//b", ".", "..", "a\nb", "a/./b", ""])
def test_names_of_runs(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke(app, ["train", "experiment=three_features", f"name='{name}'", "--dry-run"])
    assert run.exit_code == 2, run.output
    assert list(tmp_path.iterdir()) == []


def test_names_in_a_sharded_checkpoint(tmp_path: Path) -> None:
    folder, outside = tmp_path / "step-000000004.shards", tmp_path / "outside"
    folder.mkdir()
    outside.write_text("x")
    told = {"step": 4, "extra": {}, "sha256": {"../outside": sha256_of(outside)}}
    (folder / "extra.json").write_text(json.dumps(told))
    assert not is_sound(tmp_path, 4)


def test_errors_hold_no_codes_of_terminals(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: x")
    (tmp_path / "status.json").write_text("[")
    evil = tmp_path / "\x1b]0;owned\x07\n\u202egpj"
    shutil.copytree(tmp_path, evil, ignore=lambda *_: [evil.name])
    with pytest.raises(UserError) as problem:
        _ = RunDirectory(evil).status
    assert str(problem.value).isprintable()
    assert HASH not in str(problem.value)
