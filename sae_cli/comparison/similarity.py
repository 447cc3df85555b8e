"""How far two dictionaries hold the same directions. Cosines are signed: latents are non-negative."""

from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

from sae_cli.evaluation.geometry import random_cosines

UNIQUE = 0.2
"""A direction whose largest cosine with the other dictionary is below this is unique to its own."""
HUNGARIAN = 8192
"""Directions up to which the one-to-one match is exact (scipy's assignment needs the whole cosine matrix)."""
LISTED = 50
"""Largest number of directions listed as missing in the other dictionary."""
CANDIDATES = 32
"""Partners per direction and round of the greedy match."""


def similarity(A_FD: Tensor, B_FD: Tensor, ids_A: list[int], ids_B: list[int]) -> dict[str, Any]:
    """Return how the directions A (F, D) and B (F', D) agree; row norms do not matter, ids name the rows.

    mmcs_a: mean over A of the largest cosine with a direction of B; mmcs_b the other way round; random_a, random_b:
    what as many random directions would give. unique_a, unique_b: share with no cosine of 0.2 in the other.
    matched: mean cosine over the best one-to-one assignment (min(F, F') pairs); match says hungarian, or greedy above
    8,192 directions: pairs by falling cosine, a lower bound. only_a, only_b: the unique directions, lowest first.
    """
    unit_AD, unit_BD = normalize(A_FD.float(), dim=1), normalize(B_FD.float(), dim=1)
    best_A, best_B = largest_cosines(unit_AD, unit_BD), largest_cosines(unit_BD, unit_AD)
    exact = max(len(unit_AD), len(unit_BD)) <= HUNGARIAN
    width = unit_AD.shape[1]
    return {
        "mmcs_a": float(best_A.double().mean()),
        "mmcs_b": float(best_B.double().mean()),
        "random_a": random_cosines(len(unit_BD) + 1, width)["nearest_mean"],
        "random_b": random_cosines(len(unit_AD) + 1, width)["nearest_mean"],
        "unique_a": float((best_A < UNIQUE).double().mean()),
        "unique_b": float((best_B < UNIQUE).double().mean()),
        "match": "hungarian" if exact else "greedy",
        "matched": float((hungarian if exact else greedy)(unit_AD, unit_BD).mean()),
        "only_a": _missing(best_A, ids_A),
        "only_b": _missing(best_B, ids_B),
    }


def largest_cosines(unit_AD: Tensor, unit_BD: Tensor, tile: int = 1024) -> Tensor:
    """Return each row's largest cosine with a row of the other; at most tile x F' cosines exist at a time."""
    return torch.cat([(part_AD @ unit_BD.T).amax(dim=1) for part_AD in unit_AD.split(tile)]).clamp(-1, 1)


def hungarian(unit_AD: Tensor, unit_BD: Tensor) -> np.ndarray:
    """Return the cosines of the pairs of the best one-to-one assignment; holds the whole F x F' matrix."""
    cosine_AB = (unit_AD @ unit_BD.T).cpu().numpy()
    return cosine_AB[linear_sum_assignment(cosine_AB, maximize=True)].astype(float)


def greedy(unit_AD: Tensor, unit_BD: Tensor, tile: int = 1024) -> np.ndarray:
    """Return the cosines of a one-to-one match made by falling cosine; at most tile x F' cosines exist at a time.

    Each round looks at the nearest free partners of every free direction. A pair is final if no free pair with a
    higher cosine can be hidden beyond these, so the result is that of sorting all pairs.
    """
    if len(unit_AD) > len(unit_BD):
        unit_AD, unit_BD = unit_BD, unit_AD
    matched: list[float] = []
    while len(unit_AD):
        kept = min(CANDIDATES, len(unit_BD))
        parts = [(part_AD @ unit_BD.T).topk(kept, dim=1) for part_AD in unit_AD.split(tile)]
        value_AK, index_AK = (torch.cat(columns).cpu() for columns in zip(*parts, strict=True))
        limit_A = value_AK[:, -1].tolist() if kept < len(unit_BD) else [-2.0] * len(unit_AD)
        order = value_AK.flatten().argsort(descending=True, stable=True)
        values, partners = value_AK.flatten()[order].tolist(), index_AK.flatten()[order].tolist()
        free_A, free_B = [True] * len(unit_AD), [True] * len(unit_BD)
        left_A, hidden = [kept] * len(unit_AD), -2.0
        for value, row, partner in zip(values, (order // kept).tolist(), partners, strict=True):
            if value < hidden:
                break
            left_A[row] -= 1
            if free_A[row] and free_B[partner]:
                free_A[row] = free_B[partner] = False
                matched.append(value)
            elif free_A[row] and not left_A[row]:
                # Its next partner lies beyond the candidates, at a cosine of at most the last one's.
                hidden = max(hidden, limit_A[row])
        unit_AD = unit_AD[torch.tensor(free_A, device=unit_AD.device)]
        unit_BD = unit_BD[torch.tensor(free_B, device=unit_BD.device)]
    return np.array(matched)


def _missing(best_F: Tensor, ids: list[int]) -> list[dict[str, float]]:
    """Return id and largest cosine of the directions that the other dictionary has not, lowest first."""
    lowest = best_F.argsort()[:LISTED].tolist()
    return [{"id": ids[row], "cosine": float(best_F[row])} for row in lowest if best_F[row] < UNIQUE]
