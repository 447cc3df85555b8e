"""From run directories to eval.json: grouping, skipping, and the sections of each kind of source."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sae_cli.config.compose import compose
from sae_cli.config.schema import Config, EvalConfig
from sae_cli.dictionary.artifact import SAE, save_sae
from sae_cli.errors import UserError
from sae_cli.evaluation import evaluate as module
from sae_cli.evaluation.evaluate import evaluate, finite
from sae_cli.runs.directory import RunDirectory
from sae_cli.sources import ActivationSource
from sae_cli.sources.registry import open_source, source_fingerprint
from tests.evaluation.saes import identity_sae, zero_sae

SYNTHETIC = ["source=three_features", "cache.validation_tokens=3000", "eval.rows=2500", "eval.batch=1000"]
MakeRun = Callable[..., RunDirectory]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Return a function that writes a run directory around an SAE, as training leaves it."""

    def make(name: str, config: Config, sae: SAE | None, state: str = "done") -> RunDirectory:
        run = RunDirectory(tmp_path / name)
        run.prepare(config, [], source_fingerprint(config), name, "cpu")
        if sae is not None:
            save_sae(run.path, sae)
        run.set_status(state, 1, 1, name)
        return run

    return make


def test_synthetic_source(make_run: MakeRun) -> None:
    config = compose(SYNTHETIC)
    truth = SAE("relu", torch.eye(3), torch.tensor([0.0, -1e-6, 0.0]), torch.eye(3), torch.zeros(3))
    runs = [make_run("truth", config, truth), make_run("zero", config, zero_sae(3))]
    right, zero = evaluate(runs, "cpu")
    assert right["rows"] == right["latents"]["dead_over_rows"] == 2500
    assert right["reconstruction"]["fvu"] == pytest.approx(0, abs=1e-9)
    assert right["latents"]["dead"] == 0
    assert right["biases"]["negative"] == pytest.approx(1 / 3)
    assert sum(right["biases"]["histogram"]["counts"]) == 3
    assert right["ground_truth"]["mcc"] == right["ground_truth"]["found"] == pytest.approx(1)
    assert right["ground_truth"]["f1"] == right["ground_truth"]["f1_present"] == pytest.approx(1)
    assert right["ground_truth"]["shrinkage"] == pytest.approx(1, abs=1e-4)
    assert right["ground_truth"]["absorption"] is None
    assert zero["ground_truth"]["f1"] == 0
    assert right["geometry"]["self_mmcs"] == pytest.approx(0)
    assert "language_model" not in right
    assert zero["latents"]["dead"] == 1
    assert zero["reconstruction"]["shrinkage"] is None
    for run, result in zip(runs, (right, zero), strict=True):
        assert result == {"run": str(run.path), **run.evaluation}
        assert "NaN" not in (run.path / "eval.json").read_text()


def test_an_absorbing_dictionary_is_told_from_a_true_one(make_run: MakeRun) -> None:
    # Latent 0 is silent where the child is present, and latent 1 is the sum of parent and child.
    config = compose(["source=chanin_hierarchical", "source.noise=0", "cache.validation_tokens=4000", "eval.rows=0"])
    true_GD = open_source(config, "cpu").true_GD
    assert true_GD is not None
    honest = SAE("relu", true_GD.T, torch.zeros(4), true_GD, torch.zeros(50))
    W_enc, W_dec = true_GD.clone(), true_GD.clone()
    W_enc[0] -= true_GD[1]
    W_dec[1] = true_GD[0] + true_GD[1]
    absorbing = SAE("relu", W_enc.T, torch.full((4,), -1e-3), W_dec, torch.zeros(50))
    honest.b_enc_F -= 1e-3
    right, wrong = evaluate([make_run("honest", config, honest), make_run("absorbing", config, absorbing)], "cpu")
    assert (right["ground_truth"]["absorption"], wrong["ground_truth"]["absorption"]) == (0, 1)
    assert right["ground_truth"]["absorption_pairs"] == wrong["ground_truth"]["absorption_pairs"] == 1
    assert wrong["ground_truth"]["silent_alone"] == 0
    assert wrong["reconstruction"]["fvu"] == pytest.approx(right["reconstruction"]["fvu"], abs=1e-4)
    assert wrong["ground_truth"]["composition"] == pytest.approx(math.sqrt(0.5) / 4, abs=1e-5)


def test_settings_given_replace_those_of_the_runs(make_run: MakeRun) -> None:
    run = make_run("run", compose(SYNTHETIC), identity_sae(3))
    assert evaluate([run], "cpu", EvalConfig(rows=1234, contexts=0, batch=100))[0]["rows"] == 1234
    assert evaluate([run], "cpu", EvalConfig(rows=0, contexts=0))[0]["rows"] == 3000
    assert run.evaluation["rows"] == 3000


def test_evaluation_batch_does_not_matter(make_run: MakeRun) -> None:
    run = make_run("run", compose(SYNTHETIC), identity_sae(3))
    first, second = (evaluate([run], "cpu", EvalConfig(batch=size, contexts=0))[0] for size in (700, 3000))
    assert first["reconstruction"] == pytest.approx(second["reconstruction"], rel=1e-6, abs=1e-12)
    assert first["latents"] == second["latents"]


def test_a_source_is_opened_once_for_all_its_runs(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def counting(config: Config, device: str) -> ActivationSource:
        opened.append(config)
        return open_source(config, device)

    monkeypatch.setattr(module, "open_source", counting)
    other = compose([*SYNTHETIC, "source.seed=5"])
    runs = [make_run("a", compose(SYNTHETIC), identity_sae(3)), make_run("b", other, identity_sae(3))]
    runs.append(make_run("c", compose([*SYNTHETIC, "sparsity.weight=3"]), identity_sae(3)))
    results = evaluate(runs, "cpu")
    assert [Path(result["run"]).name for result in results] == ["a", "b", "c"]
    assert sorted(config.source.seed for config in opened) == [0, 5]
    assert results[0]["reconstruction"] == results[2]["reconstruction"] != results[1]["reconstruction"]


def test_unusable_runs_are_skipped_and_named(make_run: MakeRun, caplog: pytest.LogCaptureFixture) -> None:
    config = compose(SYNTHETIC)
    broken = identity_sae(3)
    broken.b_dec_D[0] = math.nan
    bad = [
        make_run("unfinished", config, identity_sae(3), "interrupted"),
        make_run("missing", config, None),
        make_run("diverged", config, broken),
    ]
    with pytest.raises(UserError, match="none of the 3 runs"):
        evaluate(bad, "cpu")
    (result,) = evaluate([*bad, make_run("good", config, identity_sae(3))], "cpu")
    assert Path(result["run"]).name == "good"
    for run in bad:
        assert run.evaluation is None
        assert str(run.path) in caplog.text


def test_language_model_source(make_run: MakeRun, tmp_path: Path) -> None:
    overrides = [f"cache.dir={tmp_path / 'caches'}", "cache.tokens=3000", "cache.validation_tokens=1000"]
    config = compose([*overrides, "eval.rows=0", "eval.contexts=3", "model.context=32", "model.batch=2", "device=cpu"])
    runs = [make_run("identity", config, identity_sae(256)), make_run("zero", config, zero_sae(256))]
    identity, zero = evaluate(runs, "cpu")
    assert identity["rows"] == 1000
    assert identity["reconstruction"]["fvu"] == pytest.approx(0, abs=1e-9)
    losses = identity["language_model"]
    assert losses["tokens"] == 3 * 31
    assert losses["delta_nats"] == pytest.approx(0, abs=1e-5)
    assert losses["recovered_zero"] == losses["recovered_mean"] == pytest.approx(1, abs=1e-5)
    assert zero["language_model"]["recovered_zero"] == pytest.approx(0, abs=1e-6)
    assert zero["language_model"]["ce_sae"] > losses["ce_clean"] + 0.1
    assert "ground_truth" not in identity
    assert "language_model" not in evaluate(runs[:1], "cpu", EvalConfig(rows=100, contexts=0))[0]


def test_first_letters_and_probing_of_a_language_model(make_run: MakeRun, tmp_path: Path) -> None:
    overrides = [f"cache.dir={tmp_path / 'caches'}", "cache.tokens=3000", "cache.validation_tokens=1000"]
    config = compose([*overrides, "model.context=64", "device=cpu", "eval=full", "eval.composition=false"])
    settings = replace(config.eval, contexts=0, words=300, probe_rows=300, rows=100)
    runs = [make_run("identity", config, identity_sae(256)), make_run("zero", config, zero_sae(256))]
    identity, zero = evaluate(runs, "cpu", settings)
    letters = identity["first_letter"]
    assert letters["words"] == 300
    assert letters["letters"] + letters["left_out"] == 26
    assert 0 <= letters["probe_f1"] <= 1
    number = identity["probing"]["tasks"]["number"]
    assert number["dense"]["accuracy"] > 0.9 > number["dense_permuted"]["accuracy"]
    assert number["sae"]["16"]["accuracy"] > 0.8 > number["permuted"]["16"]["accuracy"]
    assert zero["probing"]["mean"]["sae"]["16"]["accuracy"] == 0.5
    again = evaluate(runs[:1], "cpu", replace(settings, batch=7, words=0))[0]
    assert again["probing"] == identity["probing"]
    assert "first_letter" not in again
    off = evaluate(runs[:1], "cpu", replace(settings, words=0, probe_rows=0))[0]
    assert off.keys().isdisjoint(["first_letter", "probing"])


def test_finite_replaces_only_what_json_cannot_hold() -> None:
    value = {"a": [1.5, math.nan, {"b": -math.inf}], "c": None, "d": 3, "e": "nan"}
    assert finite(value) == {"a": [1.5, None, {"b": None}], "c": None, "d": 3, "e": "nan"}
    assert json.dumps(finite(value), allow_nan=False)
