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


def similarity(A_FD: Tensor, B_FD: Tensor, ids_A: list[int], ids_B: list[int]) -> dict[str, Any]:
    """Return how the directions A (F, D) and B (F', D) agree; row norms do not matter, ids name the rows.

    docs/compare-format.md defines the keys of `similarity`.
    """
    unit_AD, unit_BD = normalize(A_FD.float(), dim=1), normalize(B_FD.float(), dim=1)
    best_A, _, best_B, _ = nearest(unit_AD, unit_BD)
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


def nearest(unit_AD: Tensor, unit_BD: Tensor, tile: int = 1024) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return each A's largest cosine with a B and which (F,), then each B's with an A and which (F',).

    At most tile x F' cosines exist at a time.
    """
    best_B = unit_BD.new_full((len(unit_BD),), -2)
    partner_B = torch.zeros_like(best_B, dtype=torch.int64)
    parts = []
    for start in range(0, len(unit_AD), tile):
        cosine_TB = unit_AD[start : start + tile] @ unit_BD.T
        parts.append(cosine_TB.max(dim=1))
        value_B, row_B = cosine_TB.max(dim=0)
        partner_B = torch.where(value_B > best_B, row_B + start, partner_B)
        best_B = best_B.maximum(value_B)
    best_A, partner_A = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return best_A.clamp(-1, 1), partner_A, best_B.clamp(-1, 1), partner_B


def hungarian(unit_AD: Tensor, unit_BD: Tensor) -> np.ndarray:
    """Return the cosines of the pairs of the best one-to-one assignment; holds the whole F x F' matrix."""
    cosine_AB = (unit_AD @ unit_BD.T).cpu().numpy()
    return cosine_AB[linear_sum_assignment(cosine_AB, maximize=True)].astype(float)


def greedy(unit_AD: Tensor, unit_BD: Tensor, tile: int = 1024) -> np.ndarray:
    """Return the cosines of a one-to-one match made by falling cosine; at most tile x F' cosines exist at a time.

    In rounds: two that are each other's nearest among the free are a pair of it, as no pair with a higher cosine can
    take either of them.
    """
    matched: list[float] = []
    while len(unit_AD) and len(unit_BD):
        best_A, partner_A, _, partner_B = nearest(unit_AD, unit_BD, tile)
        row = best_A.argmax()
        partner_B[partner_A[row]] = row  # they are a pair even where rounding or ties say otherwise
        mutual_A = partner_B[partner_A] == torch.arange(len(unit_AD), device=unit_AD.device)
        matched += best_A[mutual_A].tolist()
        free_B = torch.ones_like(partner_B, dtype=torch.bool)
        free_B[partner_A[mutual_A]] = False
        unit_AD, unit_BD = unit_AD[~mutual_A], unit_BD[free_B]
    return np.array(matched)


def _missing(best_F: Tensor, ids: list[int]) -> list[dict[str, float]]:
    """Return id and largest cosine of the directions that the other dictionary has not, lowest first."""
    lowest = best_F.argsort()[:LISTED].tolist()
    return [{"id": ids[row], "cosine": float(best_F[row])} for row in lowest if best_F[row] < UNIQUE]
