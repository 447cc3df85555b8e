"""Norms and cosines of the true directions."""

import math

import pytest
import torch

from sae_cli.config.compose import compose
from sae_cli.sources.synthetic.directions import set_directions, tight_frame, true_directions


def cosines(directions):
    gram = directions @ directions.T
    return gram[~torch.eye(len(gram), dtype=torch.bool)]


@pytest.mark.parametrize("name", ["chanin", "sharkey", "tms", "tree", "sanity", "hierarchical", "three_features"])
def test_shipped_directions_have_unit_norm(name):
    directions = true_directions(compose([f"source={name}"]).source)
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(len(directions)))


@pytest.mark.parametrize("name", ["chanin", "tree"])
def test_small_toys_are_orthonormal(name):
    assert cosines(true_directions(compose([f"source={name}"]).source)).abs().max() < 1e-5


def test_random_directions_have_the_cosines_of_random_vectors():
    cosine = cosines(true_directions(compose(["source=sharkey"]).source))
    assert cosine.square().mean().item() == pytest.approx(1 / 256, rel=0.02)
    assert cosine.abs().mean().item() == pytest.approx(math.sqrt(2 / (math.pi * 256)), rel=0.02)


def test_tight_frame_reaches_the_least_sum_of_squared_cosines():
    start = true_directions(compose(["source=sharkey", "source.features=48", "source.width=16"]).source)
    frame = tight_frame(start)
    torch.testing.assert_close(frame.norm(dim=1), torch.ones(48))
    least = 48**2 / 16  # G^2 / D, diagonal included
    assert (frame @ frame.T).square().sum().item() == pytest.approx(least, rel=1e-3)
    assert (start @ start.T).square().sum().item() > 1.1 * least
    few = tight_frame(start[:10])
    torch.testing.assert_close(few @ few.T, torch.eye(10), rtol=0, atol=1e-5)


def test_sets_are_antipodal_polygonal_or_orthonormal_and_orthogonal_to_each_other():
    pairs = set_directions(2, 2, 2)
    torch.testing.assert_close(pairs, torch.tensor([[1.0, 0], [-1.0, 0], [0, 1.0], [0, -1.0]]))
    triangles = set_directions(2, 3, 4)
    torch.testing.assert_close((triangles @ triangles.T)[:3, :3], torch.full((3, 3), -0.5) + 1.5 * torch.eye(3))
    assert (triangles @ triangles.T)[:3, 3:].abs().max() == 0
    mixed = set_directions(2, 2, 3)
    torch.testing.assert_close(
        mixed @ mixed.T, torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -1], [0, 0, -1, 1]])
    )
    assert torch.equal(set_directions(2, 2, 4), torch.eye(4))
