"""What earlier versions wrote is read today, with the same numbers; what a later version wrote is refused in a line."""

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from safetensors.torch import save_file
from typer.testing import CliRunner

from sae_cli.cli import app
from sae_cli.dictionary.artifact import load_sae
from sae_cli.errors import UserError
from sae_cli.files import read_json, write_json
from sae_cli.runs.directory import find_runs
from sae_cli.store.find import verify

HERE = Path(__file__).parent
EARLIER = sorted(folder.name for folder in HERE.iterdir() if (folder / "runs").exists())
EVALUATED = ("vectors", "features", "text", "whole")
"""Runs that were finished; `killed` is the point of `whole` with a checkpoint of step 20 of 40."""


def sae(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, [*words])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(params=[*(pytest.param(name, marks=pytest.mark.slow) for name in EARLIER[:-1]), EARLIER[-1]])
def earlier(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    copytree(HERE / request.param, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return request.param


def numbers(content: dict, place: str = "") -> dict[str, float]:
    """Return every number of eval.json by its place, lists and histograms included."""
    found = {}
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        if isinstance(value, dict | list):
            found |= numbers(value, f"{place}.{key}")
        elif isinstance(value, int | float):
            found[f"{place}.{key}"] = value
    return found


def test_evaluation_gives_the_numbers_of_then(earlier: str) -> None:
    then = {run.path: read_json(run.path / "eval.json") for run in find_runs(Path("runs")) if run.evaluation}
    assert len(then) == len(EVALUATED)
    sae("eval", *(f"runs/{name}" for name in EVALUATED))
    for path, content in then.items():
        now, before = numbers(read_json(path / "eval.json")), numbers(content)
        assert before.keys() <= now.keys()
        assert {place: now[place] for place in before} == pytest.approx(before, rel=1e-4, abs=1e-6)


def test_report_compare_and_export(earlier: str) -> None:
    sae("report", "runs")
    table = {row["folder"]: row for row in json.loads(Path("runs/report.json").read_text())["table"]}
    runs = {str(run.path): run for run in find_runs(Path("runs"))}
    assert table.keys() == runs.keys()
    for folder, run in runs.items():
        if run.evaluation:
            assert table[folder]["fvu"] == pytest.approx(run.evaluation["reconstruction"]["fvu"])
    vectors, whole = (str(next(Path("runs", name).iterdir())) for name in ("vectors", "whole"))
    sae("compare", vectors, whole)
    sae("export", whole, "--to", "saelens")
    assert sae("doctor", "runs").count("sound") == len(runs)


def test_a_cache_is_sound_and_the_text_of_it_still_fits(earlier: str) -> None:
    folders = sorted(Path("caches").iterdir())
    assert [verify(folder) for folder in folders] == [[], []]
    before = {file: file.stat().st_mtime_ns for folder in folders for file in folder.iterdir()}
    words = next(Path("runs/text").glob("*/overrides.txt")).read_text().split()
    sae("cache", *(word for word in words if not word.startswith(("sae", "train", "tracker", "eval", "name"))))
    assert {file: file.stat().st_mtime_ns for folder in folders for file in folder.iterdir()} == before
    assert sorted(Path("caches").iterdir()) == folders


def test_an_interrupted_run_ends_where_the_whole_one_did(earlier: str) -> None:
    words = next(Path("runs/killed").glob("*/overrides.txt")).read_text().split()
    output = sae("train", *words)
    if earlier != "first":  # whose run ids were not yet final: its point is another one, trained anew
        assert "resuming 1 member(s) at step 20" in output
        assert len([*Path("runs/killed").iterdir()]) == 1
    ended = max(Path("runs/killed").glob("*/sae.safetensors"))
    expected = load_file(next(Path("runs/whole").glob("*/sae.safetensors")))
    for name, tensor in load_file(ended).items():
        np.testing.assert_allclose(tensor, expected[name], rtol=1e-3, atol=1e-4)


def rewrite(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file of a run or cache as its writer would."""
    write_json(file, read_json(file) | changes)


def newer_checkpoint(folder: Path) -> None:
    """Write the newest checkpoint again as one of format version 2."""
    file = max(folder.glob("step-*"))
    with safe_open(file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is a file)
        metadata = opened.metadata()
    save_file(tensors, file, metadata | {"version": "2"})


@pytest.mark.parametrize("earlier", [EARLIER[-1]], indirect=True)
def test_later_versions_are_refused_in_one_line(earlier: str) -> None:
    run, killed = (next(Path("runs", name).iterdir()) for name in ("whole", "killed"))
    words = (killed / "overrides.txt").read_text().split()
    cache = next(Path("caches").glob("vectors*"))
    rewrite(run / "eval.json", version=2)
    newer_checkpoint(killed / "checkpoint")
    rewrite(cache / "manifest.json", format_version=2)
    refused = {
        run / "eval.json": ("doctor", str(run)),
        killed / f"checkpoint/step-{20:09d}.safetensors": ("train", *words),
        cache / "manifest.json": ("eval", str(run)),
        run / "cfg.json": ("compare", str(run), str(next(Path("runs/vectors").iterdir()))),
    }
    for file, command in refused.items():
        if file.name == "cfg.json":
            rewrite(file, version=2)
        output = sae(*command, code=1 if command[0] == "doctor" else 2)
        (line,) = (line for line in output.splitlines() if "format version 2" in line)
        assert str(file) in line
        assert "pip install -U sae-cli" in line
        assert "Traceback" not in output
    rewrite(run / "cfg.json", version=1, nonlinearity="later")
    with pytest.raises(UserError, match="'later'; is it of a newer sae-cli"):
        load_sae(run)
    config = run / "config.yaml"
    config.write_text(config.read_text() + "later: 1\n")
    with pytest.raises(UserError, match=r"config.yaml: unknown key later.*pip install -U sae-cli"):
        _ = find_runs(run)[0].config


def test_a_checkpoint_without_what_a_later_version_needs_is_named(tmp_path: Path) -> None:
    """The first version's lack counters; only a file moved by hand meets the run id of today."""
    copytree(HERE / "first", tmp_path, dirs_exist_ok=True)
    (old,) = Path(tmp_path, "runs/killed").iterdir()
    words = [word for word in (old / "overrides.txt").read_text().split() if not word.startswith("source.path")]
    words += [f"runs_dir={tmp_path}/runs", f"cache.dir={tmp_path}/caches", f"source.path={tmp_path}/vectors.npy"]
    plan = json.loads(sae("train", *words, "--dry-run", "--json"))
    copytree(old, plan["folder"])
    assert "had no fired, lambda_scale: start over with --fresh" in sae("train", *words, code=2)
    sae("train", *words, "--fresh")
