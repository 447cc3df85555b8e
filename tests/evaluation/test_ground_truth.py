"""Recovery of true features, worked out by hand."""

import math

import pytest
import torch

from sae_cli.evaluation.ground_truth import ground_truth


def test_permuted_scaled_and_flipped_truth() -> None:
    W = torch.tensor([[0.0, 0.0, 5.0], [2.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    result = ground_truth(W, torch.eye(3))
    assert result["mcc"] == result["mmcs"] == result["unique"] == pytest.approx(1)
    assert result["found"] == pytest.approx(2 / 3)  # the flipped one has cosine -1
    assert result["heatmap_latents"] == [1, 2, 0]
    assert result["heatmap"] == [[1, 0, 0], [0, -1, 0], [0, 0, 1]]


def test_composite_takes_two_features() -> None:
    # Latent 0 is the sum of features 0 and 1; latent 1 is feature 0 tilted by 60 degrees into the third axis.
    half = math.sqrt(0.5)
    W = torch.tensor([[half, half, 0.0], [0.5, 0.0, math.sqrt(0.75)]])
    result = ground_truth(W, torch.eye(3)[:2])
    assert result["mmcs"] == pytest.approx(half)
    assert result["mcc"] == pytest.approx((0.5 + half) / 2)
    assert result["unique"] == pytest.approx(1 / 2)
    assert result["found"] == 0
    assert result["heatmap"] == [pytest.approx([0.5, half], abs=1e-4), pytest.approx([0.0, half], abs=1e-4)]


def test_fewer_latents_than_features() -> None:
    result = ground_truth(torch.eye(4)[2:3], torch.eye(4))
    assert result["mcc"] == pytest.approx(1)  # the mean over the one pair there is
    assert result["mmcs"] == result["found"] == pytest.approx(1 / 4)
    assert result["heatmap_latents"] == [0]
    assert result["heatmap"] == [[0], [0], [1], [0]]


def test_heatmap_is_capped_and_starts_with_matches() -> None:
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(100, generator=generator)
    W = torch.eye(120)[:100][order] + 0.01 * torch.randn(100, 120, generator=generator)
    result = ground_truth(W, torch.eye(120)[:80])
    assert len(result["heatmap"]) == len(result["heatmap"][0]) == 64
    assert result["heatmap_latents"] == [order.tolist().index(feature) for feature in range(64)]
    assert all(result["heatmap"][i][i] > 0.9 for i in range(64))
    assert result["found"] == 1
