"""Penalties on the nearest neighbour inside one's own part of a partition of the directions."""

import heapq

import numpy as np
import torch
from torch import Tensor

from sae_cli.config.schema import OrthogonalityConfig
from sae_cli.losses.directions import Directions
from sae_cli.losses.nearest import Partners
from sae_cli.losses.pairs import listed
from sae_cli.losses.search import CANDIDATES, search

LINKS = 4
"""Nearest others per direction whose links the cells are grown from."""


def part_count(directions: Directions, settings: OrthogonalityConfig) -> int:
    """Return how many parts there are: each holds at most `chunk` directions, and at least two."""
    M = len(directions.unit_MD)
    return max(1, min(-(-M // settings.chunk), M // 2))


def partners_inside(order_M: Tensor, directions: Directions, settings: OrthogonalityConfig) -> Partners:
    """Return penalised rows and their nearest others in the same part; parts are equal slices of order_M to within 1.

    Cost M^2 D / parts.
    """
    unit_MD, everyone = directions.unit_MD.detach(), directions.rows_N is None and directions.frozen_GD is None
    penalised_M = torch.zeros(len(unit_MD), dtype=torch.bool, device=unit_MD.device)
    penalised_M[directions.penalised_N] = True
    parts = part_count(directions, settings)
    count = min(CANDIDATES, len(order_M) // parts - 1)
    rows, others = [], []
    for part in order_M.tensor_split(parts):
        inside = penalised_M[part].nonzero().squeeze(1) if not everyone else torch.arange(len(part), device=part.device)
        found = search(unit_MD.index_select(0, part), inside, count, settings)[1]
        rows.append(part[inside])
        others.append(part[found])
    return torch.cat(rows), torch.cat(others)


def chunked_partners(directions: Directions, settings: OrthogonalityConfig) -> Partners:
    """Return each penalised row's nearest others in its part of the partition that the step's seed draws."""
    order_M = torch.randperm(len(directions.unit_MD), generator=torch.Generator().manual_seed(directions.seed))
    return partners_inside(order_M.to(directions.W_FD.device, non_blocking=True), directions, settings)


def chunked(directions: Directions, settings: OrthogonalityConfig) -> Tensor:
    """`nearest` inside ceil(M / chunk) random parts of equal size, drawn anew at each call; a scalar.

    OrtSAE (arXiv 2509.22033). The same parts serve every member. Cost M chunk D.
    """
    return listed(directions, *chunked_partners(directions, settings), settings)


def cells_partners(directions: Directions, settings: OrthogonalityConfig) -> Partners:
    """Return each penalised row's nearest others in its cell of the last refresh."""
    return partners_inside(directions.state["order"], directions, settings)


def cells(directions: Directions, settings: OrthogonalityConfig) -> Tensor:
    """`nearest` inside parts as large as those of `chunked` that keep near directions together; a scalar.

    At a refresh an exact search finds each direction's nearest others, which are joined into clusters of at most a
    part's size, and the clusters fill the parts. Cost M chunk D, and M^2 D at a refresh.
    """
    if directions.refresh_due(settings):
        unit_MD = directions.unit_MD.detach()
        every_M = torch.arange(len(unit_MD), device=unit_MD.device)
        c_MC, found_MC = search(unit_MD, every_M, LINKS, settings)
        parts = part_count(directions, settings)
        sizes = [len(part) for part in every_M.tensor_split(parts)]
        grown = clusters(c_MC.float().cpu().numpy(), found_MC.cpu().numpy(), sizes[-1])
        directions.state["order"] = torch.tensor(packed(grown, sizes), device=unit_MD.device)
    return listed(directions, *cells_partners(directions, settings), settings)


def clusters(c_MC: np.ndarray, found_MC: np.ndarray, largest: int) -> list[list[int]]:
    """Return clusters of indices, none above `largest`: single linkage, nearest others first, then the second...

    A link that would make a cluster too large is left out. Within a rank, links are taken in descending cosine.
    """
    M, C = found_MC.shape
    members = [[i] for i in range(M)]
    cluster_of = list(range(M))
    rank = np.tile(np.arange(C), M)
    order = np.lexsort((-c_MC.ravel(), rank))
    for i, j in zip((order // C).tolist(), found_MC.ravel()[order].tolist(), strict=True):
        small, large = cluster_of[i], cluster_of[j]
        if small == large or len(members[small]) + len(members[large]) > largest:
            continue
        if len(members[small]) > len(members[large]):
            small, large = large, small
        for member in members[small]:
            cluster_of[member] = large
        members[large] += members[small]
        members[small] = []
    return [found for found in members if found]


def packed(grown: list[list[int]], sizes: list[int]) -> list[int]:
    """Return all indices in an order whose consecutive slices of these sizes keep clusters together.

    The largest cluster goes first, always into the emptiest part; what does not fit there is cut off and goes on.
    """
    parts: list[list[int]] = [[] for _ in sizes]
    room = [(-size, part) for part, size in enumerate(sizes)]
    heapq.heapify(room)
    queue = [(-len(cluster), number, cluster) for number, cluster in enumerate(grown)]
    heapq.heapify(queue)
    while queue:
        _, number, cluster = heapq.heappop(queue)
        space, part = heapq.heappop(room)
        parts[part] += cluster[:-space]
        heapq.heappush(room, (min(space + len(cluster), 0), part))
        if rest := cluster[-space:]:
            heapq.heappush(queue, (-len(rest), number, rest))
    return [index for part in parts for index in part]
