"""Penalties on the nearest neighbour inside one's own part of a partition of the directions."""

import heapq

import torch
from torch import Tensor

from sae_cli.config.schema import OrthogonalityConfig
from sae_cli.losses.directions import Directions
from sae_cli.losses.nearest import Partners, kept_partners
from sae_cli.losses.pairs import listed
from sae_cli.losses.rolling import roll
from sae_cli.losses.search import CANDIDATES, search


def part_count(directions: Directions, settings: OrthogonalityConfig) -> int:
    """Return how many parts there are: each holds at most `chunk` directions, and at least two."""
    M = len(directions.unit_MD)
    return max(1, min(-(-M // settings.chunk), M // 2))


def partners_inside(order_M: Tensor, directions: Directions, settings: OrthogonalityConfig) -> Partners:
    """Return penalised rows and their nearest others in the same part; parts are equal slices of order_M to within 1.

    Cost M^2 D / parts, or half of that if all are penalised.
    """
    low_MD, everyone = directions.low_MD, directions.rows_N is None and directions.frozen_GD is None
    penalised_M = torch.zeros(len(low_MD), dtype=torch.bool, device=low_MD.device)
    penalised_M[directions.penalised_N] = True
    parts = part_count(directions, settings)
    count = min(CANDIDATES, len(order_M) // parts - 1)
    rows, others = [], []
    for part in order_M.tensor_split(parts):
        inside = penalised_M[part].nonzero().squeeze(1) if not everyone else torch.arange(len(part), device=part.device)
        found = search(low_MD.index_select(0, part), inside, count, settings)[1]
        rows.append(part[inside])
        others.append(part[found])
    return torch.cat(rows), torch.cat(others)


def chunked_partners(directions: Directions, settings: OrthogonalityConfig) -> Partners:
    """Return each penalised row's nearest others in its part of the partition that the step's seed draws."""
    order_M = torch.randperm(len(directions.unit_MD), generator=torch.Generator().manual_seed(directions.seed))
    return partners_inside(order_M.to(directions.W_FD.device, non_blocking=True), directions, settings)


def chunked(directions: Directions, settings: OrthogonalityConfig) -> Tensor:
    """`nearest` inside ceil(M / chunk) random parts of equal size, drawn anew at each call; a scalar.

    OrtSAE (arXiv 2509.22033). The same parts serve every member. Cost M chunk D, or half of it if all are penalised.
    """
    return listed(directions, *chunked_partners(directions, settings), settings)


def cells_partners(directions: Directions, settings: OrthogonalityConfig) -> Partners:
    """Return each penalised row's nearest others in its cell of the last refresh, or the first two of its list."""
    if settings.search_rows:
        rows_N, lists_NC = kept_partners(directions, settings)
        return rows_N, lists_NC[:, :CANDIDATES]
    return partners_inside(directions.state["order"], directions, settings)


def cells(directions: Directions, settings: OrthogonalityConfig) -> Tensor:
    """`nearest` inside parts as large as those of `chunked` that keep nearest neighbours together; a scalar.

    At a refresh an exact search links each direction to its nearest other; the links form trees, which are cut into
    parts by as few links as their sizes need. Cost M chunk D, and M^2 D at a refresh, half if all are penalised; no
    refresh if there is but one part. With `search_rows` a use costs search_rows * chunk * D: the nearest is that of the
    `neighbours` others that a rolling search keeps per direction, and a refresh finds all of these anew.
    """
    parts, low_MD = part_count(directions, settings), directions.low_MD
    every_M = torch.arange(len(low_MD), device=low_MD.device)
    if parts == 1:
        directions.state["order"] = every_M
    elif directions.refresh_due(settings):
        count = settings.neighbours if settings.search_rows else 1
        cosines_MC, nearest_MC = search(low_MD, every_M, count, settings)
        if settings.search_rows:
            directions.state |= {"neighbours": nearest_MC, "cosines": cosines_MC}
        sizes = [len(part) for part in every_M.tensor_split(parts)]
        directions.state["order"] = torch.tensor(packed(nearest_MC[:, 0].tolist(), sizes), device=low_MD.device)
    if settings.search_rows:
        roll(directions, settings, None if parts == 1 else directions.state["order"], parts)
    return listed(directions, *cells_partners(directions, settings), settings)


def packed(nearest: list[int], sizes: list[int]) -> list[int]:
    """Return all indices in an order whose consecutive slices of these sizes cut few of the links i - nearest[i].

    The largest tree goes first, always into the emptiest part; one that does not fit there is cut into pieces that do.
    """
    parent: list[int | None] = [None] * len(nearest)
    parts: list[list[int]] = [[] for _ in sizes]
    room = [(-size, part) for part, size in enumerate(sizes)]
    queue = [(-len(tree), tree) for tree in rooted_trees(nearest, parent)]
    heapq.heapify(room)
    heapq.heapify(queue)
    while queue:
        _, tree = heapq.heappop(queue)
        space, part = -room[0][0], room[0][1]
        if len(tree) > space:
            for piece in pieces(tree, parent, space):
                heapq.heappush(queue, (-len(piece), piece))
            continue
        parts[part] += tree
        heapq.heapreplace(room, (len(tree) - space, part))
    return [index for part in parts for index in part]


def rooted_trees(nearest: list[int], parent: list[int | None]) -> list[list[int]]:
    """Return the trees that the links i - nearest[i] form, parents before children, and fill in parents.

    Links form one cycle per tree (of mutual nearest neighbours); its first index met is the root.
    """
    linked: list[list[int]] = [[] for _ in nearest]
    for i, j in enumerate(nearest):
        linked[i].append(j)
        linked[j].append(i)
    trees, seen = [], [False] * len(nearest)
    for root in range(len(nearest)):
        if seen[root]:
            continue
        seen[root] = True
        tree = [root]
        for i in tree:
            for j in linked[i]:
                if not seen[j]:
                    seen[j], parent[j] = True, i
                    tree.append(j)
        trees.append(tree)
    return trees


def pieces(tree: list[int], parent: list[int | None], largest: int) -> list[list[int]]:
    """Return a tree cut into pieces of at most `largest`, by the fewest links: at each node the heaviest children go.

    The algorithm of Kundu and Misra (SIAM J. Comput. 6, 1977).
    """
    weight = dict.fromkeys(tree, 1)
    children: dict[int, list[int]] = {i: [] for i in tree}
    found: dict[int, list[int]] = {}
    for i in reversed(tree):
        for child in sorted(children[i], key=weight.__getitem__):
            if weight[i] + weight[child] <= largest:
                weight[i] += weight[child]
            else:
                parent[child] = None
        above = parent[i]
        if above is not None:
            children[above].append(i)
    home: dict[int, int] = {}
    for i in tree:
        above = parent[i]
        home[i] = i if above is None else home[above]
        found.setdefault(home[i], []).append(i)
    return list(found.values())
