"""Configs survive the way to YAML and back, and nothing unknown gets in."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_cli.config.compose import compose
from sae_cli.config.convert import flat, from_dict, load_config, load_flat, to_dict, to_yaml
from sae_cli.config.keys import keys
from sae_cli.errors import UserError

CONFIG = compose(["source=three_features", "train.resample_at=[0.5]", "cache.dir='a: b'"])


def test_dictionaries_round_trip() -> None:
    assert from_dict(to_dict(CONFIG)) == CONFIG
    assert list(flat(CONFIG)) == [key.name for key in keys()]
    assert flat(CONFIG)["train.resample_at"] == [0.5]


@settings(max_examples=20, deadline=None)
@given(st.floats(1e-12, 1e12), st.integers(0, 2**63), st.text(st.characters(exclude_categories=["C"]), max_size=9))
def test_yaml_round_trips(tmp_path_factory: pytest.TempPathFactory, lr: float, seed: int, text: str) -> None:
    tracker = replace(CONFIG.tracker, entity=text.replace("$", "").replace("???", ""))  # "???" is a missing value
    config = replace(CONFIG, seed=seed, train=replace(CONFIG.train, lr=lr), tracker=tracker)
    path = tmp_path_factory.mktemp("yaml") / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(path) == config
    assert load_flat(path) == flat(config)


def test_flat_files_are_converted_and_checked_as_configs_are(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    text = to_yaml(CONFIG)
    changes = (("lr: 0.001", "lr: 1"), ("lr: 0.001", "lr: ${seed}"), ("  tile: 1024\n", ""))
    for words in (text, *(text.replace(*change) for change in changes), text + "cache: {}\n"):
        path.write_text(words)
        found, expected = ([(key, type(value), value) for key, value in values.items()] for values in both(path))
        assert found == expected
    for wrong in ("lr: many", "lr: null", "lr: [1]", "lrr: 1"):
        path.write_text(text.replace("lr: 0.001", wrong))
        with pytest.raises(UserError, match=r"config\.yaml: "):
            load_flat(path)
    for wrong in ("]", "3", "", "train:", text.replace("nonlinearity: ", "k2: ")):
        path.write_text(wrong)
        with pytest.raises(UserError, match=r"config\.yaml: "):
            load_flat(path)


def both(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return load_flat(path), flat(load_config(path))


def test_all_problems_of_a_dictionary_are_named() -> None:
    data = to_dict(CONFIG)
    data["train"]["lrr"] = data["train"].pop("lr")
    data["sae"]["latents"] = "many"
    with pytest.raises(UserError) as caught:
        from_dict(data)
    assert "sae.latents=many is not a whole number" in str(caught.value)
    assert "unknown key train.lrr. Did you mean train.lr" in str(caught.value)


def test_missing_values_are_named() -> None:
    data = to_dict(CONFIG)
    del data["sae"]["nonlinearity"]
    with pytest.raises(UserError, match=r"sae\.nonlinearity is not set: relu"):
        from_dict(data)


@pytest.mark.parametrize(("text", "reason"), [("a: [1", "not valid YAML"), ("- 1", "not a mapping"), ("a: 1", "a")])
def test_bad_files_are_named(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"config.yaml: .*{reason}"):
        load_config(path)
    with pytest.raises(UserError, match=r"none\.yaml"):
        load_config(tmp_path / "none.yaml")
