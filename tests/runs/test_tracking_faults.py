"""Whole runs beside a Weights & Biases server that misbehaves: same artefact, no waiting, nothing lost."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sae_cli.config.compose import compose
from sae_cli.runs import tracking
from sae_cli.training.execute import execute
from sae_cli.training.trainer import Trainer
from tests.runs.fake_wandb import FakeServer, history_of, read_back, serve

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.usefixtures("key")]

WORDS = ["source=three_features", "sae.latents=3", "train.tokens=8192", "train.batch=64", "train.precision=fp32"]
STEPS = list(range(8, 129, 8))


@pytest.fixture(scope="module")
def artefact(tmp_path_factory) -> bytes:
    """The artefact of a run without Weights & Biases."""
    (outcome,) = execute([compose([*WORDS, "tracker=jsonl", f"runs_dir={tmp_path_factory.mktemp('plain')}"])])
    return (outcome.folder / "sae.safetensors").read_bytes()


def train(runs_dir: Path) -> Path:
    (outcome,) = execute([compose([*WORDS, "train.log_every=8", "tracker.mode=online", f"runs_dir={runs_dir}"])])
    assert outcome.state == "done"
    return outcome.folder


def at_step(step: int, monkeypatch, action) -> None:
    """Do something in the training loop, after the log line of a step."""
    original = Trainer.log_metrics

    def log_metrics(self, now, progress):
        original(self, now, progress)
        if now == step:
            action()

    monkeypatch.setattr(Trainer, "log_metrics", log_metrics)


def wait_for(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def steps_in(rows: list[dict]) -> list[int]:
    """Return the steps of a history, of which a summary repeats the last."""
    return list(dict.fromkeys(row["_step"] for row in rows if {"_step", "loss"} <= set(row)))


@pytest.mark.parametrize("answer", ["hold", "ok"])
def test_training_ends_before_the_server_answers(tmp_path, monkeypatch, artefact, answer):
    """The server holds all requests, or all after the first lines of metrics, until training is done."""
    for name in ("PROBE_SECONDS", "INIT_SECONDS", "FINISH_SECONDS"):
        monkeypatch.setattr(tracking, name, 50)
    server = serve(answer, monkeypatch)
    if answer == "ok":
        at_step(24, monkeypatch, lambda: (wait_for(lambda: server.history), setattr(server, "answer", "hold")))
    at_step(STEPS[-1], monkeypatch, server.release.set)
    folder = train(tmp_path)
    tracking.wait_for_uploads()
    server.stop()
    assert (folder / "sae.safetensors").read_bytes() == artefact
    assert steps_in([json.loads(line) for line in server.history]) == STEPS


@pytest.mark.parametrize("answer", ["refused", "401", "429", "500"])
def test_a_server_that_takes_no_run_leaves_an_offline_one(tmp_path, monkeypatch, caplog, artefact, answer):
    server = serve(answer, monkeypatch)
    if answer == "refused":
        server.stop()
    folder = train(tmp_path)
    assert (folder / "sae.safetensors").read_bytes() == artefact
    assert caplog.text.count("writing offline") == 1
    assert steps_in(history_of(read_back(folder))) == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["gone", "401", "429", "500"])
def test_a_server_that_is_lost_on_the_way_gets_everything_later(tmp_path, monkeypatch, caplog, artefact, answer):
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 2)
    server = serve("ok", monkeypatch)

    def lose() -> None:
        wait_for(lambda: server.history)
        server.answer = answer
        if answer == "gone":
            server.stop()

    at_step(24, monkeypatch, lose)
    folder = train(tmp_path)
    tracking.wait_for_uploads()
    server.stop()
    assert (folder / "sae.safetensors").read_bytes() == artefact
    assert "--include-online" in caplog.text
    assert steps_in(history_of(read_back(folder, "run"))) == STEPS
    again = FakeServer("ok")
    monkeypatch.setenv("WANDB_BASE_URL", again.url)
    folders = map(str, folder.glob("wandb/run-*"))
    command = [sys.executable, "-m", "wandb", "sync", "--yes", "--include-online", *folders]
    ended = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60, cwd=tmp_path)
    again.stop()
    assert ended.returncode == 0, ended.stderr
    assert steps_in([json.loads(line) for line in again.history]) == STEPS


@pytest.mark.slow
def test_the_command_ends_well_beside_a_server_that_never_answers(tmp_path, monkeypatch):
    server = serve("hold", monkeypatch)
    words = [sys.executable, "-m", "sae_cli", "train", *WORDS, "tracker.mode=online"]
    ended = subprocess.run(words, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert "writing offline" in ended.stderr
    assert not server.release.is_set()
    assert len(list(tmp_path.glob("runs/default/*/wandb/offline-run-*"))) == 1
