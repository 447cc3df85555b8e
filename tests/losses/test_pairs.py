"""Sums over pairs against naive formulas."""

import pytest
import torch

from sae_cli.losses.directions import Directions
from sae_cli.losses.pairs import listed
from sae_cli.losses.phi import PHI, penalised
from tests.losses.cases import cosines, omega, random_rows, settings


@pytest.mark.parametrize("phi", PHI)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("tile", [1, 5, 100])
def test_all_pairs_is_the_mean_over_pairs(phi, signed, tile):
    W = random_rows(13)
    keys = settings("all_pairs", phi=phi, signed=signed, tile=tile)
    upper = torch.triu_indices(13, 13, 1)
    expected = PHI[phi](cosines(W, signed)[upper[0], upper[1]], keys).mean()
    torch.testing.assert_close(omega(W, keys), expected)


def test_all_pairs_with_rows_and_frozen_is_a_mean_over_rows_of_a_mean_over_others():
    W, frozen, rows = random_rows(9), random_rows(4, seed=1), torch.tensor([1, 4, 8])
    keys = settings("all_pairs")
    values = PHI["square"](cosines(torch.cat([W, frozen])), keys).fill_diagonal_(0)
    torch.testing.assert_close(omega(W, keys, rows_N=rows, frozen_GD=frozen), values[rows].sum() / (3 * 12))


@pytest.mark.parametrize("frozen", [None, random_rows(4, seed=1)])
def test_gram_equals_all_pairs_of_unsigned_squares(frozen):
    W = random_rows(11)
    expected = omega(W, settings("all_pairs", signed=False, phi="square"), frozen_GD=frozen)
    torch.testing.assert_close(omega(W, settings("gram"), frozen_GD=frozen), expected)


def test_gram_is_the_distance_from_the_identity():
    U = torch.nn.functional.normalize(random_rows(11), dim=1)
    expected = (U @ U.T - torch.eye(11)).square().sum() / (11 * 10)
    torch.testing.assert_close(omega(3 * U, settings("gram")), expected)


@pytest.mark.parametrize("largest", [True, False])
def test_listed_neighbours(largest):
    W, rows = random_rows(9), torch.tensor([0, 3, 7, 8, 2, 1])
    neighbours = torch.tensor([[1, 2], [4, 0], [8, 6], [7, 0], [3, 4], [8, 0]])
    keys = settings(phi="exponential", tile=4)
    values = penalised(cosines(W)[rows.unsqueeze(1), neighbours], keys)
    expected = (values.amax(1) if largest else values.mean(1)).mean()
    torch.testing.assert_close(listed(Directions(W), rows, neighbours, keys, largest), expected)


def test_a_cap_bounds_what_phi_sees():
    c = torch.tensor([-0.9, 0.2, 0.6, 0.8])
    assert penalised(c, settings(phi="abs", cap=0.5)).tolist() == pytest.approx([0, 0.2, 0.5, 0.5])
    assert penalised(c, settings(phi="abs", cap=0.5, signed=False)).tolist() == pytest.approx([0.5, 0.2, 0.5, 0.5])
