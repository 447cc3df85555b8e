"""Recovery of true features, worked out by hand."""

import math

import pytest
import torch

from sae_cli.evaluation.ground_truth import GroundTruth


def section(W_dec_FD, true_GD, acts=None, strengths=None, parents=None, bias=None):
    """The section after one batch; without rows, of directions alone."""
    truth = GroundTruth(W_dec_FD, torch.zeros(W_dec_FD.shape[1]) if bias is None else bias, true_GD, parents)
    if acts is not None:
        truth.add(torch.tensor(acts), torch.tensor(strengths))
    return truth.section()


def test_permuted_scaled_and_flipped_truth() -> None:
    W = torch.tensor([[0.0, 0.0, 5.0], [2.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    result = section(W, torch.eye(3))
    assert result["mcc"] == result["mmcs"] == result["unique"] == pytest.approx(1)
    assert result["found"] == result["found_80"] == pytest.approx(2 / 3)  # the flipped one has cosine -1
    assert result["heatmap_latents"] == [1, 2, 0]
    assert result["heatmap"] == [[1, 0, 0], [0, -1, 0], [0, 0, 1]]


def test_composite_takes_two_features() -> None:
    # Latent 0 is the sum of features 0 and 1; latent 1 is feature 0 tilted by 60 degrees into the third axis.
    half = math.sqrt(0.5)
    W = torch.tensor([[half, half, 0.0], [0.5, 0.0, math.sqrt(0.75)]])
    result = section(W, torch.eye(3)[:2])
    assert result["mmcs"] == pytest.approx(half)
    assert result["mcc"] == pytest.approx((0.5 + half) / 2)
    assert result["unique"] == pytest.approx(1 / 2)
    assert result["found"] == 0
    assert result["heatmap"] == [pytest.approx([0.5, half], abs=1e-4), pytest.approx([0.0, half], abs=1e-4)]


def test_found_has_two_thresholds() -> None:
    W = torch.tensor([[0.9, math.sqrt(0.19), 0.0], [0.0, 0.99, math.sqrt(1 - 0.99**2)]])
    result = section(W, torch.eye(3))
    assert (result["found"], result["found_80"]) == pytest.approx((1 / 3, 2 / 3))


def test_fewer_latents_than_features() -> None:
    result = section(torch.eye(4)[2:3], torch.eye(4))
    assert result["mcc"] == pytest.approx(1)  # the mean over the one pair there is
    assert result["mmcs"] == result["found"] == pytest.approx(1 / 4)
    assert result["pairs"] == 1
    assert result["heatmap_latents"] == [0]
    assert result["heatmap"] == [[0], [0], [1], [0]]


def test_heatmap_is_capped_and_starts_with_matches() -> None:
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(100, generator=generator)
    W = torch.eye(120)[:100][order] + 0.01 * torch.randn(100, 120, generator=generator)
    result = section(W, torch.eye(120)[:80])
    assert len(result["heatmap"]) == len(result["heatmap"][0]) == len(result["heatmap_bias"]) == 64
    assert result["heatmap_latents"] == [order.tolist().index(feature) for feature in range(64)]
    assert all(result["heatmap"][i][i] > 0.9 for i in range(64))
    assert result["found"] == 1


def test_the_bias_row_is_the_cosine_with_the_decoder_bias() -> None:
    result = section(torch.eye(3), torch.eye(3), bias=torch.tensor([3.0, 0.0, -4.0]))
    assert result["heatmap_bias"] == pytest.approx([0.6, 0, -0.8])
    assert section(torch.eye(3), torch.eye(3))["heatmap_bias"] == [0, 0, 0]


def test_precision_recall_and_f1_of_matched_latents() -> None:
    # Feature 0: fires on rows 0 1 2, latent on 0 1 3: 2 hits. Feature 1: rows 0 3, latent on 0. Feature 2: absent.
    strengths = [[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    acts = [[0.5, 1.0, 0.0], [0.5, 0.0, 0.0], [0.0, 0.0, 0.0], [0.5, 0.0, -1.0]]
    result = section(torch.eye(3), torch.eye(3), acts, strengths)
    assert result["precision_present"] == pytest.approx((2 / 3 + 1) / 2)
    assert result["recall_present"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert result["f1_present"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert result["precision"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert result["recall"] == pytest.approx((2 / 3 + 1 / 2) / 3)
    assert result["f1"] == pytest.approx((2 / 3 + 2 / 3) / 3)


def test_a_negative_latent_fires() -> None:
    result = section(torch.eye(2), torch.eye(2), [[-1.0, 0.0]], [[1.0, 0.0]])
    assert result["recall_present"] == 1


def test_shrinkage_compares_latent_times_row_norm_with_the_true_strength() -> None:
    W = torch.diag(torch.tensor([2.0, 0.5]))
    # Feature 0: (1.5 + .75) * 2 of 3 + 3 (row 2 is no hit): .75. Feature 1: 2 * .5 of 4: .25.
    strengths = [[3.0, 4.0], [3.0, 0.0], [3.0, 0.0]]
    acts = [[1.5, 2.0], [0.75, 0.0], [0.0, 9.0]]
    assert section(W, torch.eye(2), acts, strengths)["shrinkage"] == pytest.approx((0.75 + 0.25) / 2)


def test_absorption_is_the_silence_of_the_parent_s_latent_where_a_child_is_present() -> None:
    # Parent 0 has children 1 and 2; feature 3 has none. Latent 0 is silent on 1 of 2 rows of child 1, on the row of
    # child 2, and on 1 of the 2 rows of the parent alone.
    parents = torch.tensor([-1, 0, 0, -1])
    strengths = [[1.0, 1, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0], [1, 0, 0, 1], [0, 0, 0, 1]]
    acts = [[1.0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]]
    result = section(torch.eye(4), torch.eye(4), acts, strengths, parents)
    assert result["absorption"] == pytest.approx((1 / 2 + 1) / 2)
    assert result["absorption_pairs"] == 2
    assert result["silent_alone"] == pytest.approx(1 / 2)


def test_absorption_leaves_out_parents_without_a_latent_and_children_that_never_fire() -> None:
    parents = torch.tensor([-1, 0, -1, 2])
    W = torch.eye(4)[:2]  # feature 2 has no latent
    strengths = [[1.0, 0.0, 1.0, 1.0]]
    result = section(W, torch.eye(4), [[1.0, 0.0]], strengths, parents)
    assert result["absorption_pairs"] == 0
    assert math.isnan(result["absorption"])


def test_composition_is_the_second_largest_cosine_of_alive_latents() -> None:
    # Latent 0 is pure (0), latent 1 mixes 0.8 and -0.6 (0.6), latent 2 mixes too but never fires.
    W = torch.tensor([[1.0, 0, 0], [0.8, -0.6, 0], [0, 0.6, 0.8]])
    result = section(W, torch.eye(3), [[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]], [[1.0, 0, 0], [1.0, 0, 0]])
    assert result["composition"] == pytest.approx((0 + 0.6) / 2)
    assert math.isnan(section(torch.eye(1), torch.eye(1), [[1.0]], [[1.0]])["composition"])


def test_batches_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    W, true = torch.randn(6, 5, generator=generator), torch.randn(4, 5, generator=generator)
    acts, strengths = torch.randn(30, 6, generator=generator).relu(), torch.randn(30, 4, generator=generator).relu()
    whole, parts = (GroundTruth(W, torch.ones(5), true, torch.tensor([-1, 0, 0, 1])) for _ in range(2))
    whole.add(acts, strengths)
    for rows in (slice(0, 7), slice(7, 30)):
        parts.add(acts[rows], strengths[rows])
    one, two = whole.section(), parts.section()
    assert one.pop("heatmap") == two.pop("heatmap")
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert two[key] == pytest.approx(value), key
