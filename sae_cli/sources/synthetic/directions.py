"""The true directions: unit vectors in R^D, more of them than dimensions where there is superposition."""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_cli.config.schema_data import SourceConfig
from sae_cli.randomness import derive_seed

PROJECTIONS = 10
"""Alternating projections towards a tight frame; the sum of squared cosines settles within a few."""


def true_directions(source: SourceConfig) -> Tensor:
    """Return unit directions (G, D).

    three_features: the standard basis of R^3. tms: `set_directions`. synthbench: a tight frame. All others: uniform
    on the sphere, or orthonormal with source.orthogonal.
    """
    if source.kind == "three_features":
        return torch.eye(3)
    if source.kind == "tms":
        return set_directions(source.sets, source.features // source.sets, source.width)
    generator = torch.Generator().manual_seed(derive_seed(source.seed, "directions"))
    directions_GD = torch.randn(source.features, source.width, generator=generator)
    if source.orthogonal:
        return torch.linalg.qr(directions_GD.T).Q.T.contiguous()
    directions_GD = normalize(directions_GD, dim=1)
    return tight_frame(directions_GD) if source.kind == "synthbench" else directions_GD


def tight_frame(directions_GD: Tensor) -> Tensor:
    """Return the unit rows after alternating projections between tight frames and unit rows (Tropp et al. 2005).

    A unit-norm tight frame has the smallest possible sum of squared cosines, G^2 / D (G where G <= D): what the
    gradient descent of arXiv 2602.14687 lowers too. Cost per projection G D^2.
    """
    for _ in range(PROJECTIONS):
        if len(directions_GD) <= directions_GD.shape[1]:
            return torch.linalg.qr(directions_GD.T).Q.T.contiguous()
        size_D, axes_DD = torch.linalg.eigh(directions_GD.T @ directions_GD)
        directions_GD = normalize(directions_GD @ (axes_DD / size_D.sqrt()) @ axes_DD.T, dim=1)
    return directions_GD


def set_directions(sets: int, size: int, width: int) -> Tensor:
    """Return directions (sets * size, D) as a toy model of superposition lays them out.

    Sets lie in orthogonal subspaces, of D // sets dimensions each and one more for the first D % sets. Inside its
    subspace of d dimensions a set is orthonormal (d >= size), an antipodal pair (d = 1, size 2) or a regular polygon
    (d = 2). Any other size is refused by config/check.py.
    """
    directions_GD = torch.zeros(sets * size, width)
    column = 0
    for index in range(sets):
        room = width // sets + (index < width % sets)
        block = directions_GD[index * size : (index + 1) * size, column : column + room]
        if room >= size:
            block.copy_(torch.eye(size, room))
        elif room == 1:
            block.copy_(torch.tensor([[1.0], [-1.0]]))
        else:
            angle = 2 * math.pi * torch.arange(size) / size
            block[:, :2] = torch.stack([angle.cos(), angle.sin()], dim=1)
        column += room
    return directions_GD
