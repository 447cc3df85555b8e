"""Every parser on some mutated inputs; `make fuzz` takes many more."""

import logging
from pathlib import Path

import pytest

from tests.fuzz.run import mutate
from tests.fuzz.target import attempt, fill
from tests.fuzz.targets import make_targets

INPUTS = {"overrides": 30, "grid": 30, "config": 30, "own settings": 30}
"""Hydra takes its time."""


@pytest.mark.slow
def test_bad_input_is_refused_and_sound_input_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logging.disable(logging.CRITICAL)
    monkeypatch.chdir(tmp_path)  # where a failed input is kept
    try:
        for name, target in make_targets(tmp_path / "made").items():
            folder = tmp_path / "folder"
            fill(target, folder)
            assert attempt(target, folder, target.seeds[0]), name
            mutate(target, folder, INPUTS.get(name, 100), name)
    finally:
        logging.disable(logging.NOTSET)
