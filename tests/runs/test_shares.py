"""`sae cache` with parts: workers by hand and by launcher, failures, and the same bytes in the end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sae_cli.config.compose import compose
from sae_cli.errors import UserError
from sae_cli.runs.shares import launch_shares
from sae_cli.sources import registry
from sae_cli.sources.model_rows import LanguageModelRows
from sae_cli.sources.registry import ensure_cache, shares_left
from sae_cli.store.find import finished
from sae_cli.store.writer import CacheWriter

WORDS = ["cache.tokens=1500", "cache.validation_tokens=200", "cache.shuffle_bytes=200000", "cache.parts=3"]
WORDS += ["cache.shard_bytes=60000", "text.max_documents=60"]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    """The cache that one process wrote."""
    (folder,) = ensure_cache(compose([*WORDS, f"cache.dir={tmp_path_factory.mktemp('whole')}"]))
    return content(folder)


def test_a_part_that_fails_is_listed_and_the_next_call_writes_it_only(monkeypatch, whole):
    config, rows, opened = compose(WORDS), LanguageModelRows.rows, []

    def broken(source, split, start):
        if split == "train" and 500 <= start < 1000:
            raise UserError("part 1 has no luck")
        return rows(source, split, start)

    monkeypatch.setattr(LanguageModelRows, "rows", broken)
    assert launch_shares(config, "basic", []) == {1: "part 1 has no luck"}
    assert shares_left(config) == [1]
    monkeypatch.setattr(LanguageModelRows, "rows", rows)
    open_rows = registry.open_rows
    monkeypatch.setattr(registry, "open_rows", lambda *given: opened.append(given) or open_rows(*given))
    assert launch_shares(config, "basic", []) == {}
    assert launch_shares(config, "basic", []) == {}
    assert (len(opened), shares_left(config)) == (1, [])
    (folder,) = ensure_cache(config)
    assert content(folder) == whole


def test_a_job_that_left_nothing_counts_as_failed(monkeypatch):
    monkeypatch.setattr("sae_cli.runs.shares.multirun", lambda files, launcher, options: None)
    assert {text.split(":")[0] for text in launch_shares(compose(WORDS), "basic", []).values()} == {"no result"}


def test_launchers_that_do_not_exist_are_refused_before_any_work():
    with pytest.raises(UserError, match="--launcher slurm: not one of"):
        launch_shares(compose(WORDS), "slurm", [])
    assert not Path("caches").exists()


def test_what_was_killed_before_the_last_steps_is_finished(monkeypatch, whole):
    config = compose(WORDS)
    (folder,) = registry.cache_folders(config).values()
    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, "finish", lambda writer: None)
        for share in (2, 1, 0):
            assert share in shares_left(config)
            ensure_cache(config, share)
    assert not (folder / "manifest.json").exists()
    assert shares_left(config) == [2]
    progress = (folder / "progress-0002.json").read_bytes()
    ensure_cache(config)
    assert content(folder) == whole
    (folder / "progress-0002.json").write_bytes(progress)  # died between the manifest and the removal
    assert not finished(folder)
    ensure_cache(config)
    assert content(folder) == whole


def sae(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "sae_cli", "cache", *WORDS, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_workers_by_hand_then_by_joblib(whole):
    refused = sae("--part", "3")
    assert (refused.returncode, refused.stderr.strip()) == (
        2,
        "error: --part 3: give one of 0 to 2 (cache.parts), and no --launcher",
    )
    one = sae("--part", "1", "--json")
    found = json.loads(one.stdout)
    assert (one.returncode, found["missing_parts"]) == (0, [0, 2])
    rest = sae("--launcher", "joblib", "hydra.launcher.n_jobs=2")
    assert rest.returncode == 0, rest.stderr
    assert "sae train" in rest.stdout
    assert content(Path(found["folders"][0])) == whole
