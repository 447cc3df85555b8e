"""Exact tiled search for nearest directions: by cosine if signed, else by absolute cosine."""

import torch
from torch import Tensor

from sae_cli.config.schema import OrthogonalityConfig
from sae_cli.sparse.functions import low
from sae_cli.sparse.pairs import Largest, dots, on_cuda, see

CANDIDATES = 2
"""Neighbours found per row where only the nearest counts; two, so that a tie shares its gradient."""


@torch.no_grad()
def search(
    unit_MD: Tensor, rows_N: Tensor, count: int, settings: OrthogonalityConfig, taken_M: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return cosines and indices (N, C) of the nearest others of rows of unit_MD, nearest first; C <= M - 1.

    Directions of the bool mask taken_M are not found (where none is left the cosine is NONE). Under bf16 autocast a
    neighbour within 2^-8 of the nearest may take its place. Cost N M D, half of that if the rows are all; memory
    tile^2 beside the result.
    """
    low_MD, M = low(unit_MD), len(unit_MD)
    both_ways, count = taken_M is None and len(rows_N) == M, min(count, M - 1)
    queries_ND = low_MD.index_select(0, rows_N)
    columns_S = torch.arange(M, device=rows_N.device) if taken_M is None else (~taken_M).nonzero().squeeze(1)
    columns_S = rows_N if both_ways else columns_S
    keys_SD = queries_ND if both_ways else low_MD.index_select(0, columns_S)
    if count <= CANDIDATES and (triton := on_cuda(low_MD)) is not None:
        values_N2, found_N2 = triton.nearest(queries_ND, keys_SD, rows_N, columns_S, settings.signed)
        return values_N2[:, :count], found_N2[:, :count]
    best = Largest.of_none(len(rows_N), count, low_MD)
    for a in range(0, len(rows_N), settings.tile):
        rows = slice(a, a + settings.tile)
        for b in range(a if both_ways else 0, len(columns_S), settings.tile):
            columns = slice(b, b + settings.tile)
            c_TS = queries_ND[rows] @ keys_SD[columns].T
            also = best.part(columns) if both_ways and b > a else None
            see(c_TS, rows_N[rows], columns_S[columns], settings.signed, best.part(rows), also)
    return best.values_NC, best.indices_NC


@torch.no_grad()
def best_cosines(unit_MD: Tensor, rows_N: Tensor, neighbours_NC: Tensor, settings: OrthogonalityConfig) -> Tensor:
    """Return the largest (absolute) cosine (N,) of rows with their listed neighbours, in full precision."""
    with torch.autocast(unit_MD.device.type, enabled=False):
        c_NC = dots(unit_MD, rows_N, neighbours_NC)
    return (c_NC if settings.signed else c_NC.abs()).amax(1)


def nearest_cosines(W_FD: Tensor, settings: OrthogonalityConfig) -> Tensor:
    """Return the nearest (absolute) cosine (F,) of each direction, whatever the norms; needs two directions."""
    unit_FD = torch.nn.functional.normalize(W_FD, dim=-1)
    rows_F = torch.arange(len(unit_FD), device=unit_FD.device)
    return best_cosines(unit_FD, rows_F, search(unit_FD, rows_F, CANDIDATES, settings)[1], settings)
