"""Orthogonality penalties Omega(W_dec) on directions, tiled so that no F x F tensor ever exists.

The founding proposal is `all_pairs`; `nearest` penalises each direction's nearest neighbour; `chunked` is OrtSAE
(arXiv 2509.22033): nearest inside random equal parts. Signed cosines count only where positive: latents are
non-negative, so antipodes are harmless. Index i runs over the penalised rows, j over all directions, frozen
ones included; the gradient reaches both ends of a pair.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import normalize

from sae_cli.config.schema import OrthogonalityConfig
from sae_cli.losses.phi import PHI

CANDIDATES = 2
"""Neighbours per row whose cosines are recomputed in full precision; two, so that a tie shares its gradient."""


@dataclass
class Directions:
    """What a penalty may look at: one member's directions at one step."""

    W_FD: Tensor
    """Decoder rows, with gradients."""
    seed: int = 0
    """Of this step's random draws."""
    step: int = 0
    rows_N: Tensor | None = None
    """Indices of the directions that are penalised; None: all."""
    frozen_GD: Tensor | None = None
    """Directions that are no longer trained; only ever a neighbour."""
    x_BD: Tensor | None = None
    """The batch, scaled."""
    state: dict[str, Tensor] = field(default_factory=dict)
    """What a penalty keeps from step to step; it is part of checkpoints."""


def fold_sign(c: Tensor, signed: bool) -> Tensor:
    """Return the part of a cosine that is penalised: max(c, 0) if signed, else |c|."""
    return c.clamp(min=0) if signed else c.abs()


class _AllPairs(Function):
    """sum_{i<j} phi(c_ij) of unit rows (F, D); the gradient is built in the forward, tile by tile."""

    @staticmethod
    def forward(ctx: Any, unit_FD: Tensor, settings: OrthogonalityConfig) -> Tensor:  # type: ignore[override]
        phi = PHI[settings.phi]
        total = unit_FD.new_zeros(())
        grad_FD = torch.zeros_like(unit_FD)
        for start in range(0, len(unit_FD), settings.tile):
            rows = unit_FD[start : start + settings.tile]
            with torch.enable_grad():
                c = (rows.detach() @ unit_FD.detach().T).requires_grad_()
                values = phi(fold_sign(c, settings.signed), settings)
                diagonal = torch.arange(len(rows), device=c.device)
                mask = torch.ones_like(c)
                mask[diagonal, diagonal + start] = 0
                tile_total = (values * mask).sum() / 2
            (slope,) = torch.autograd.grad(tile_total, c)
            total += tile_total.detach()
            # each unordered pair is met twice, once from either side, so the row side alone carries the whole gradient
            grad_FD[start : start + settings.tile] += 2 * slope @ unit_FD
        ctx.save_for_backward(grad_FD)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.saved_tensors[0] * upstream, None


def all_pairs(directions: Directions, settings: OrthogonalityConfig) -> Tensor:
    """mean_{i<j} phi(c_ij), a scalar. Cost F^2 D a step, memory tile * F."""
    F = len(directions.W_FD)
    return _AllPairs.apply(normalize(directions.W_FD, dim=-1), settings) / max(F * (F - 1) / 2, 1)


@torch.no_grad()
def nearest_candidates(unit_FD: Tensor, settings: OrthogonalityConfig) -> Tensor:
    """Return the indices (F, 2) of each direction's nearest others by (absolute) cosine; (2, 1) for two directions."""
    found = []
    for start in range(0, len(unit_FD), settings.tile):
        c = unit_FD[start : start + settings.tile] @ unit_FD.T
        if not settings.signed:
            c = c.abs()
        c.diagonal(start).fill_(-2)
        found.append(c.topk(min(CANDIDATES, len(unit_FD) - 1), dim=1).indices)
    return torch.cat(found)


def nearest_cosines(unit_FD: Tensor, settings: OrthogonalityConfig) -> Tensor:
    """Return max_{j != i} of the penalised cosine for each direction (F,).

    The search may run in bf16 under autocast (then a neighbour within 2^-8 of the nearest may take its place); the
    cosines are computed anew in full precision for gradients in O(F D), which reach both ends of a pair. Two tied
    neighbours share the gradient equally.
    """
    neighbours = nearest_candidates(unit_FD, settings)
    F, candidates = neighbours.shape
    others = unit_FD.index_select(0, neighbours.flatten()).view(F, candidates, -1)
    with torch.autocast(unit_FD.device.type, enabled=False):
        c = torch.einsum("fd,fcd->fc", unit_FD, others)
    return fold_sign(c, settings.signed).amax(1)


def nearest(directions: Directions, settings: OrthogonalityConfig) -> Tensor:
    """mean_i phi(max_{j != i} c_ij), a scalar. Cost F^2 D forward, F D backward, memory tile * F."""
    if len(directions.W_FD) < 2:
        return directions.W_FD.new_zeros(())
    return PHI[settings.phi](nearest_cosines(normalize(directions.W_FD, dim=-1), settings), settings).mean()


def chunked(directions: Directions, settings: OrthogonalityConfig) -> Tensor:
    """`nearest` inside ceil(F / chunk) random parts of equal size, drawn anew from the step's seed; a scalar.

    The same parts serve every member. F modulo the number of parts directions sit out a step. Cost F chunk D.
    """
    W_FD, F = directions.W_FD, len(directions.W_FD)
    parts = -(-F // settings.chunk)
    if parts == 1:
        return nearest(directions, settings)
    order = torch.randperm(F, generator=torch.Generator().manual_seed(directions.seed))
    drawn = order[: F - F % parts].to(W_FD.device, non_blocking=True).view(parts, -1)
    return torch.stack([nearest(Directions(W_FD[part]), settings) for part in drawn]).mean()


ORTHOGONALITY: dict[str, Callable[[Directions, OrthogonalityConfig], Tensor] | None] = {
    "none": None,
    "all_pairs": all_pairs,
    "nearest": nearest,
    "chunked": chunked,
}
