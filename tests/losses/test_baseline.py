"""The nearest cosine of random directions, against draws, and its use as a threshold."""

import pytest
import torch
from torch.nn.functional import normalize

from sae_cli.config.schema import OrthogonalityConfig
from sae_cli.losses.baseline import random_nearest, with_threshold


@pytest.mark.parametrize("signed", [True, False])
def test_quantiles_equal_those_of_drawn_directions(signed):
    generator = torch.Generator().manual_seed(0)
    nearest = []
    for _ in range(10):
        unit = normalize(torch.randn(300, 24, generator=generator), dim=1)
        c = (unit @ unit.T).fill_diagonal_(-2)
        nearest.append(c.amax(1) if signed else c.fill_diagonal_(0).abs().amax(1))
    drawn = torch.cat(nearest).quantile(torch.tensor([0.5, 0.9])).tolist()
    assert random_nearest(300, 24, (0.5, 0.9), signed) == pytest.approx(drawn, rel=0.01)


def test_a_threshold_that_is_not_set_is_the_random_median():
    settings = OrthogonalityConfig(kind="nearest", phi="hinge")
    assert with_threshold(settings, 8192, 512).threshold == pytest.approx(0.166, abs=0.002)
    given = OrthogonalityConfig(kind="nearest", phi="hinge", threshold=0.0)
    assert with_threshold(given, 8192, 512) == given
