"""No artefact, model, configuration or sweep file runs code; none reads the environment."""

import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from sae_cli.assets import TINY
from sae_cli.cli import app
from sae_cli.config.compose import compose
from sae_cli.config.convert import load_config, to_yaml
from sae_cli.errors import UserError
from sae_cli.interop.reading import open_sae
from sae_cli.interop.writing import save_foreign
from sae_cli.runs.grid import read_grid_file
from sae_cli.sources.vectors import _shape
from tests.interop.test_writing import example


class Payload:
    """Pickled, it writes a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.mark, "it ran"))


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """Return the file that appears if anything runs; that it would is tried first."""
    mark = tmp_path / "mark"
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists()
    mark.unlink()
    return mark


def _legacy(payload: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(payload, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def _zipped(payload: Any) -> bytes:
    stream = io.BytesIO()
    torch.save({"encoder.weight": torch.ones(2, 2), "more": payload}, stream)
    return stream.getvalue()


@pytest.mark.parametrize("pack", [_zipped, _legacy, pickle.dumps])
def test_a_foreign_checkpoint(tmp_path: Path, mark: Path, pack: Callable[[Any], bytes]) -> None:
    save_foreign(tmp_path / "sae", example("topk"), "dictionary_learning")
    (tmp_path / "sae" / "ae.pt").write_bytes(pack(Payload(mark)))
    with pytest.raises(UserError, match=r"no pickle is run"):
        open_sae(tmp_path / "sae")
    assert not mark.exists()


def test_pickles_beside_an_artefact_are_not_opened(tmp_path: Path, mark: Path) -> None:
    save_foreign(tmp_path, example("topk"), "sparsify")
    for name in ("trainer_state.pt", "optimizer.pt", "sae.pt", "checkpoint.pth", "data.pkl"):
        (tmp_path / name).write_bytes(_legacy(Payload(mark)))
    assert open_sae(tmp_path).nonlinearity == "topk"
    assert not mark.exists()


@pytest.mark.parametrize("pack", [_zipped, _legacy, pickle.dumps])
def test_own_vectors(tmp_path: Path, mark: Path, pack: Callable[[Any], bytes]) -> None:
    (tmp_path / "x.pt").write_bytes(pack(Payload(mark)))
    with pytest.raises(UserError, match=r"no pickle is run"):
        _shape(tmp_path / "x.pt")
    assert not mark.exists()


def test_object_arrays(tmp_path: Path, mark: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[Payload(mark)]], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"cannot read .*x\.npy"):
        _shape(tmp_path / "x.npy")
    assert not mark.exists()


@pytest.mark.slow
def test_a_model_folder(tmp_path: Path, mark: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    code = f"from pathlib import Path\nPath({str(mark)!r}).write_text('it ran')\n"
    for name in ("modeling_evil", "configuration_evil", "tokenization_evil"):
        (folder / f"{name}.py").write_text(code)
    for name, classes in {
        "config.json": {"AutoConfig": "configuration_evil.C", "AutoModelForCausalLM": "modeling_evil.M"},
        "tokenizer_config.json": {"AutoTokenizer": ["tokenization_evil.T", "tokenization_evil.T"]},
    }.items():
        settings = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).write_text(json.dumps(settings | {"auto_map": classes, "model_type": "evil"}))
    (folder / "pytorch_model.bin").write_bytes(_legacy(Payload(mark)))
    run = CliRunner().invoke(app, ["cache", "model=tiny", f"model.path={folder}", f"cache.dir={tmp_path}", "text=wiki"])
    assert (run.exit_code, "cannot be loaded" in run.output) == (2, True), run.output
    for file in folder.glob("*.safetensors"):
        file.unlink()
    run = CliRunner().invoke(app, ["cache", "model=tiny", f"model.path={folder}", f"cache.dir={tmp_path}", "text=wiki"])
    assert (run.exit_code, "holds no config.json with *.safetensors" in run.output) == (2, True), run.output
    assert not mark.exists()


@pytest.mark.slow
def test_a_folder_of_a_dataset(tmp_path: Path, mark: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "data.py").write_text(f"open({str(mark)!r}, 'w')\n")
    (folder / "train.pkl").write_bytes(pickle.dumps(Payload(mark)))
    with zipfile.ZipFile(folder / "train.zip", "w") as packed:
        packed.writestr("a.pickle", pickle.dumps(Payload(mark)))
        packed.writestr("a.pth", _legacy(Payload(mark)))
    run = CliRunner().invoke(
        app, ["cache", "model=tiny", "text=hf", f"text.dataset={folder}", f"cache.dir={tmp_path}"],
        env={"HF_HOME": str(tmp_path / "hf")},
    )  # fmt: skip
    assert run.exit_code == 2, run.output
    assert "text.dataset" in run.output
    assert not mark.exists()


def test_references_that_explode_are_refused(tmp_path: Path) -> None:
    keys = ["name", "model.name", "model.path", "model.revision", "text.name", "text.path", "text.subset"]
    values = {keys[0]: 100 * "x"} | {key: 20 * f"${{{before}}}" for before, key in pairwise(keys)}
    words = [f"{key}='{value}'" for key, value in values.items()]
    with pytest.raises(UserError, match=r"text\.\w+: too many references"):
        compose(words)
    assert compose(words[:2]).model.name == 2_000 * "x"
    sections = yaml.safe_load(to_yaml(compose([])))
    for key, value in values.items():
        *section, name = key.split(".")
        (sections[section[0]] if section else sections)[name] = value
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(sections))
    with pytest.raises(UserError, match=r"config\.yaml: text\.\w+: too many references"):
        load_config(tmp_path / "config.yaml")


CALL = "{_target_: pathlib.Path.touch, self: {_target_: pathlib.Path, _args_: [MARK]}}"
OWN = {
    "target": ("sae:\n  ste: " + CALL, False),
    "section": ("sae:\n  _target_: pathlib.Path", False),
    "callback": ("hydra:\n  callbacks:\n    x: " + CALL, True),
    "logging": ("hydra:\n  job_logging:\n    handlers: {x: {(): pathlib.Path.touch, self: MARK}}", True),
    "searchpath": ("hydra:\n  searchpath: [file:///etc]", False),
    "environment": ("model:\n  revision: ${oc.env:HOME}", False),
    "nested": ("model:\n  revision: ${oc.${sae.ste}:HOME}", False),
    "decode": ("model:\n  revision: ${oc.decode:'${oc.env:HOME}'}", False),
    "object": ("name: !!python/object/apply:os.system ['touch MARK']", False),
}
"""Of the user's own folder, which may come from somebody else; whether it is left aside instead of refused."""


@pytest.mark.slow
@pytest.mark.parametrize("case", OWN)
def test_own_settings(tmp_path: Path, mark: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "a-secret")
    text, left_aside = OWN[case]
    (tmp_path / "own" / "train").mkdir(parents=True)
    (tmp_path / "own" / "train" / "x.yaml").write_text("# @package _global_\n" + text.replace("MARK", str(mark)) + "\n")
    words = ["experiment=three_features", "train=x", "train.tokens=2048", "tracker=jsonl", f"runs_dir={tmp_path}/runs"]
    run = CliRunner().invoke(app, ["sweep", *words, f"--config-dir={tmp_path / 'own'}"])
    assert run.exit_code == (0 if left_aside else 2), run.output
    assert "a-secret" not in run.output
    assert not mark.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "word",
    [
        "hydra.callbacks.x._target_=os.system",
        "+hydra.callbacks.x._target_=os.system",
        "++hydra/callbacks=x",
        "hydra/launcher=joblib",
        "hydra.searchpath=[file:///etc]",
        "hydra.run.dir=/tmp",
        "_target_=os.system",
        "+sae._target_=os.system",
        "+stack=/etc/passwd",
        "name=${oc.env:HOME}",
        "model.path=${oc.decode:${oc.env:HOME}}",
        "name=${hydra:runtime.cwd}",
        "sae@hydra.callbacks=relu",
    ],
)
def test_overrides_and_sweep_files(tmp_path: Path, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "a-secret")
    with pytest.raises(UserError) as refused:
        compose([word])
    assert "a-secret" not in str(refused.value)
    key, _, value = word.partition("=")
    grid = {"method": "grid", "parameters": {key: {"values": [value]}}}
    (tmp_path / "grid.yaml").write_text(json.dumps(grid))
    run = CliRunner().invoke(app, ["sweep", str(tmp_path / "grid.yaml"), "--dry-run"])
    assert run.exit_code == 2, run.output
    assert "a-secret" not in run.output


@pytest.mark.slow
def test_the_program_and_command_of_a_sweep_file_are_for_wandb_alone(tmp_path: Path, mark: Path) -> None:
    grid = {"program": f"touch {mark}", "command": ["touch", str(mark)], "method": "grid"}
    grid["parameters"] = {"source.features": {"values": [3]}}
    (tmp_path / "grid.yaml").write_text(json.dumps(grid))
    words = ["experiment=three_features", "tracker=jsonl", "train.tokens=2048", f"runs_dir={tmp_path / 'runs'}"]
    run = CliRunner().invoke(app, ["sweep", str(tmp_path / "grid.yaml"), *words])
    assert run.exit_code == 0, run.output
    assert not mark.exists()
    (tmp_path / "grid.yaml").write_text("method: !!python/object/apply:os.system ['touch " + str(mark) + "']")
    with pytest.raises(UserError, match="not valid YAML"):
        read_grid_file(tmp_path / "grid.yaml")
    assert not mark.exists()


def test_the_configuration_of_a_run(tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "a-secret")
    sound = to_yaml(compose([]))
    for line in ("name: ${oc.env:HOME}", f"name: !!python/object/apply:os.system ['touch {mark}']"):
        (tmp_path / "config.yaml").write_text(sound.replace("name: default", line))
        with pytest.raises(UserError, match=r"config\.yaml") as refused:
            load_config(tmp_path / "config.yaml")
        assert "a-secret" not in str(refused.value)
    assert not mark.exists()
