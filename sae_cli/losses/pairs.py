"""Sums of phi over pairs of directions, with gradients built in the forward, tile by tile.

So no F x F tensor ever exists, and memory is bounded by a tile of pairs.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from sae_cli.config.schema import OrthogonalityConfig
from sae_cli.losses.directions import Directions
from sae_cli.losses.phi import penalised
from sae_cli.sparse.pairs import PairDots


class _AllPairs(Function):
    """sum over unordered pairs {i, j} of (p_i + p_j) phi(c_ij) of unit rows (M, D); p_i = 1 where i is penalised."""

    @staticmethod
    def forward(ctx: Any, unit_MD: Tensor, penalised_M: Tensor, settings: OrthogonalityConfig) -> Tensor:  # type: ignore[override]
        total = unit_MD.new_zeros(())
        grad_MD = torch.zeros_like(unit_MD)
        for start in range(0, len(unit_MD), settings.tile):
            rows, columns = unit_MD[start : start + settings.tile], unit_MD[start:]
            weights = penalised_M[start : start + settings.tile, None] + penalised_M[start:]
            with torch.enable_grad():
                c = (rows.detach() @ columns.detach().T).to(unit_MD.dtype).requires_grad_()
                tile_total = (penalised(c, settings) * weights.triu(1)).sum()
            (slope,) = torch.autograd.grad(tile_total, c)
            total += tile_total.detach()
            grad_MD[start : start + settings.tile] += slope @ columns
            grad_MD[start:] += slope.T @ rows
        ctx.save_for_backward(grad_MD)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return ctx.saved_tensors[0] * upstream, None, None


def listed(
    directions: Directions, rows_N: Tensor, neighbours_NC: Tensor, settings: OrthogonalityConfig, largest: bool = True
) -> Tensor:
    """Return the mean over the rows of phi of the nearest listed neighbour (or mean phi of all), a scalar; 0 of none.

    Cosines are computed anew; gradients reach both ends of a pair, and ties share theirs equally. Under bf16 autocast
    directions are read in bf16, sums are in fp32. Cost N C D.
    """
    source, later = (directions.unit_MD, None) if directions.later is None else directions.later
    values_NC = penalised(PairDots.apply(source, directions.low_MD, rows_N, neighbours_NC, later), settings)
    values_N = values_NC.amax(1) if largest else values_NC.mean(1)
    return values_N.sum() / max(len(rows_N), 1)


def all_pairs(directions: Directions, settings: OrthogonalityConfig) -> Tensor:
    """mean_i mean_{j != i} phi(c_ij), a scalar: mean_{i<j} if all are penalised. Cost F^2 D a step, memory tile * F."""
    M, F = len(directions.unit_MD), len(directions.W_FD)
    penalised_M = directions.unit_MD.new_zeros(M)
    penalised_M[directions.penalised_N] = 1
    count = F if directions.rows_N is None else len(directions.rows_N)
    return _AllPairs.apply(directions.unit_MD, penalised_M, settings) / max(count * (M - 1), 1)


def gram(directions: Directions, settings: OrthogonalityConfig) -> Tensor:
    """(||U U^T - I||_F^2 + ||U V^T||_F^2) / (F (M - 1)) of unit rows U and frozen rows V, a scalar.

    It equals all_pairs with the square of unsigned cosines and has no phi; ||U U^T - I||^2 = ||U^T U||^2 - 2 ||U||^2 +
    F costs F D^2 instead of F^2 D. Any tight frame minimises it: a duplicated orthonormal basis is optimal, so it
    should never be the only thing that keeps directions apart.
    """
    M, F = len(directions.unit_MD), len(directions.W_FD)
    with torch.autocast(directions.W_FD.device.type, enabled=False):
        new_FD, frozen_GD = directions.unit_MD[:F], directions.unit_MD[F:]
        inside_DD = new_FD.T @ new_FD
        total = inside_DD.square().sum() - 2 * new_FD.square().sum() + F
        if M > F:
            total = total + (inside_DD * (frozen_GD.T @ frozen_GD)).sum()
    return total / max(F * (M - 1), 1)
