"""The cost model: exact data give back its constants; a prediction is arithmetic."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def model(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import cost_model

    return cost_model


def rows():
    shape = {
        "width": 512,
        "latents": 4096,
        "batch": 2048,
        "l0": 50.0,
        "members": 1,
        "precision": "bf16",
        "path": "torch",
    }
    changes = [("latents", 512), ("latents", 65536), ("width", 64), ("width", 4096), ("batch", 128), ("batch", 16384)]
    changes += [("l0", 2.0), ("l0", 300.0), ("members", 8), ("path", "dense"), ("precision", "fp32")]
    return [shape, *(shape | {name: value} for name, value in changes)]


def test_the_fit_recovers_the_constants_of_exact_data(model):
    true_T = np.array([1 / 4e11, 1 / 4e10, 1 / 1e10, 1 / 2e10, 3e-3])
    made = [row | {"ms": 1000 * float(model.terms(row) @ true_T), "peak_bytes": None} for row in rows()]
    made[0]["peak_bytes"] = 1e8
    found = model.fitted(made)
    assert list(found["seconds_per"]) == list(model.TERMS)
    np.testing.assert_allclose(list(found["seconds_per"].values()), true_T, rtol=1e-6)
    assert max(map(abs, found["residuals"])) < 1e-3


def test_the_fit_of_memory_recovers_its_constants_and_leaves_out_what_was_not_measured(model):
    true_M = np.array([20.0, 5.0, 3e7])
    made = [row | {"ms": 1.0, "peak_bytes": float(model.memory_terms(row) @ true_M)} for row in rows()]
    found = model.fitted([*made, rows()[0] | {"ms": 1.0, "peak_bytes": None}])
    np.testing.assert_allclose(list(found["bytes_per"].values()), true_M, rtol=1e-6)
    assert len(found["memory_residuals"]) == len(made)


def test_no_constant_is_negative(model):
    constants_T, residuals_N = model.fit(np.array([[1.0, 1.0], [1.0, 2.0]]), np.array([2.0, 1.0]))
    assert (constants_T >= 0).all()
    assert np.abs(residuals_N).max() < 0.6


def test_a_prediction_is_the_sum_of_its_parts(model):
    goal, device = model.Goal(), model.Device()
    said = dict(model.predict(goal, device, row_bytes=16392))
    parts = [float(value.split()[0]) for name, value in said.items() if name.startswith("... ")]
    step_ms = float(said[f"a step of {goal.batch:,} tokens"].split()[0])
    assert sum(parts) == pytest.approx(step_ms, abs=1)
    encoder = 2 * goal.batch * goal.width * goal.latents / 128 / 989e12 / 0.5
    assert float(said["... encoder's product"].split()[0]) == pytest.approx(1000 * encoder, rel=1e-3)
    assert said["devices of 80 GB that hold it"] == "128"
    days = goal.tokens / goal.batch * step_ms / 1000 / 86400
    assert float(said["days for 1e+11 tokens"]) == pytest.approx(days, abs=0.1)
    assert said["cache on disk"] == "1.64 PB"
