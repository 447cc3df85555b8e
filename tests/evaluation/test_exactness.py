"""Whole evaluations of dictionaries whose numbers are known, and cross-entropy against plain transformers hooks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sae_cli.assets import TINY
from sae_cli.config.schema import EvalConfig
from sae_cli.dictionary.artifact import SAE, save_sae
from sae_cli.evaluation.evaluate import _read, evaluate_subjects
from sae_cli.evaluation.geometry import geometry
from sae_cli.evaluation.language_model import spliced_losses
from sae_cli.evaluation.reconstruction import Reconstruction
from sae_cli.runs.subjects import open_subjects
from sae_cli.sources.language_model import LanguageModel
from sae_cli.sources.registry import open_source
from sae_cli.store.loader import CacheReader
from tests.evaluation.plain import plain_losses
from tests.evaluation.saes import identity_sae, random_sae, zero_sae

CE = ("ce_clean", "ce_sae", "ce_zero", "ce_mean", "kl")
Evaluated = dict[str, dict[str, Any]]


def words(folder: Path, layer: int, *more: str) -> list[str]:
    return [
        *(f"model.hook=blocks.{layer}.hook_out", f"cache.dir={folder}", "cache.tokens=1500", "eval.contexts=5"),
        *("cache.validation_tokens=800", "eval.rows=0", "model.context=32", "model.batch=2", *more),
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exact")
    for name, sae in {"identity": identity_sae(256), "zero": zero_sae(256), "random": mixed_sae()}.items():
        save_sae(folder / name, sae)
    return folder


def mixed_sae() -> SAE:
    """An SAE whose reconstruction is neither good nor useless."""
    sae, some = identity_sae(256), random_sae(256, 512, torch.float32)
    return SAE("relu", sae.W_enc_DF + 0.15 * some.W_enc_DF, some.b_enc_F * 0.05, sae.W_dec_FD, some.b_dec_D * 0.3)


def run(folder: Path, overrides: list[str]) -> Evaluated:
    paths = [folder / name for name in ("identity", "zero", "random")]
    results = evaluate_subjects(open_subjects(paths, overrides), "cpu")
    return {Path(result["run"]).name: result for result in results}


@pytest.fixture(scope="module")
def evaluated(folder: Path) -> Evaluated:
    return run(folder, words(folder, 0))


def test_identity_is_exact(evaluated: Evaluated) -> None:
    identity = evaluated["identity"]
    assert identity["reconstruction"]["fvu"] == pytest.approx(0, abs=1e-9)
    assert identity["language_model"]["delta_nats"] == pytest.approx(0, abs=1e-6)
    assert identity["language_model"]["kl"] == pytest.approx(0, abs=1e-6)
    assert identity["language_model"]["recovered_zero"] == pytest.approx(1, abs=1e-6)


def test_zero_recovers_nothing(evaluated: Evaluated) -> None:
    zero = evaluated["zero"]["language_model"]
    assert zero["recovered_zero"] == 0
    assert zero["ce_sae"] == zero["ce_zero"] > zero["ce_clean"] + 0.1
    assert evaluated["zero"]["reconstruction"]["nmse"] == pytest.approx(1)


@pytest.mark.parametrize(("layer", "drop_bos"), [(0, True), (0, False), (1, True)])
def test_cross_entropy_equals_plain_transformers_hooks(folder: Path, layer: int, drop_bos: bool) -> None:
    overrides = words(folder, layer, f"model.drop_bos={str(drop_bos).lower()}")
    (subject,) = open_subjects([folder / "random"], overrides)
    (result,) = evaluate_subjects([subject], "cpu")
    model = LanguageModel(subject.config.model, "cpu")
    tokens = torch.cat([batch.tokens_CT for batch in model.contexts(subject.config.text, "validation")])[:5]
    assert bool((tokens[:, 0] == model.bos_id).all())
    mean_D = open_source(subject.config, "cpu").mean_D
    plain = plain_losses(TINY, layer, tokens, subject.sae, mean_D, keep_first=drop_bos)
    found = {name: result["language_model"][name] for name in CE}
    assert found == pytest.approx(plain, abs=1e-4)
    assert min(abs(plain[name] - plain["ce_clean"]) for name in ("ce_sae", "ce_zero", "ce_mean")) > 0.01
    assert result["language_model"]["tokens"] == 5 * 31


def numbers(value: Any, key: str = "") -> dict[str, float]:
    """Return all numbers of a result by place; None as -1."""
    if isinstance(value, str):
        return {}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {key: -1.0 if value is None else value}
    return {place: number for name, item in items for place, number in numbers(item, f"{key}.{name}").items()}


def test_memory_does_not_change_results(folder: Path, evaluated: Evaluated) -> None:
    tight = run(folder, words(folder, 0, "eval.memory_bytes=100_000", "eval.batch=700"))
    assert numbers(tight) == pytest.approx(numbers(evaluated), rel=1e-5, abs=1e-6)
    assert len(numbers(evaluated)) > 1000


class Largest(TorchDispatchMode):
    """Keeps the size in bytes of the largest tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.nbytes)
        return out


@pytest.mark.parametrize("memory", [400_000, 2_000_000, 20_000_000])
def test_memory_bounds_the_largest_tensor(memory: int) -> None:
    """Of a wide SAE on many rows, beside its weights; of logits beside the model."""
    latents, width, vocabulary = 3000, 4, 50
    sae = random_sae(width, latents, torch.float32)
    x = torch.randn(5000, width)
    unembedding = torch.randn(width, vocabulary)

    class Source:
        d_model, true_GD, parents_G = width, None, None

        def validation(self, size: int) -> Iterator[Tensor]:
            yield from x.split(size)

    class Model:
        def __init__(self) -> None:
            self.vocabulary = vocabulary

        def logits(self, tokens_CT: Tensor, hook: str = "", replace: Any = None) -> Tensor:
            x_CTD = x[tokens_CT]
            return (x_CTD if replace is None else replace(x_CTD)) @ unembedding

    tokens = torch.randint(vocabulary, (2000, 10))
    with Largest() as largest, torch.no_grad():
        _read([sae], Source(), EvalConfig(rows=0, batch=5000, memory_bytes=memory), "cpu")
        spliced_losses(Model(), [tokens], "", [sae], torch.zeros(width), False, memory)
        geometry(sae.W_dec_FD, torch.arange(latents) < 2000, memory)
    assert memory / 50 < largest.bytes <= memory


def test_subjects_of_one_source_share_its_rows_and_its_forward_passes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"rows": 0, "forward": 0}
    validation, logits = CacheReader.validation, LanguageModel.logits

    def counted_rows(self: CacheReader, size: int) -> Iterator[Tensor]:
        calls["rows"] += 1
        return validation(self, size)

    def counted_logits(self: LanguageModel, *arguments: Any) -> Tensor:
        calls["forward"] += 1
        return logits(self, *arguments)

    monkeypatch.setattr(CacheReader, "validation", counted_rows)
    monkeypatch.setattr(LanguageModel, "logits", counted_logits)
    run(folder, words(folder, 0))
    # 5 contexts in 3 batches; clean, zero and mean once for the three subjects
    assert calls == {"rows": 1, "forward": 3 * (1 + 2 + 3)}


def test_random_directions_have_the_geometry_of_the_baseline() -> None:
    draws = []
    for seed in range(12):
        W = torch.randn(400, 48, generator=torch.Generator().manual_seed(seed))
        draws.append(geometry(W, torch.arange(400) < 300))
    for found, expected in (("all", "random"), ("alive", "random_alive")):
        for name in ("nearest_mean", "nearest_median", "nearest_p99", "mean_abs", "top10", "top100"):
            values = np.array([draw[found][name] for draw in draws])
            error = values.std(ddof=1) / len(values) ** 0.5
            assert abs(values.mean() - draws[0][expected][name]) < 3 * error, (found, name)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1000.0, 0.0), (0.01, 3.0), (1.0, -500.0)])
def test_scale_shift_and_batch_split_do_not_matter(scale: float, shift: float) -> None:
    sae = random_sae(8, 20)
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def metrics(x: Tensor, sae: SAE, cuts: list[int]) -> dict[str, float]:
        sums = Reconstruction(8, 20)
        for part in x.split(cuts):
            sums.add(part, *sae.forward(part))
        return sums.metrics()

    offset = torch.full((8,), shift, dtype=torch.float64)
    moved = SAE(
        "relu", sae.W_enc_DF / scale, sae.b_enc_F, sae.W_dec_FD * scale, sae.b_dec_D * scale + offset, metadata={}
    )
    one, other = metrics(x, sae, [300]), metrics(x * scale + offset, moved, [1, 99, 150, 50])
    for name in ("l0", "l1", "sqrt_l1", "fvu", "explained_variance"):
        assert other[name] == pytest.approx(one[name], rel=1e-6), name
    assert other["mse"] == pytest.approx(one["mse"] * scale**2, rel=1e-6)
