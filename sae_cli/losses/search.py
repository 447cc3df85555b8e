"""Exact tiled search for nearest directions: by cosine if signed, else by absolute cosine."""

import torch
from torch import Tensor

from sae_cli.config.schema import OrthogonalityConfig

CANDIDATES = 2
"""Neighbours found per row where only the nearest counts; two, so that a tie shares its gradient."""
NONE = -2.0
"""Below every cosine."""


@torch.no_grad()
def search(
    unit_MD: Tensor, rows_N: Tensor, count: int, settings: OrthogonalityConfig, taken_M: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return cosines and indices (N, C) of the nearest others of rows of unit_MD, nearest first; C <= M - 1.

    Directions of the bool mask taken_M are not found (their cosine is NONE). Under bf16 autocast a neighbour within
    2^-8 of the nearest may take its place. Cost N M D, memory tile * M.
    """
    cosines, indices = [], []
    for rows_T in rows_N.split(settings.tile):
        c_TM = unit_MD.index_select(0, rows_T) @ unit_MD.T
        if not settings.signed:
            c_TM = c_TM.abs()
        c_TM.scatter_(1, rows_T.unsqueeze(1), NONE)
        if taken_M is not None:
            c_TM.masked_fill_(taken_M, NONE)
        found = c_TM.topk(min(count, len(unit_MD) - 1), dim=1)
        cosines.append(found.values)
        indices.append(found.indices)
    return torch.cat(cosines), torch.cat(indices)


@torch.no_grad()
def best_cosines(unit_MD: Tensor, rows_N: Tensor, neighbours_NC: Tensor, settings: OrthogonalityConfig) -> Tensor:
    """Return the largest (absolute) cosine (N,) of rows with their listed neighbours, in full precision."""
    best = []
    with torch.autocast(unit_MD.device.type, enabled=False):
        for rows_T, j_TC in zip(rows_N.split(settings.tile), neighbours_NC.split(settings.tile), strict=True):
            others_TCD = unit_MD.index_select(0, j_TC.flatten()).view(*j_TC.shape, -1)
            c_TC = torch.einsum("td,tcd->tc", unit_MD.index_select(0, rows_T), others_TCD)
            best.append((c_TC if settings.signed else c_TC.abs()).amax(1))
    return torch.cat(best)


def nearest_cosines(W_FD: Tensor, settings: OrthogonalityConfig) -> Tensor:
    """Return the nearest (absolute) cosine (F,) of each direction, whatever the norms; needs two directions."""
    unit_FD = torch.nn.functional.normalize(W_FD, dim=-1)
    rows_F = torch.arange(len(unit_FD), device=unit_FD.device)
    return best_cosines(unit_FD, rows_F, search(unit_FD, rows_F, CANDIDATES, settings)[1], settings)
