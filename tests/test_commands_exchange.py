"""`sae export` and `sae import` from the shell: folders, the card, the hub, refusals."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sae_cli.cli import app
from sae_cli.dictionary.artifact import load_sae, save_sae
from sae_cli.files import read_json
from sae_cli.interop.reading import load_foreign
from tests.interop.test_writing import example

invoke = CliRunner().invoke


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    words = [
        "experiment=three_features",
        "train.tokens=50000",
        "train.batch=256",
        "tracker=jsonl",
        "train.log_every=20",
        f"runs_dir={folder}",
    ]
    result = invoke(app, ["train", *words, "--json"])
    assert result.exit_code == 0, result.output
    (path,) = (file.parent for file in folder.glob("*/*/cfg.json"))
    assert invoke(app, ["eval", str(path)]).exit_code == 0
    return path


@pytest.mark.parametrize("library", ["saelens", "dictionary_learning"])
def test_a_run_is_exported_with_a_card_and_read_again(run: Path, library: str, tmp_path: Path) -> None:
    result = invoke(app, ["export", str(run), "--to", library, "--out", str(tmp_path / "out"), "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["difference"] < 1e-5
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\ntags:\n- sparse-autoencoder\n")
    assert "sae train experiment=three_features train.tokens=50000" in card
    evaluation = read_json(run / "eval.json")
    assert f"| reconstruction.fvu | {evaluation['reconstruction']['fvu']:.6g} |" in card
    assert (run / "config.yaml").read_text().rstrip() in card
    assert "![FVU and L0 in training](training.svg)" in card
    drawn = ElementTree.parse(tmp_path / "out" / "training.svg")
    assert len(drawn.findall("{http://www.w3.org/2000/svg}polyline")) == 2
    again = invoke(app, ["import", str(tmp_path / "out"), "--out", str(tmp_path / "back"), "--json"])
    assert again.exit_code == 0, again.output
    x_BD = torch.randn(40, 3)
    for ours, theirs in zip(load_sae(run).forward(x_BD), load_sae(tmp_path / "back").forward(x_BD), strict=True):
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    taken = invoke(app, ["import", str(tmp_path / "out"), "--out", str(tmp_path / "back")])
    assert taken.exit_code == 2
    assert "already holds an SAE" in taken.output


def test_the_default_folder_lies_in_the_run_and_is_no_run(run: Path) -> None:
    assert invoke(app, ["export", str(run), "--to", "saelens"]).exit_code == 0
    assert load_foreign(run / "saelens").metadata["library"] == "SAELens"
    assert invoke(app, ["show", str(run.parent)]).exit_code == 0


def test_an_sae_without_a_run_converts_between_libraries(tmp_path: Path) -> None:
    save_sae(tmp_path, example("topk"))
    assert invoke(app, ["export", str(tmp_path), "--to", "sparsify"]).exit_code == 0
    second = invoke(app, ["export", str(tmp_path / "sparsify"), "--to", "dictionary_learning", "--unit"])
    assert second.exit_code == 0, second.output
    assert "Not evaluated" in (tmp_path / "sparsify" / "dictionary_learning" / "README.md").read_text()
    same = invoke(app, ["export", str(tmp_path), "--to", "saelens", "--out", str(tmp_path)])
    assert same.exit_code == 2
    assert "give another folder" in same.output


@pytest.mark.parametrize("words", [["nowhere"], ["."]])
def test_what_holds_no_sae_is_named(tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(app, ["export", *words, "--to", "saelens"])
    assert result.exit_code == 2
    assert "is not a folder" in result.output or "is missing" in result.output


def test_push_uploads_the_folder_and_says_where(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    seen: dict[str, object] = {}

    class Api:
        def create_repo(self, repository: str, private: bool, exist_ok: bool) -> str:
            seen["repository"], seen["private"] = repository, private
            return f"hub/{repository}"

        def upload_folder(self, folder_path: Path, repo_id: str, commit_message: str) -> None:
            seen["files"] = {file.name for file in Path(folder_path).iterdir()}

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    words = ["export", str(run), "--to", "saelens", "--out", str(tmp_path / "out")]
    result = invoke(app, [*words, "--push-to-hub", "me/sae", "--private", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["url"] == "hub/me/sae"
    assert seen["repository"] == "me/sae"
    assert seen["private"] is True
    assert seen["files"] == {"README.md", "cfg.json", "sae_weights.safetensors", "training.svg"}


def test_a_hub_that_cannot_be_reached_keeps_the_folder(run: Path, tmp_path: Path) -> None:
    words = ["export", str(run), "--to", "saelens", "--out", str(tmp_path / "out"), "--push-to-hub", "me/sae"]
    result = invoke(app, words)  # HF_HUB_OFFLINE
    assert result.exit_code == 2
    assert "--push-to-hub me/sae: " in result.output
    assert (tmp_path / "out" / "cfg.json").exists()
