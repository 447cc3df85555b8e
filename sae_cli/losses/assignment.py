"""Nearest neighbours without repetition: each direction is used once, so that no hub collects many gradients."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sae_cli.config.schema import OrthogonalityConfig
from sae_cli.losses.directions import Directions
from sae_cli.losses.nearest import kept_partners
from sae_cli.losses.pairs import listed
from sae_cli.losses.search import search
from sae_cli.sparse.pairs import NONE

GREEDY_CANDIDATES = 16
"""Nearest free directions that a row may choose from in a round of the greedy assignment."""


def unique_nearest(directions: Directions, settings: OrthogonalityConfig) -> Tensor:
    """mean_i phi(c_{i s(i)}), a scalar; s assigns each i another j, no j twice, with the largest sum of cosines.

    s is found anew at every refresh and kept between. The exact assignment costs F^3 and holds all F x M cosines, the
    only penalty to do so; above `assign_limit` latents pairs are taken greedily, which must be asked for. Other
    steps cost N D.
    """
    if directions.refresh_due(settings):
        F = len(directions.W_FD)
        assign = greedy if settings.greedy and settings.assign_limit < F else exact
        assigned_F = assign(directions.unit_MD.detach(), F, settings)
        directions.state["neighbours"] = assigned_F.unsqueeze(1)
    return listed(directions, *kept_partners(directions, settings), settings)


def exact(unit_MD: Tensor, F: int, settings: OrthogonalityConfig) -> Tensor:
    """Return the assignment (F,) of the first F rows to others with the largest sum of (absolute) cosines."""
    c_FM = (unit_MD[:F].double() @ unit_MD.double().T).cpu().numpy()
    c_FM = c_FM if settings.signed else np.abs(c_FM)
    np.fill_diagonal(c_FM, -np.inf)
    return torch.from_numpy(linear_sum_assignment(c_FM, maximize=True)[1]).to(unit_MD.device)


def greedy(unit_MD: Tensor, F: int, settings: OrthogonalityConfig) -> Tensor:
    """Return an assignment (F,) that takes pairs in descending cosine, in rounds over each row's nearest free others.

    Cost F M D for the first round, less for each later one.
    """
    assigned = np.full(F, -1)
    taken = np.zeros(len(unit_MD), dtype=bool)
    while len(left := np.flatnonzero(assigned < 0)):
        rows_N = torch.from_numpy(left).to(unit_MD.device)
        mask_M = torch.from_numpy(taken).to(unit_MD.device)
        c_NC, found_NC = search(unit_MD, rows_N, GREEDY_CANDIDATES, settings, mask_M)
        c, others = c_NC.float().cpu().numpy().ravel(), found_NC.cpu().numpy().ravel()
        rows = left.repeat(found_NC.shape[1])
        order = np.argsort(-c, kind="stable")
        order = order[c[order] > NONE]
        if not len(order):
            # one row is left, and only itself is free: it takes the other of some row, which takes it
            (row,) = left
            giver = 1 if row == 0 else 0
            assigned[row], assigned[giver] = assigned[giver], row
            break
        for i, j in zip(rows[order].tolist(), others[order].tolist(), strict=True):
            if assigned[i] < 0 and not taken[j]:
                assigned[i], taken[j] = j, True
    return torch.from_numpy(assigned).to(unit_MD.device)
