"""The orthogonality penalties Omega(W_dec) by name.

Index i runs over the penalised rows, j over all directions, frozen ones included; c_ij is the cosine of directions i
and j, and gradients reach both ends of a pair. `active_only` and `frozen` of the catalogue are `rows=active` and
residual training with `nearest`; they have files in conf/ only. Reconstruction-like kinds (gram, rica, decomposable)
have no phi, sign or cap.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sae_cli.config.schema import OrthogonalityConfig
from sae_cli.losses.assignment import unique_nearest
from sae_cli.losses.decomposable import decomposable
from sae_cli.losses.directions import Directions
from sae_cli.losses.nearest import Partners, kept_partners, mixed_max, nearest, nearest_partners, neighbours
from sae_cli.losses.pairs import all_pairs, gram
from sae_cli.losses.partition import cells, cells_partners, chunked, chunked_partners
from sae_cli.losses.rica import rica
from sae_cli.losses.search import best_cosines

ORTHOGONALITY: dict[str, Callable[[Directions, OrthogonalityConfig], Tensor] | None] = {
    "none": None,
    "all_pairs": all_pairs,
    "gram": gram,
    "nearest": nearest,
    "unique_nearest": unique_nearest,
    "mixed_max": mixed_max,
    "chunked": chunked,
    "cells": cells,
    "neighbours": neighbours,
    "rica": rica,
    "decomposable": decomposable,
}

APPROXIMATE: dict[str, Callable[[Directions, OrthogonalityConfig], Partners]] = {
    "unique_nearest": kept_partners,
    "chunked": chunked_partners,
    "cells": cells_partners,
    "neighbours": kept_partners,
}
"""Kinds that may miss a direction's nearest neighbour, and what they hold each row against."""

SAME = 1e-6
"""Difference below which two cosines are the same neighbour's."""


@torch.no_grad()
def neighbour_recall(directions: Directions, settings: OrthogonalityConfig) -> dict[str, float]:
    """Return how well an approximate penalty sees true nearest neighbours, with what it kept from its last refresh.

    neighbour_recall: share of penalised rows that are held against theirs. neighbour_gap: by how much, on average, the
    true nearest cosine is above the largest that the row is held against; directions that are all but equally far
    from many others have a low recall and a small gap.
    """
    rows_N, seen_NC = APPROXIMATE[settings.kind](directions, settings)
    if not len(rows_N):
        return {"neighbour_recall": 1.0, "neighbour_gap": 0.0}
    exact = Directions(directions.W_FD, rows_N=rows_N, frozen_GD=directions.frozen_GD)
    true_NC = nearest_partners(exact, settings)[1]
    seen_N, true_N = (best_cosines(directions.unit_MD, rows_N, others, settings) for others in (seen_NC, true_NC))
    recall = (seen_N >= true_N - SAME).float().mean().item()
    return {"neighbour_recall": recall, "neighbour_gap": (true_N - seen_N).mean().item()}
