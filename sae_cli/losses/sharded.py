"""Orthogonality penalties whose directions lie on several ranks: a block of others' is looked at at a time.

Each returns this rank's share of Omega, whose gradients also hold what other ranks' pairs do to its directions. Memory
is that of two blocks of F directions (chunked: one part), traffic about four times all directions.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import normalize

from sae_cli.config.schema import OrthogonalityConfig
from sae_cli.losses import search as one_rank
from sae_cli.losses.baseline import with_threshold
from sae_cli.losses.directions import Directions
from sae_cli.losses.phi import penalised
from sae_cli.losses.search import CANDIDATES, search
from sae_cli.ranks import Ranks
from sae_cli.sparse.pairs import NONE


class _Listed(Function):
    """sum over own rows n of the mean or the largest of phi(c) with listed neighbours (N, C) on any rank."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        unit_FD: Tensor,
        rows_N: Tensor,
        neighbours_NC: Tensor,
        largest: bool,
        settings: OrthogonalityConfig,
        ranks: Ranks,
    ) -> Tensor:
        F, grad_FD = len(unit_FD), torch.zeros_like(unit_FD)
        c_NC = unit_FD.new_zeros(neighbours_NC.shape)

        def pairs(source: int) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
            """Those with a neighbour on a rank: places n and c, row, and the neighbour's place there."""
            places = (neighbours_NC.div(F, rounding_mode="floor") == source).nonzero()
            tiles = [tile.unbind(1) for tile in places.split(settings.tile)]
            return [(n, c, rows_N[n], neighbours_NC[n, c] - source * F) for n, c in tiles]

        with torch.autocast(unit_FD.device.type, enabled=False):
            for source, block_FD in enumerate(ranks.blocks(unit_FD)):
                for n, c, i, j in pairs(source):
                    c_NC[n, c] = (unit_FD[i] * block_FD[j]).sum(1)
            with torch.enable_grad():
                c_NC.requires_grad_()
                values_NC = penalised(c_NC, settings)
                total = (values_NC.amax(1) if largest else values_NC.mean(1)).sum()
            (slope_NC,) = torch.autograd.grad(total, c_NC)
            for source, block_FD in enumerate(ranks.blocks(unit_FD)):
                theirs_FD = torch.zeros_like(unit_FD)
                for n, c, i, j in pairs(source):
                    grad_FD.index_add_(0, i, slope_NC[n, c].unsqueeze(1) * block_FD[j])
                    theirs_FD.index_add_(0, j, slope_NC[n, c].unsqueeze(1) * unit_FD[i])
                ranks.add(theirs_FD)
                if source == ranks.rank:
                    grad_FD += theirs_FD
        ctx.save_for_backward(grad_FD)
        return total.detach()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None, None, None]:  # type: ignore[override]
        return ctx.saved_tensors[0] * g, None, None, None, None, None


@torch.no_grad()
def search_ranks(
    unit_FD: Tensor, rows_N: Tensor, count: int, settings: OrthogonalityConfig, ranks: Ranks
) -> tuple[Tensor, Tensor]:
    """Return cosines and indices (N, C) of the nearest others of own rows, in the order of all ranks' directions."""
    F = len(unit_FD)
    count = min(count, F * ranks.size - 1)
    best_NC = unit_FD.new_full((len(rows_N), count), NONE)
    index_NC = torch.zeros(len(rows_N), count, dtype=torch.long, device=unit_FD.device)
    for source, block_FD in enumerate(ranks.blocks(unit_FD)):
        for tile in torch.arange(len(rows_N), device=unit_FD.device).split(settings.tile):
            c_TF = (unit_FD.index_select(0, rows_N[tile]) @ block_FD.T).float()
            c_TF = c_TF if settings.signed else c_TF.abs()
            if source == ranks.rank:
                c_TF.scatter_(1, rows_N[tile].unsqueeze(1), NONE)
            near, places = c_TF.topk(min(count, F), dim=1)
            near, every = torch.cat([best_NC[tile], near], 1), torch.cat([index_NC[tile], places + source * F], 1)
            best_NC[tile], chosen = near.topk(count, dim=1)
            index_NC[tile] = every.gather(1, chosen)
    return best_NC, index_NC


def nearest_cosines(W_FD: Tensor, settings: OrthogonalityConfig, ranks: Ranks) -> Tensor:
    """Return the nearest (absolute) cosine of each of all ranks' directions."""
    if not ranks.sharded:
        return one_rank.nearest_cosines(W_FD, settings)
    unit_FD = normalize(W_FD, dim=-1)
    rows_F = torch.arange(len(unit_FD), device=unit_FD.device)
    return ranks.gather(search_ranks(unit_FD, rows_F, 1, settings, ranks)[0].squeeze(1))


def _mean(
    directions: Directions,
    rows_N: Tensor,
    neighbours_NC: Tensor,
    settings: OrthogonalityConfig,
    ranks: Ranks,
    largest: bool = True,
) -> Tensor:
    """Return this rank's share of the mean over all ranks' rows."""
    unit_FD = directions.unit_MD
    settings = with_threshold(settings, len(unit_FD) * ranks.size, unit_FD.shape[1])
    total = _Listed.apply(unit_FD, rows_N, neighbours_NC, largest, settings, ranks)
    return total / ranks.add(torch.tensor(len(rows_N), device=unit_FD.device)).clamp(min=1)


def nearest(directions: Directions, settings: OrthogonalityConfig, ranks: Ranks) -> Tensor:
    """`nearest` of all ranks' directions."""
    rows_N = directions.penalised_N
    found = search_ranks(directions.unit_MD.detach(), rows_N, CANDIDATES, settings, ranks)
    return _mean(directions, rows_N, found[1], settings, ranks)


def neighbours(directions: Directions, settings: OrthogonalityConfig, ranks: Ranks) -> Tensor:
    """`neighbours` of all ranks' directions; each keeps those of its own."""
    if directions.refresh_due(settings):
        every_F = Directions(directions.W_FD).penalised_N
        found = search_ranks(directions.unit_MD.detach(), every_F, settings.neighbours, settings, ranks)
        directions.state["neighbours"] = found[1]
    rows_N = directions.penalised_N
    return _mean(directions, rows_N, directions.state["neighbours"].index_select(0, rows_N), settings, ranks, False)


def chunked(directions: Directions, settings: OrthogonalityConfig, ranks: Ranks) -> Tensor:
    """`chunked` of all ranks' directions: the parts are the same everywhere, each rank searches for its rows."""
    unit_FD, F = directions.unit_MD.detach(), len(directions.unit_MD)
    M = F * ranks.size
    order_M = torch.randperm(M, generator=torch.Generator().manual_seed(directions.seed)).to(unit_FD.device)
    penalised_F = torch.zeros(F, dtype=torch.bool, device=unit_FD.device)
    penalised_F[directions.penalised_N] = True
    parts = max(1, min(-(-M // settings.chunk), M // 2))
    count = min(CANDIDATES, M // parts - 1)
    rows, others = [order_M[:0]], [order_M.new_empty(0, count)]
    for part_P in order_M.tensor_split(parts):
        mine_P, places_P = part_P // F == ranks.rank, part_P % F
        unit_PD = ranks.add(torch.where(mine_P.unsqueeze(1), unit_FD[places_P], 0.0))
        inside = (mine_P & penalised_F[places_P]).nonzero().squeeze(1)
        if len(inside):
            rows.append(places_P[inside])
            others.append(part_P[search(unit_PD, inside, count, settings)[1]])
    return _mean(directions, torch.cat(rows), torch.cat(others), settings, ranks)


SHARDED: dict[str, Callable[[Directions, OrthogonalityConfig, Ranks], Tensor]] = {
    "nearest": nearest,
    "neighbours": neighbours,
    "chunked": chunked,
}
"""By kind; the others need all directions in one place."""
