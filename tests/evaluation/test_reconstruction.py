"""Metrics against cases worked out on paper, and their invariances."""

import math

import pytest
import torch

from sae_cli.dictionary.artifact import SAE
from sae_cli.evaluation.reconstruction import DENSITY_EDGES, Reconstruction
from tests.evaluation.saes import identity_sae, random_sae


def measure(x_ND: torch.Tensor, sae: SAE, cuts: list[int]) -> Reconstruction:
    acts_NF = sae.encode(x_ND)
    x_hat_ND = sae.decode(acts_NF)
    sums = Reconstruction(x_ND.shape[1], acts_NF.shape[1])
    for x, acts, x_hat in zip(x_ND.split(cuts), acts_NF.split(cuts), x_hat_ND.split(cuts), strict=True):
        sums.add(x, acts, x_hat)
    return sums


def data(rows: int, width: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(rows, width, generator=generator, dtype=dtype) * torch.arange(1, width + 1) + 3


def test_paper_case() -> None:
    # Rows (2,0), (0,2): mean (1,1), variance per row 2. Reconstructions (1,0), (0,2): squared errors 1 and 0.
    x = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    x_hat = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    acts = torch.tensor([[1.0, 0.0, 0.0], [4.0, 9.0, 0.0]])
    sums = Reconstruction(2, 3)
    sums.add(x, acts, x_hat)
    assert sums.metrics() == pytest.approx(
        {
            "l0": 1.5,
            "l1": 7.0,
            "sqrt_l1": 3.0,
            "mse": 0.5,
            "nmse": 1 / 8,
            "fvu": 1 / 4,
            "explained_variance": 3 / 4,
            "shrinkage": 5 / 6,
        }
    )
    latents = sums.latents()
    assert latents["dead"] == pytest.approx(1 / 3)
    assert (latents["dead_over_rows"], latents["dense_1pct"], latents["dense_10pct"]) == (2, 2 / 3, 2 / 3)


def test_negative_latents_fire_and_count_by_their_size() -> None:
    sums = Reconstruction(1, 3)
    sums.add(torch.ones(2, 1), torch.tensor([[-4.0, 0.0, 1.0], [-9.0, 0.0, 0.0]]), torch.ones(2, 1))
    metrics = sums.metrics()
    assert (metrics["l0"], metrics["l1"], metrics["sqrt_l1"]) == pytest.approx((1.5, 7.0, 3.0))
    assert sums.fired_F.tolist() == [2, 0, 1]


def test_density_histogram_counts_live_latents_in_their_decade() -> None:
    acts = torch.zeros(1000, 4)
    acts[:, 0] = 1  # density 1, the right-most edge
    acts[:5, 1] = 1  # 10^-2.30, in the bin from -2.4
    acts[0, 2] = 1  # 10^-3
    sums = Reconstruction(1, 4)
    sums.add(torch.randn(1000, 1), acts, torch.zeros(1000, 1))
    latents = sums.latents()
    histogram = latents["density_histogram"]
    assert sum(histogram["counts"]) == 3
    assert histogram["counts"][-1] == 1
    assert histogram["edges"] == pytest.approx(DENSITY_EDGES.tolist())
    bin_of_second = next(
        i for i, count in enumerate(histogram["counts"]) if -2.5 < histogram["edges"][i] < -2 and count
    )
    assert histogram["edges"][bin_of_second] <= math.log10(0.005) < histogram["edges"][bin_of_second + 1]
    assert (latents["dead"], latents["dense_1pct"], latents["dense_10pct"]) == (0.25, 0.25, 0.25)


def test_identity_has_no_error() -> None:
    metrics = measure(data(100, 5, torch.float32), identity_sae(5), [100]).metrics()
    assert metrics["fvu"] == 0
    assert metrics["explained_variance"] == 1
    assert metrics["shrinkage"] == pytest.approx(1)
    assert metrics["l0"] == 5


def test_mean_reconstruction_has_fvu_one() -> None:
    x = data(200, 3)
    sums = Reconstruction(3, 2)
    sums.add(x, torch.zeros(200, 2), x.mean(0).expand_as(x))
    assert sums.metrics()["fvu"] == pytest.approx(1, rel=1e-12)
    assert sums.latents()["dead"] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_split_does_not_matter(dtype: torch.dtype) -> None:
    x, sae = data(1000, 6, dtype), random_sae(6, 11, dtype)
    whole = measure(x, sae, [1000]).metrics()
    for cuts in ([1] * 1000, [999, 1], [1, 7, 500, 492]):
        assert measure(x, sae, cuts).metrics() == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize(("scale", "shift"), [(1e-3, 0.0), (1e4, 0.0), (1.0, 1e4), (37.0, -5e3)])
def test_scale_and_shift_do_not_matter(scale: float, shift: float) -> None:
    x, sae = data(500, 6), random_sae(6, 11)
    moved = SAE("relu", sae.W_enc_DF / scale, sae.b_enc_F, sae.W_dec_FD * scale, sae.b_dec_D * scale + shift)
    before, after = measure(x, sae, [500]).metrics(), measure(x * scale + shift, moved, [300, 200]).metrics()
    for name in ("fvu", "explained_variance", "l0", "l1", "sqrt_l1"):
        assert after[name] == pytest.approx(before[name], rel=1e-8)
    assert after["mse"] == pytest.approx(before["mse"] * scale**2, rel=1e-8)
    if shift == 0:
        assert after["nmse"] == pytest.approx(before["nmse"], rel=1e-8)
        assert after["shrinkage"] == pytest.approx(before["shrinkage"], rel=1e-8)


def test_undefined_ratios_are_nan() -> None:
    sums = Reconstruction(2, 2)
    sums.add(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(3, 2))
    metrics = sums.metrics()
    assert math.isnan(metrics["fvu"])
    assert math.isnan(metrics["shrinkage"])
    assert metrics["l0"] == 0
