"""`--profile`: the files, the table, and a training that is the same without it."""

import json

import pytest
import torch

from sae_cli.training.execute import execute
from sae_cli.training.profile import PHASES, TABLE, TRACE, phase
from tests.training.points import point


def trained(folder, profile, *words):
    (outcome,) = execute([point(folder, *words)], profile=profile)
    assert outcome.state == "done"
    return outcome.folder


def rows(folder):
    lines = (folder / TABLE).read_text().split("\n\n")[0].splitlines()[1:]
    return {line[:40].strip(): line[40:].split() for line in lines}


def test_a_profile_changes_nothing_and_says_where_time_goes(tmp_path):
    plain, profiled = trained(tmp_path / "a", False), trained(tmp_path / "b", True)
    assert (plain / "sae.safetensors").read_bytes() == (profiled / "sae.safetensors").read_bytes()
    assert not (plain / TRACE).exists()
    assert not phase.on
    found = rows(profiled)
    assert set(found) == {*PHASES, "rest", "a step"} - {"auxiliary", "checkpoint"}
    assert found["a step"][0] == found["encode"][0] == "5"
    assert found["log"][0] == "1"
    times = {name: float(cells[1]) for name, cells in found.items()}
    assert sum(times.values()) - times["a step"] == pytest.approx(times["a step"], rel=0.01)
    assert (profiled / TABLE).read_text().count("aten::") >= 10
    names = {event["name"] for event in json.loads((profiled / TRACE).read_text())["traceEvents"]}
    assert {"backward", "optimiser", "aten::bmm"} <= names


@pytest.mark.parametrize("steps", [1, 3])
def test_a_short_run_is_profiled_to_its_end(tmp_path, steps):
    found = rows(trained(tmp_path, True, f"train.tokens={80 * steps}"))
    assert found["a step"][0] == str(steps)
    assert found["checkpoint"][0] == "1"


def test_a_phase_is_labelled_only_while_profiling(monkeypatch):
    @phase("work")
    def work():
        return torch.ones(2).sum()

    with torch.profiler.profile() as profiler:
        work()
        monkeypatch.setattr(phase, "on", True)
        work()
    assert [event.count for event in profiler.key_averages() if event.key == "work"] == [1]
