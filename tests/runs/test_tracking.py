"""Weights & Biases: what it records offline, and that nothing it does can stop or hold up a run."""

import gzip
import http.server
import json
import logging
import os
import struct
import subprocess
import sys
import threading
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

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


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


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    """No key, no settings of the person who runs the tests, and nothing learnt by earlier tests."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    monkeypatch.setattr(tracking, "_answers", [])
    monkeypatch.setattr(tracking, "_said", set())
    import wandb

    wandb.teardown()
    yield
    wandb.teardown()


def read_back(folder, kind: str = "offline-run") -> list:
    """Return the records of the only run file below `folder`: protobufs of wandb in a LevelDB log."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # the service has written everything once it is gone
    (file,) = folder.glob(f"wandb/{kind}-*/run-*.wandb")
    data, position, parts, records = file.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            records.append(Record.FromString(parts))
            parts = b""
    return records


def history_of(records: list) -> list[dict]:
    rows = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            rows.append({".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item})
    return rows


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


class FakeServer:
    """Answers as much of the W&B protocol as an online run asks for, and keeps what it was sent."""

    def __init__(self, answer: str) -> None:
        fake = self
        self.answer = answer
        self.history: list[str] = []
        self.queries: list[str] = []
        self.variables: list[dict] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def reply(self, code: int, body: object = None) -> None:
                data = json.dumps(body or {}).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                self.reply(200)

            do_PUT = do_GET

            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    data = gzip.decompress(data)
                body = json.loads(data or b"{}")
                if fake.answer == "error":
                    self.reply(500)
                elif fake.answer == "hang":
                    time.sleep(60)
                elif fake.answer == "denied":
                    self.reply(401, {"errors": [{"message": "user is not logged in"}]})
                elif fake.answer == "full" and "upsertBucket" in body.get("query", ""):
                    self.reply(403, {"errors": [{"message": "storage limit exceeded"}]})
                elif self.path.endswith("/graphql"):
                    fake.queries.append(body["query"])
                    fake.variables.append(body.get("variables") or {})
                    self.reply(200, {"data": fake.graphql(body)})
                else:
                    for file in body.get("files", {}).values():
                        fake.history += file["content"]
                    self.reply(200, {"exitcode": None, "limits": {}})

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def graphql(self, body: dict) -> dict:
        if "viewer" in body["query"]:
            return {"viewer": {"id": "1", "entity": "me", "flags": "{}"}}
        if "upsertBucket" in body["query"]:
            name = body["variables"].get("name", "x")
            project = {"name": "sae", "entity": {"name": "me"}}
            bucket = {"id": name, "name": name, "displayName": name, "historyLineCount": 0, "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "createRunFiles" in body["query"]:
            return {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": []}}
        return {"serverInfo": {"features": []}, "model": None}

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)


def serve(answer: str, monkeypatch) -> FakeServer:
    server = FakeServer(answer)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    return server


def test_with_a_key_and_a_server_the_run_is_sent(tmp_path, monkeypatch, key):
    server = serve("ok", monkeypatch)
    with open_tracker(make_config(), "abc", "1", tmp_path, False) as tracker:
        tracker.log(1, {"loss": 2.5})
    for thread in threading.enumerate():
        if thread.name == "wandb-finish-abc-1":
            thread.join(30)
    server.stop()
    assert tracker.state() == {"wandb_id": "abc-1"}
    assert any("upsertBucket" in query for query in server.queries)
    assert any(json.loads(line).get("loss") == 2.5 for line in server.history)


@pytest.mark.parametrize("answer", ["refused", "error", "denied", "hang", "full"])
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


def test_a_server_that_dies_during_the_run_holds_nothing_up(tmp_path, monkeypatch, key):
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 2)
    server = serve("ok", monkeypatch)
    start = time.monotonic()
    with open_tracker(make_config(), "abc", "1", tmp_path, False) as tracker:
        tracker.log(1, {"loss": 2.5})
        server.stop()
        for step in range(2, 200):
            tracker.log(step, {"loss": 1.0})
    assert time.monotonic() - start < 8
    for thread in threading.enumerate():
        if thread.name == "wandb-finish-abc-1":
            thread.join(60)
            assert not thread.is_alive()
    assert len(history_of(read_back(tmp_path, "run"))) == 199


def test_a_broken_client_is_one_warning_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
    import wandb

    def broken(**arguments):
        raise RuntimeError("no disk")

    monkeypatch.setattr(wandb, "init", broken)
    with open_tracker(make_config(), "abc", "1", tmp_path, False) as tracker:
        tracker.log(1, {"loss": 1.0})
    assert type(tracker) is Tracker
    assert "no disk" in caplog.text


def test_a_call_that_fails_silences_the_tracker(tmp_path, caplog):
    with open_tracker(make_config(), "abc", "1", tmp_path, False) as tracker:
        tracker._run.finish()
        for step in range(3):
            tracker.log(step, {"loss": 1.0})
    assert sum("metrics.jsonl alone" in record.getMessage() for record in caplog.records) == 1
