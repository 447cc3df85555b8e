"""Penalties on nearest neighbours against naive formulas."""

import pytest
import torch
from torch.nn.functional import normalize

from sae_cli.losses.directions import Directions
from sae_cli.losses.phi import PHI
from sae_cli.losses.search import nearest_cosines
from tests.losses.cases import cosines, omega, penalty, random_rows, settings


@pytest.mark.parametrize("phi", PHI)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("tile", [1, 5, 100])
def test_nearest_equals_the_naive_maximum(phi, signed, tile):
    W = random_rows(13)
    keys = settings("nearest", phi=phi, signed=signed, tile=tile)
    torch.testing.assert_close(omega(W, keys), PHI[phi](cosines(W, signed).amax(1).clamp(min=0), keys).mean())


def test_nearest_with_rows_and_frozen():
    W, frozen, rows = random_rows(9), random_rows(4, seed=1), torch.tensor([1, 4, 8])
    expected = cosines(torch.cat([W, frozen]))[rows].amax(1).square().mean()
    torch.testing.assert_close(omega(W, settings("nearest"), rows_N=rows, frozen_GD=frozen), expected)


@pytest.mark.parametrize("signed", [True, False])
def test_ties_share_the_gradient(signed):
    """Direction 0 has two mirror-image nearest neighbours: its gradient has no sideways component."""
    W = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.8, -0.6]], dtype=torch.float64, requires_grad=True)
    omega(W, settings("nearest", signed=signed)).backward()
    assert W.grad[0, 1].item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(W.grad[1, 0], W.grad[2, 0])
    assert W.grad[1].abs().sum() > 0


def test_antipodes_are_free_only_when_signed():
    W = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert omega(W, settings("nearest", signed=True)).item() == 0
    assert omega(W, settings("nearest", signed=False)).item() == pytest.approx(1)


def test_low_precision_search_still_finds_the_nearest_cosine():
    W = 3 * random_rows(200, 32).float()
    with torch.autocast("cpu", torch.bfloat16):
        low = nearest_cosines(W, settings())
    torch.testing.assert_close(low.double(), cosines(W.double()).amax(1), rtol=0, atol=2**-8)


@pytest.mark.parametrize("phi", ["abs", "square"])
def test_mixed_max_adds_three_terms(phi):
    W = random_rows(12)
    keys = settings("mixed_max", phi=phi)
    values = PHI[phi](cosines(W).clamp(min=0), keys)
    expected = values.sum() / (12 * 11) + values.amax(1).mean() + values.max()
    torch.testing.assert_close(omega(W, keys), expected)


def test_neighbours_are_the_k_nearest_of_the_last_refresh():
    W, moved, frozen = random_rows(12), random_rows(12, seed=3), random_rows(2, seed=4)
    keys = settings("neighbours", refresh=4, every=2)
    directions = Directions(W, frozen_GD=frozen)
    penalty(directions, keys)
    kept = cosines(torch.cat([W, frozen]))[:12].topk(3, dim=1).indices
    assert torch.equal(directions.state["neighbours"].sort(1).values, kept.sort(1).values)
    c = cosines(torch.cat([moved, frozen]))
    for step, index in ((2, kept), (6, kept), (8, c[:12].topk(3, dim=1).indices)):
        later = Directions(moved, step=step, frozen_GD=frozen, rows_N=torch.tensor([2, 3]), state=directions.state)
        expected = c[:12].gather(1, index)[2:4].square().mean()
        torch.testing.assert_close(penalty(later, keys), expected)


def test_logged_cosines_do_not_depend_on_norms():
    W = random_rows(7)
    torch.testing.assert_close(nearest_cosines(W, settings()), nearest_cosines(normalize(W, dim=1), settings()))
