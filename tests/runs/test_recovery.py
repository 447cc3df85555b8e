"""`sae doctor RUN`: every damaged file is named, and doing what is said brings the run back bit for bit."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sae_cli.cli import app
from sae_cli.dictionary.artifact import load_sae
from sae_cli.errors import UserError
from sae_cli.reporting.collect import collect
from sae_cli.runs.directory import RunDirectory
from sae_cli.runs.recovery import examine_path
from sae_cli.training.checkpoint import common_step

invoke = CliRunner().invoke


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    words = [
        "experiment=three_features",
        "train.tokens=20000",
        "train.batch=256",
        "tracker=jsonl",
        "train.log_every=10",
    ]
    result = invoke(app, ["train", *words, f"runs_dir={folder}"])
    assert result.exit_code == 0, result.output
    (run,) = (file.parent for file in folder.glob("*/*/cfg.json"))
    assert invoke(app, ["eval", str(run)]).exit_code == 0
    return run


@pytest.fixture
def run(trained: Path) -> Path:
    """The run, with a copy of its files beside it that is put back afterwards."""
    kept = trained.with_name("kept")
    shutil.copytree(trained, kept)
    yield trained
    shutil.rmtree(trained)
    kept.rename(trained)


def flip(file: Path, place: float = 0.5) -> None:
    data = bytearray(file.read_bytes())
    spot = int(place * len(data))
    while file.suffix != ".safetensors" and not chr(data[spot]).isalnum():  # white space of JSON may be anything
        spot += 1
    data[spot] ^= 1
    file.write_bytes(bytes(data))


def follow(fix: str) -> None:
    """Do what a fix says: delete files, then run a command."""
    for name in re.findall(r"(?:delete|and) (/\S+?)(?=,|;| and|$)", fix):
        Path(name).unlink()
    (command,) = re.findall(r"run `(.+)`", fix)
    result = invoke(app, shlex.split(command)[1:])
    assert result.exit_code == 0, result.output


def test_a_sound_run_is_said_to_be_sound(run: Path) -> None:
    result = invoke(app, ["doctor", str(run.parent.parent)])
    assert result.exit_code == 0
    assert "sound" in result.output


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "config.yaml", "overrides.txt", "stamp.json", "status.json", "metrics.jsonl", "eval.json", "cfg.json",
        "sae.safetensors", "true_features.safetensors",
    ],
)  # fmt: skip
def test_what_is_damaged_is_named_and_recovered(run: Path, name: str) -> None:
    before = (run / name).read_bytes()
    flip(run / name)
    findings = examine_path(run)
    assert [finding.state for finding in findings] == ["fail"]
    assert Path(findings[0].name).name == ("sae.safetensors" if name == "cfg.json" else name)
    assert invoke(app, ["doctor", str(run)]).exit_code == 1
    if name == "overrides.txt":  # the command is not known any more: the person's own
        (run / name).write_bytes(before)
    else:
        follow(findings[0].fix)
    assert [finding.detail for finding in examine_path(run)] == ["sound"]
    if name not in ("status.json", "stamp.json", "eval.json", "metrics.jsonl"):  # those hold times
        assert (run / name).read_bytes() == before


def test_readers_refuse_what_was_changed(run: Path) -> None:
    flip(run / "metrics.jsonl")
    with pytest.raises(UserError, match=r"metrics\.jsonl: damaged or edited after training"):
        RunDirectory(run).metrics()
    flip(run / "sae.safetensors", 0.9)
    with pytest.raises(UserError, match="damaged SAE artefact"):
        load_sae(run)
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("seed: 0", "seed: 1"))
    with pytest.raises(UserError, match=r"config\.yaml: damaged or edited"):
        RunDirectory(run).config  # noqa: B018


def test_a_damaged_checkpoint_is_named_and_not_resumed_from(run: Path) -> None:
    last = sorted((run / "checkpoint").glob("step-*"))[-1]
    for place in (0.02, 0.2, 0.9):
        kept = last.read_bytes()
        flip(last, place)
        assert common_step([run / "checkpoint"]) < int(last.stem.removeprefix("step-"))
        findings = examine_path(run)
        assert [(Path(finding.name), finding.detail) for finding in findings] == [(last, "damaged")]
        last.write_bytes(kept)
    assert common_step([run / "checkpoint"]) == int(last.stem.removeprefix("step-"))


@pytest.mark.parametrize("name", ["progress.json", "progress-0003.json"])
def test_a_cache_that_is_not_finished_is_said_to_be_that(tmp_path: Path, name: str) -> None:
    (tmp_path / "caches" / "one").mkdir(parents=True)
    (tmp_path / "caches" / "one" / name).write_text("{}")
    for place in ("caches/one", "caches", "."):
        findings = examine_path(tmp_path / place)
        assert [(finding.state, finding.detail) for finding in findings] == [("warn", "not finished")]


def test_a_report_refuses_a_configuration_that_was_changed(run: Path) -> None:
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("seed: 0", "seed: 1"))
    (point,) = collect([run])
    assert point.state == "corrupt"
    assert "config.yaml: damaged or edited" in point.error


def test_a_hash_whose_name_was_damaged_is_not_taken_for_an_older_file(run: Path) -> None:
    last = sorted((run / "checkpoint").glob("step-*"))[-1]
    last.write_bytes(last.read_bytes().replace(b'"sha256"', b'"shb256"'))
    assert common_step([run / "checkpoint"]) < int(last.stem.removeprefix("step-"))
    (run / "stamp.json").write_text((run / "stamp.json").read_text().replace("content_hash", "content_hasi"))
    with pytest.raises(UserError, match=r"stamp\.json: damaged"):
        RunDirectory(run).stamp  # noqa: B018


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    result = invoke(app, ["doctor", str(tmp_path)])
    assert result.exit_code == 2
    assert "holds no run" in result.output
