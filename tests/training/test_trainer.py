"""What the training loop logs."""

import json

import pytest

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
