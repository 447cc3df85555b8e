"""What the training loop logs."""

import json
from types import SimpleNamespace

import pytest

from sae_cli.training import trainer
from sae_cli.training.execute import execute
from tests.training.points import point


@pytest.mark.parametrize(
    ("words", "logged"),
    [
        (["orthogonality=cells", "orthogonality.rows=active", "orthogonality.refresh=1"], True),
        (["orthogonality=unique_nearest"], True),
        (["orthogonality=nearest"], False),
        (["orthogonality=chunked", "orthogonality.weight=0"], False),
    ],
)
def test_approximate_penalties_log_what_they_see(tmp_path, words, logged):
    (outcome,) = execute([point(tmp_path, *words, "train.tokens=1600", "train.log_every=1")])
    lines = [json.loads(line) for line in (outcome.folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        histogram = line["step"] % 10 == 0
        assert ("nearest_cosine" in line) == histogram
        if histogram:
            assert line["bias_p05"] <= line["bias_p50"] <= line["bias_p95"]
        assert ("neighbour_recall" in line) == ("neighbour_gap" in line) == (histogram and logged)
        if histogram and logged:
            assert 0 <= line["neighbour_recall"] <= 1
            assert line["neighbour_gap"] >= -1e-6


def test_data_wait_is_the_share_of_the_time_since_the_last_line(tmp_path, monkeypatch):
    clock, batches, step = [0.0], trainer.Trainer.scaled_batches, trainer.Stepper.step

    def slow_batches(self, start):
        for number, x_BD in enumerate(batches(self, start)):
            clock[0] += 3 if number < 20 else 0.25
            yield x_BD

    def slow_step(self, number, x_BD):
        clock[0] += 1
        step(self, number, x_BD)

    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(trainer.Trainer, "scaled_batches", slow_batches)
    monkeypatch.setattr(trainer.Stepper, "step", slow_step)
    (outcome,) = execute([point(tmp_path)])
    lines = [json.loads(line) for line in (outcome.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["data_wait"] for line in lines] == [0.75, 0.75, 0.2, 0.2]
