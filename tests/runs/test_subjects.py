"""What can be evaluated: runs, exported SAEs and foreign ones, with the data of each."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sae_cli.config.compose import compose
from sae_cli.dictionary.artifact import SAE, save_sae
from sae_cli.errors import UserError
from sae_cli.evaluation.evaluate import evaluate_subjects
from sae_cli.files import read_json
from sae_cli.runs.directory import RunDirectory
from sae_cli.runs.subjects import is_sae, open_subjects
from sae_cli.sources import registry
from sae_cli.sources.language_model import model_fingerprint
from sae_cli.sources.registry import source_fingerprint
from sae_cli.training.execute import execute
from tests.evaluation.saes import identity_sae, random_sae

TOY = ["source=three_features", "cache.validation_tokens=500", "eval.rows=300", "eval.batch=100"]
MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Return a function that writes a run directory around an SAE, as training leaves it."""

    def make(name: str, *words: str, state: str = "done") -> Path:
        config = compose([*TOY, *words])
        run = RunDirectory(tmp_path / "runs" / name)
        run.prepare(config, [], source_fingerprint(config), name, "cpu")
        save_sae(run.path, identity_sae(3))
        run.set_status(state, 1, 1, name)
        return run.path

    return make


def exported(folder: Path, sae: SAE | None = None, **metadata: object) -> Path:
    sae = sae or identity_sae(3)
    sae.metadata = metadata
    save_sae(folder, sae)
    return folder


def foreign(folder: Path) -> Path:
    """Write the identity of R^3 in SAELens' layout."""
    folder.mkdir()
    sae = identity_sae(3)
    tensors = {"W_enc": sae.W_enc_DF.contiguous(), "b_enc": sae.b_enc_F, "W_dec": sae.W_dec_FD, "b_dec": sae.b_dec_D}
    save_file(tensors, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"architecture": "standard", "d_in": 3, "d_sae": 6}))
    return folder


def test_all_kinds_mixed_in_order_with_the_data_of_the_first_run(tmp_path: Path, make_run: MakeRun) -> None:
    first, second = make_run("a"), make_run("b", "source.seed=5")
    own, other = exported(tmp_path / "own"), foreign(tmp_path / "other")
    subjects = open_subjects([own, tmp_path / "runs", other, first])
    assert [subject.path for subject in subjects] == [own, first, second, other]
    a, b = subjects[1].fingerprint, subjects[2].fingerprint
    assert [subject.fingerprint for subject in subjects] == [a, a, b, a]
    assert a != b
    results = evaluate_subjects(subjects, "cpu")
    for subject, result in zip(subjects, results, strict=True):
        assert result == {"run": str(subject.path), **read_json(subject.path / "eval.json")}
        assert result["reconstruction"]["fvu"] == pytest.approx(0, abs=1e-9)
    assert results[0]["reconstruction"] == results[3]["reconstruction"] == results[1]["reconstruction"]
    assert [is_sae(subject.path) for subject in subjects] == [True, False, False, True]


def test_overrides_give_the_data_of_saes_and_settings_to_all(tmp_path: Path, make_run: MakeRun) -> None:
    run, own = make_run("a"), exported(tmp_path / "own")
    data = ["source=three_features", "source.seed=7", "eval.rows=50", "eval.contexts=0"]
    (alone,) = open_subjects([own], data)
    assert (alone.config.source.seed, alone.config.eval.rows) == (7, 50)
    assert alone.fingerprint == source_fingerprint(compose(data))
    both = open_subjects([run, own], data)
    assert [subject.config.source.seed for subject in both] == [compose(TOY).source.seed, 7]
    assert [subject.config.eval.rows for subject in both] == [50, 50]
    assert both[0].config.eval.batch == 100
    shared = open_subjects([run, own], ["eval.rows=20"])
    assert [(s.config.eval.rows, s.config.eval.batch) for s in shared] == [(20, 100)] * 2
    assert evaluate_subjects(shared, "cpu")[1]["rows"] == 20


def test_what_cannot_be_evaluated_is_refused(tmp_path: Path, make_run: MakeRun) -> None:
    run, own = make_run("a"), exported(tmp_path / "own")
    with pytest.raises(UserError, match=r"add overrides .* or a run"):
        open_subjects([own], ["eval.rows=20"])
    with pytest.raises(UserError, match=r"source.seed=3: runs take overrides of eval"):
        open_subjects([run], ["source.seed=3"])
    with pytest.raises(UserError, match=r"train.lr=1: `sae eval` takes overrides of"):
        open_subjects([own], ["train.lr=1"])
    with pytest.raises(UserError, match="none of the 1 runs"):
        open_subjects([make_run("c", state="interrupted")])
    broken = identity_sae(3)
    broken.b_enc_F[0] = torch.nan
    with pytest.raises(UserError, match=r"broken: .*not finite"):
        open_subjects([exported(tmp_path / "broken", broken)], TOY)
    (wide,) = open_subjects([exported(tmp_path / "wide", random_sae(4, 5))], TOY)
    with pytest.raises(UserError, match=r"wide: its width is 4, that of the data 3"):
        evaluate_subjects([wide], "cpu")
    (tmp_path / "empty").mkdir()
    for path in ("empty", "missing"):
        with pytest.raises(UserError, match=path):
            open_subjects([tmp_path / path])


@pytest.mark.parametrize(
    ("metadata", "fits"),
    [
        ({"model_name": "bundled:tiny", "hook_name": "blocks.0.hook_out"}, True),
        ({"model_name": "someone/Tiny", "hook_name": "blocks.0.hook_resid_post"}, True),
        ({"library": "sparsify", "model_name": None, "hook_name": None}, True),
        ({"model_name": "gpt2", "hook_name": "blocks.0.hook_out"}, False),
        ({"model_name": "tiny", "hook_name": "blocks.0.hook_resid_pre"}, False),
        ({"model_name": "tiny", "hook_name": "blocks.1.hook_out"}, False),
    ],
)
def test_an_sae_of_another_model_or_hook_is_refused_unless_forced(tmp_path: Path, metadata: dict, fits: bool) -> None:
    path = exported(tmp_path / "own", **metadata)
    words = ["model=tiny", "text=wiki"]
    if fits:
        assert open_subjects([path], words)[0].sae.metadata == metadata
        return
    with pytest.raises(UserError, match=r"own: it is of (gpt2|blocks).*its data of .*--force"):
        open_subjects([path], words)
    assert open_subjects([path], words, force=True)[0].config.model.name == "tiny"


def test_an_sae_of_a_language_model_is_refused_on_a_toy(tmp_path: Path) -> None:
    path = exported(tmp_path / "own", model_name="gpt2")
    with pytest.raises(UserError, match="it is of gpt2, its data of source=three_features"):
        open_subjects([path], TOY)
    vectors = torch.zeros(10, 3)
    save_file({"vectors": vectors}, tmp_path / "vectors.safetensors")
    (subject,) = open_subjects([path], ["source=vectors", f"source.path={tmp_path / 'vectors.safetensors'}"])
    assert subject.config.source.kind == "vectors"


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({}, ""),
        ({"model_fingerprint": "someone@main"}, ""),  # a revision says nothing of a folder
        (
            {"model_fingerprint": "0" * 64},
            "it is of other weights, another tokenizer or another revision of bundled",
        ),
        ({"model_processing": "other"}, "it is of model.processing=other, its data of raw"),
    ],
)
def test_an_sae_of_other_weights_or_processing_is_refused(tmp_path: Path, own: dict, says: str) -> None:
    words = ["model=tiny", "text=wiki"]
    config = compose(words)
    told = {"model_fingerprint": model_fingerprint(config.model), "model_processing": config.model.processing} | own
    path = exported(tmp_path / "own", **told)
    if says:
        with pytest.raises(UserError, match=f"own: {says}"):
            open_subjects([path], words)
    assert open_subjects([path], words, force=bool(says))[0].sae.metadata == told


def test_a_run_whose_vectors_changed_is_not_evaluated(
    tmp_path: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["source=vectors", f"source.path={tmp_path}/x.npy", "text.validation=0.5"]
    drawn = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", drawn)
    run = make_run("a", *words)
    assert open_subjects([run])
    folders = [f"runs_dir={tmp_path}/runs", f"cache.dir={tmp_path}/caches", "cache.tokens=0", "train.batch=8"]
    config = compose([*TOY, *words, *folders, "tracker=jsonl", "sae.latents=8", "train.tokens=16"])
    registry.source_fingerprint(config)  # a sweep hashes its data once
    np.save(tmp_path / "x.npy", drawn[:50])
    with pytest.raises(UserError, match=r"the model or the data changed since the command began; run it again"):
        execute([config])
    monkeypatch.setattr(registry, "_fingerprints", {})
    with pytest.raises(UserError, match=r"runs/a: source\.path=.*x\.npy changed since it was trained .*train again"):
        open_subjects([run])
