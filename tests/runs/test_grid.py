"""Grid files: the same points as W&B's agent makes, and one clear line for what a grid does not have."""

from pathlib import Path

import pytest
import yaml

from sae_cli.config.compose import compose
from sae_cli.errors import UserError
from sae_cli.runs.grid import find_grid_file, join_grids, read_grid_file

SHIPPED = sorted(path.name for path in (Path(__file__).parents[2] / "sweeps").glob("*.yaml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "g.yaml"
    path.write_text(text)
    return path


def test_values_span_a_grid_in_which_the_last_key_varies_fastest(tmp_path):
    path = write(tmp_path, "method: grid\nparameters: {sae: {values: [relu, prolu_ste]}, train.lr: {values: [1, 2]}}")
    assert read_grid_file(path) == [
        ["sae=relu", "train.lr=1"],
        ["sae=relu", "train.lr=2"],
        ["sae=prolu_ste", "train.lr=1"],
        ["sae=prolu_ste", "train.lr=2"],
    ]


def test_values_of_every_kind_are_written_so_that_hydra_reads_them(tmp_path):
    text = "method: grid\nparameters: {a: {value: true}, b: {value: null}, c: {value: [0.25, 0.5]}, d: {value: 1e-3}}"
    assert read_grid_file(write(tmp_path, text)) == [["a=True", "b=null", "c=[0.25, 0.5]", "d=1e-3"]]
    config = compose(["train.deterministic=True", "train.resample_at=[0.25, 0.5]", "train.lr=1e-3"])
    assert (config.train.deterministic, config.train.resample_at, config.train.lr) == (True, [0.25, 0.5], 0.001)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("method: bayes\nparameters: {a: {values: [1]}}", "method"),
        ("parameters: {a: {values: [1]}}", "method"),
        ("method: grid", "parameters"),
        ("method: grid\nparameters: {a: {values: 3}}", "parameters.a.values"),
        ("method: grid\nparameters: {a: {values: []}}", "parameters.a.values"),
        ("method: grid\nparameters: {a: {min: 1, max: 2}}", "parameters.a"),
        ("method: grid\nparameters: {a: 3}", "parameters.a"),
        ("method: grid\nparameters: {a: {value: {b: 1}}}", "parameters.a"),
        ("method: grid\nparameter: {a: {values: [1]}}", "Did you mean parameters"),
        ("method: grid\nrun_cap: 3\nparameters: {a: {values: [1]}}", "run_cap"),
        ("- 1", "parameters"),
        ("a: [", "YAML"),
        ("!!python/object/apply:os.getcwd []", "YAML"),
    ],
)
def test_what_is_not_a_grid_is_refused_with_file_and_key(tmp_path, text, names):
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        read_grid_file(path)
    message = str(caught.value)
    assert str(path) in message
    assert names in message
    assert "\n" not in message


def test_keys_of_the_line_replace_the_files_and_equal_points_count_once():
    file = [["a=1", "b=1"], ["a=2", "b=1"]]
    assert join_grids(file, [["c=1"], ["c=2"]]) == [
        ["a=1", "b=1", "c=1"],
        ["a=1", "b=1", "c=2"],
        ["a=2", "b=1", "c=1"],
        ["a=2", "b=1", "c=2"],
    ]
    assert join_grids(file, [["a=5"]]) == [["b=1", "a=5"]]


@pytest.mark.parametrize("word", ["demo", "demo.yaml", "sweeps/demo.yaml"])
def test_shipped_files_are_found_by_name_from_any_folder(tmp_path, monkeypatch, word):
    monkeypatch.chdir(tmp_path)
    assert find_grid_file(word).name == "demo.yaml"


def test_a_file_that_is_not_there_names_the_shipped_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"prolu_paret: no such grid file.*Did you mean prolu_pareto"):
        find_grid_file("prolu_paret")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_are_documented_and_their_points_are_valid(name):
    path = find_grid_file(name)
    header = path.read_text().split("program:")[0]
    assert all(f"# {word}" in header for word in ("Command:", "Time:", "Result:"))
    points = read_grid_file(path)
    assert len(points) >= 4
    (name,) = {compose(point).name for point in points}
    assert path.stem.startswith(name)  # sweeps of one name share a folder of runs


@pytest.mark.parametrize("name", SHIPPED)
def test_an_agent_of_wandb_runs_the_same_points(name):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args, load_sweep_config

    path = find_grid_file(name)
    file = load_sweep_config(str(path))
    assert file is not None
    command = create_sweep_command(file["command"])
    assert command == ["${env}", "sae", "train", "${args_no_hyphens}"]
    assert file["program"] == "sae"
    point = {}
    for key, entry in yaml.safe_load(path.read_text())["parameters"].items():
        point[key] = {"value": entry["values"][0] if "values" in entry else entry["value"]}
    assert create_sweep_command_args({"args": point})["args_no_hyphens"] == read_grid_file(path)[0]
