"""Weights & Biases: what it records offline, and that nothing it does can stop or hold up a run."""

import json
import logging
import subprocess
import sys
import time

import numpy as np
import pytest

from sae_cli.config.schema import (
    Config,
    ModelConfig,
    OrthogonalityConfig,
    SAEConfig,
    SourceConfig,
    SparsityConfig,
    TextConfig,
    TrackerConfig,
)
from sae_cli.runs import tracking
from sae_cli.runs.tracking import Tracker, WandbTracker, init_arguments, open_tracker
from tests.runs.fake_wandb import history_of, read_back, serve

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.usefixtures("no_account")]


def make_config(**tracker) -> Config:
    return Config(
        model=ModelConfig(name="m", path="p", hook="h"),
        text=TextConfig(name="t", path="p"),
        source=SourceConfig(kind="three_features"),
        sae=SAEConfig(nonlinearity="relu"),
        sparsity=SparsityConfig(kind="l1", weight=0.5),
        orthogonality=OrthogonalityConfig(kind="none"),
        tracker=TrackerConfig(**{"kind": "wandb", **tracker}),
        name="my_sweep",
    )


def test_an_offline_run_holds_values_config_group_histogram_and_summary(tmp_path):
    with open_tracker(make_config(), "abc123", "a1", tmp_path, resume=False) as tracker:
        tracker.log(1, {"loss": 2.5, "l0": 10.0})
        tracker.histogram(1, "bias", np.array([0.0, 1.0, 1.0, np.nan]))
        tracker.log(2, {"loss": 1.5, "l0": 9.0})
        tracker.summary({"fvu": 0.25})
        assert tracker.state() == {"wandb_id": "abc123-a1"}
    records = read_back(tmp_path)
    (run,) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
    assert (run.run_id, run.run_group, run.project) == ("abc123-a1", "my_sweep", "sae")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["sparsity"]["weight"] == 0.5
    assert config["run_id"] == "abc123"
    first, second = history_of(records)
    assert (first["_step"], first["loss"], first["l0"]) == (1, 2.5, 10.0)
    assert (second["_step"], second["loss"]) == (2, 1.5)
    assert first["bias._type"] == "histogram"
    assert sum(first["bias.values"]) == 3
    updates = [u for r in records if r.WhichOneof("record_type") == "summary" for u in r.summary.update]
    assert {"fvu": 0.25}.items() <= {u.key: json.loads(u.value_json) for u in updates}.items()


def test_runs_of_one_process_do_not_mix(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    first, second = (open_tracker(make_config(), folder.name, "1", folder, False) for folder in folders)
    with first, second:
        for step in range(3):
            first.log(step, {"loss": 1.0})
            second.log(step, {"loss": 2.0})
    for folder, loss in zip(folders, (1.0, 2.0), strict=True):
        assert [row["loss"] for row in history_of(read_back(folder))] == [loss] * 3


def test_a_resumed_attempt_keeps_its_id_and_a_fresh_one_gets_another(tmp_path):
    resumed = init_arguments(make_config(), "abc", "a1", tmp_path, resume=True)
    assert (resumed["id"], resumed["resume"]) == ("abc-a1", "allow")
    assert init_arguments(make_config(), "abc", "a1", tmp_path, resume=False)["id"] == resumed["id"]
    assert init_arguments(make_config(), "abc", "a2", tmp_path, resume=False)["id"] == "abc-a2"


def test_group_project_and_entity_follow_the_config(tmp_path):
    arguments = init_arguments(make_config(group="g", project="p", entity="e"), "abc", "1", tmp_path, False)
    assert (arguments["group"], arguments["project"], arguments["entity"]) == ("g", "p", "e")


def test_an_agent_of_wandb_sweep_keeps_id_group_and_project(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    arguments = init_arguments(make_config(group="g"), "abc", "1", tmp_path, True)
    assert not {"id", "group", "project", "entity", "resume"} & set(arguments)
    assert arguments["config"]["run_id"] == "abc"


@pytest.mark.parametrize("how", ["jsonl", "disabled"])
def test_no_tracker_writes_nothing(tmp_path, monkeypatch, how):
    if how == "disabled":
        monkeypatch.setenv("WANDB_MODE", "disabled")
    config = make_config(kind="jsonl") if how == "jsonl" else make_config()
    with open_tracker(config, "abc", "1", tmp_path, False) as tracker:
        tracker.log(1, {"loss": 1.0})
        tracker.histogram(1, "bias", np.zeros(3))
        tracker.summary({"fvu": 1})
    assert type(tracker) is Tracker
    assert list(tmp_path.iterdir()) == []


def test_without_a_key_it_says_once_that_it_writes_offline(tmp_path, caplog):
    caplog.set_level(logging.INFO, "sae_cli")
    for name in "ab":
        (tmp_path / name).mkdir()
        with open_tracker(make_config(), name, "1", tmp_path / name, False):
            pass
    lines = [record.getMessage() for record in caplog.records if record.name == tracking.__name__]
    assert len(lines) == 1
    assert "no key" in lines[0]
    assert "offline" in lines[0]


def test_importing_the_module_does_not_import_wandb():
    code = "import sys, sae_cli.runs.tracking; print('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_with_a_key_and_a_server_the_run_is_sent(tmp_path, monkeypatch, key):
    server = serve("ok", monkeypatch)
    with open_tracker(make_config(), "abc", "1", tmp_path, False) as tracker:
        tracker.log(1, {"loss": 2.5})
    tracking.wait_for_uploads()
    server.stop()
    assert tracker.state() == {"wandb_id": "abc-1"}
    assert any("upsertBucket" in query for query in server.queries)
    assert any(json.loads(line).get("loss") == 2.5 for line in server.history)


@pytest.mark.parametrize("answer", ["refused", "500", "429", "denied", "hang", "full"])
def test_a_server_that_does_not_take_runs_costs_one_short_wait_per_process(tmp_path, monkeypatch, caplog, key, answer):
    if answer == "refused":
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    else:
        serve(answer, monkeypatch)
    start = time.monotonic()
    for name in "abcd":
        (tmp_path / name).mkdir()
        with open_tracker(make_config(), name, "1", tmp_path / name, False) as tracker:
            tracker.log(1, {"loss": 2.5})
        assert isinstance(tracker, WandbTracker)
    assert time.monotonic() - start < 20
    for name in "abcd":
        assert history_of(read_back(tmp_path / name))[0]["loss"] == 2.5
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING and r.name == tracking.__name__]
    assert len(warnings) == 1
    assert "wandb sync" in warnings[0].getMessage()


def test_an_offline_run_is_read_and_sent_by_wandb_sync(tmp_path, monkeypatch, key):
    with open_tracker(make_config(mode="offline"), "abc", "1", tmp_path, False) as tracker:
        tracker.log(1, {"loss": 2.5})
        tracker.histogram(1, "bias", np.arange(8.0))
    assert history_of(read_back(tmp_path))
    server = serve("ok", monkeypatch)
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    command = [sys.executable, "-m", "wandb", "sync", "--yes", str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60, cwd=tmp_path)
    server.stop()
    assert ended.returncode == 0, ended.stderr
    (bucket,) = [v for v in server.variables if v.get("name") == "abc-1" and v.get("groupName")]
    assert (bucket["groupName"], bucket["project"]) == ("my_sweep", "sae")
    assert json.loads(bucket["config"])["sparsity"]["value"]["weight"] == 0.5
    row = next(row for row in map(json.loads, server.history) if "loss" in row)
    assert row["loss"] == 2.5
    assert row["bias"]["_type"] == "histogram"


def test_a_broken_client_is_one_warning_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
    import wandb

    def broken(**arguments):
        raise RuntimeError("no disk")

    monkeypatch.setattr(wandb, "init", broken)
    with open_tracker(make_config(), "abc", "1", tmp_path, False) as tracker:
        tracker.log(1, {"loss": 1.0})
    assert "no disk; metrics go to metrics.jsonl alone" in caplog.text


def test_a_call_that_fails_silences_the_tracker(tmp_path, caplog):
    with open_tracker(make_config(), "abc", "1", tmp_path, False) as tracker:
        for step in range(3):
            tracker.log(step, {"loss": object()})
    assert sum("metrics.jsonl alone" in record.getMessage() for record in caplog.records) == 1
