"""The arithmetic test: which directions are sparse non-negative sums of other directions.

Each target direction d is fitted as sum_t c_t a_t, c_t >= 0, with one, two and three atoms (directions of another
dictionary, or the others of its own) by non-negative orthogonal matching pursuit: the atom with the largest product
with the residual joins, then all coefficients are fitted anew. Beside it stand targets that are known sums and
targets and atoms that are random.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_cli.randomness import derive_seed

TERMS = 3
"""Largest number of atoms of a sum."""
EXPLAINED = 0.8
"""A direction is composite if two or three atoms explain at least this share of it..."""
SINGLE = 0.6
"""...while its best single atom explains at most this share (a cosine of 0.77)."""
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
EXAMPLES = 20
"""Composite directions that are named with their constituents."""


@dataclass
class Fit:
    """Non-negative fits of N directions with up to T atoms; an atom that does not help has the coefficient 0."""

    atoms_NT: Tensor
    """Index of each chosen atom in the order of choice."""
    coefficients_NT: Tensor
    """Coefficients of the last fit, for unit targets and unit atoms."""
    cosines_NT: Tensor
    """Cosine of the target with each chosen atom."""
    explained_NT: Tensor
    """Share of ||d||^2 explained by the first 1, 2, ... choices; never falls."""

    @property
    def composite_N(self) -> Tensor:
        """Mask of the directions that are a sum of two or three atoms and not one of them."""
        return (self.explained_NT[:, -1] >= EXPLAINED) & (self.explained_NT[:, 0] <= SINGLE)


def pursue(
    targets_ND: Tensor,
    atoms_FD: Tensor,
    own_N: Tensor | None = None,
    first_N: Tensor | None = None,
    terms: int = TERMS,
    tile: int = 1024,
) -> Fit:
    """Fit every target (N, D) with at most `terms` atoms (F, D); norms do not matter.

    own_N: for each target the atom that it must not use (itself), -1: none. first_N: the atom it must begin with.
    Cost N F D per term; at most tile x F products exist at a time.
    """
    unit_ND, unit_FD = normalize(targets_ND.float(), dim=1), normalize(atoms_FD.float(), dim=1)
    parts = []
    for start in range(0, len(unit_ND), tile):
        rows = slice(start, start + tile)
        own_B, first_B = (None if index_N is None else index_N[rows] for index_N in (own_N, first_N))
        parts.append(_pursue(unit_ND[rows], unit_FD, own_B, first_B, terms))
    return Fit(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _pursue(
    unit_BD: Tensor, unit_FD: Tensor, own_B: Tensor | None, first_B: Tensor | None, terms: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    row_B = torch.arange(len(unit_BD), device=unit_BD.device)
    chosen_BT = row_B.new_zeros(len(unit_BD), 0)
    coefficient_BT = unit_BD.new_zeros(len(unit_BD), 0, dtype=torch.float64)
    explained, product_BT = [], coefficient_BT
    for term in range(min(terms, len(unit_FD))):
        if term == 0 and first_B is not None:
            next_B = first_B
        else:
            residual_BD = unit_BD - torch.einsum("bt,btd->bd", coefficient_BT.float(), unit_FD[chosen_BT])
            score_BF = (residual_BD @ unit_FD.T).scatter(1, chosen_BT, -2)
            if own_B is not None:
                score_BF[row_B[own_B >= 0], own_B[own_B >= 0]] = -2
            next_B = score_BF.argmax(dim=1)
        chosen_BT = torch.cat([chosen_BT, next_B[:, None]], dim=1)
        atoms_BTD = unit_FD[chosen_BT].double()
        gram_BTT = atoms_BTD @ atoms_BTD.mT
        product_BT = torch.einsum("btd,bd->bt", atoms_BTD, unit_BD.double())
        usable_BT = product_BT
        if own_B is not None:
            # With every other atom taken only the target itself is left.
            usable_BT = product_BT.masked_fill(chosen_BT == own_B[:, None], -1)
        coefficient_BT, explained_B = nonnegative(gram_BTT, usable_BT)
        explained.append(explained_B)
    explained += explained[-1:] * (terms - len(explained))
    return chosen_BT, coefficient_BT, product_BT, torch.stack(explained, dim=1).clamp(0, 1)


def nonnegative(gram_BTT: Tensor, product_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Return the coefficients (B, T) that minimise ||d - sum_t c_t a_t||^2 over c >= 0, and ||fit||^2 (B,).

    Exact, by trying every set of non-zero coefficients (2^T - 1 of them): the optimum is the least-squares solution
    on one of these sets, and each solution without a negative coefficient is allowed. gram: products of atoms,
    product: atoms with d, both fp64. Of equal solutions the one with fewer atoms is taken, so that a repeated atom is
    not split.
    """
    terms = product_BT.shape[1]
    best_BT, best_B = torch.zeros_like(product_BT), product_BT.new_zeros(len(product_BT))
    for size in range(1, terms + 1):
        for chosen in map(list, combinations(range(terms), size)):
            part_BSS = gram_BTT[:, chosen][:, :, chosen]
            ridge_SS = 1e-10 * torch.eye(size, dtype=part_BSS.dtype, device=part_BSS.device)
            solution_BS = torch.linalg.solve(part_BSS + ridge_SS, product_BT[:, chosen])
            squares_B = (solution_BS * product_BT[:, chosen]).sum(1)
            better_B = (solution_BS >= 0).all(1) & (squares_B > best_B + 1e-9)
            best_B = torch.where(better_B, squares_B, best_B)
            full_BT = torch.zeros_like(best_BT)
            full_BT[:, chosen] = solution_BS
            best_BT = torch.where(better_B[:, None], full_BT, best_BT)
    return best_BT, best_B


def summary(fit: Fit) -> dict[str, Any]:
    """Return count, share explained by 1, 2, 3 atoms (mean and quantiles), share of composites and of single atoms."""
    explained_NT = fit.explained_NT.double()
    levels = torch.tensor(QUANTILES, dtype=torch.float64, device=explained_NT.device)
    return {
        "count": len(explained_NT),
        "mean": explained_NT.mean(0).tolist(),
        "quantiles": {
            str(level): row for level, row in zip(QUANTILES, explained_NT.quantile(levels, dim=0).tolist(), strict=True)
        },
        "single": float((explained_NT[:, 0] >= EXPLAINED).double().mean()),
        "composite": float(fit.composite_N.double().mean()),
    }


def arithmetic(
    targets_ND: Tensor, atoms_FD: Tensor, ids_N: list[int], ids_F: list[int], seed: int, within: bool = False
) -> dict[str, Any]:
    """Return the arithmetic test of targets on atoms with its controls, and the most composite targets.

    within: both are one dictionary, and a target whose id is an atom's does not use that atom. docs/compare-format.md
    defines the controls.
    """
    position = {latent: row for row, latent in enumerate(ids_F)}
    own_N = torch.tensor([position.get(latent, -1) if within else -1 for latent in ids_N], device=targets_ND.device)
    fit = pursue(targets_ND, atoms_FD, own_N)
    count, width = len(targets_ND), atoms_FD.shape[1]
    result = {"measured": summary(fit)}
    for terms in (2, 3):
        if len(atoms_FD) >= terms:
            result[f"sum_of_{terms}"] = _known_sums(atoms_FD, count, terms, derive_seed(seed, "sums", terms))
    random_ND = random_directions(count, width, derive_seed(seed, "targets")).to(atoms_FD.device)
    random_FD = random_directions(len(atoms_FD), width, derive_seed(seed, "atoms")).to(atoms_FD.device)
    result["random_targets"] = summary(pursue(random_ND, atoms_FD))
    result["random_atoms"] = summary(pursue(targets_ND, random_FD))
    return {"rows": result, "examples": _examples(fit, ids_N, ids_F)}


def random_directions(count: int, width: int, seed: int) -> Tensor:
    """Return unit vectors (count, width), uniform on the sphere."""
    return normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def _known_sums(atoms_FD: Tensor, count: int, terms: int, seed: int) -> dict[str, Any]:
    """Return the summary of normalised sums of `terms` atoms, with the share of the constituents that were chosen."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randint(len(atoms_FD) - term, (count,), generator=generator) for term in range(terms)]
    parts_NT = _distinct(torch.stack(drawn, dim=1)).to(atoms_FD.device)
    unit_FD = normalize(atoms_FD.float(), dim=1)
    fit = pursue(unit_FD[parts_NT].sum(1), atoms_FD)
    chosen_NT = fit.atoms_NT[:, :terms]
    found_NT = (parts_NT[:, :, None] == chosen_NT[:, None, :]).any(2)
    return summary(fit) | {"recovered": float(found_NT.double().mean())}


def _distinct(drawn_NT: Tensor) -> Tensor:
    """Return draws without repetition: column t, drawn from F - t values, skips the values before it."""
    columns: list[Tensor] = []
    for column_N in drawn_NT.T:
        if columns:
            for taken_N in torch.stack(columns, dim=1).sort(dim=1).values.T:
                column_N = column_N + (column_N >= taken_N)
        columns.append(column_N)
    return torch.stack(columns, dim=1)


def _examples(fit: Fit, ids_N: list[int], ids_F: list[int]) -> list[dict[str, Any]]:
    """Return the composite targets that gain most over their best single atom, with their constituents."""
    gain_N = (fit.explained_NT[:, -1] - fit.explained_NT[:, 0]).masked_fill(~fit.composite_N, -1)
    examples = []
    for row in gain_N.argsort(descending=True, stable=True)[: min(EXAMPLES, int(fit.composite_N.sum()))].tolist():
        columns = (fit.atoms_NT[row], fit.coefficients_NT[row], fit.cosines_NT[row])
        terms = zip(*(column.tolist() for column in columns), strict=True)
        names = [{"id": ids_F[atom], "coefficient": c, "cosine": cosine} for atom, c, cosine in terms if c > 0]
        examples.append({"id": ids_N[row], "explained": fit.explained_NT[row].tolist(), "terms": names})
    return examples
