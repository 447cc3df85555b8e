"""Penalties on nearest neighbours that an exact search finds: at every call, or at every refresh."""

from torch import Tensor

from sae_cli.config.schema import OrthogonalityConfig
from sae_cli.losses.directions import Directions
from sae_cli.losses.pairs import all_pairs, listed
from sae_cli.losses.rolling import roll
from sae_cli.losses.search import CANDIDATES, best_cosines, search

Partners = tuple[Tensor, Tensor]
"""Penalised rows (N,) and for each the directions (N, C) that it is held against."""


def nearest_partners(directions: Directions, settings: OrthogonalityConfig) -> Partners:
    """Return each penalised row's two nearest others."""
    rows_N = directions.penalised_N
    return rows_N, search(directions.low_MD, rows_N, CANDIDATES, settings)[1]


def nearest(directions: Directions, settings: OrthogonalityConfig) -> Tensor:
    """mean_i phi(max_{j != i} c_ij), a scalar. Cost N M D forward (half of it if all are penalised), N D backward."""
    return listed(directions, *nearest_partners(directions, settings), settings)


def mixed_max(directions: Directions, settings: OrthogonalityConfig) -> Tensor:
    """mean_{i != j} phi(c_ij) + mean_i max_j phi(c_ij) + max_{i != j} phi(c_ij), a scalar. Cost of both, 2 F^2 D."""
    rows_N, neighbours_NC = nearest_partners(directions, settings)
    if not len(rows_N):
        return directions.unit_MD.new_zeros(())
    top = best_cosines(directions.unit_MD, rows_N, neighbours_NC, settings).argmax().view(1)
    largest = listed(directions, rows_N.index_select(0, top), neighbours_NC.index_select(0, top), settings)
    return all_pairs(directions, settings) + listed(directions, rows_N, neighbours_NC, settings) + largest


def kept_partners(directions: Directions, settings: OrthogonalityConfig) -> Partners:
    """Return the penalised rows and what state holds for them."""
    return directions.penalised_N, directions.state["neighbours"].index_select(0, directions.penalised_N)


def neighbours(directions: Directions, settings: OrthogonalityConfig) -> Tensor:
    """mean_i of the mean of phi(c_ij) over the k nearest j that the last refresh found, a scalar.

    Cost N k D, and F M D for an exact search at a refresh; with `search_rows` no refresh, but search_rows * M D.
    """
    if settings.search_rows:
        roll(directions, settings)
    elif directions.refresh_due(settings):
        every_F = Directions(directions.W_FD).penalised_N
        found = search(directions.low_MD, every_F, settings.neighbours, settings)
        directions.state["neighbours"] = found[1]
    return listed(directions, *kept_partners(directions, settings), settings, largest=False)
