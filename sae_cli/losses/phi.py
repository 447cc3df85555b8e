"""Functions phi of a cosine c >= 0 that orthogonality penalties average, and what of a cosine they see."""

from collections.abc import Callable

import torch
from torch import Tensor

from sae_cli.config.schema import OrthogonalityConfig

BARRIER_LIMIT = 1 - 1e-6


def square(c: Tensor, settings: OrthogonalityConfig) -> Tensor:
    """c^2."""
    return c * c


def absolute(c: Tensor, settings: OrthogonalityConfig) -> Tensor:
    """|c|; its gradient does not fade near orthogonality."""
    return c


def power(c: Tensor, settings: OrthogonalityConfig) -> Tensor:
    """c^p with p = exponent."""
    return c.clamp(min=1e-12) ** settings.exponent


def exponential(c: Tensor, settings: OrthogonalityConfig) -> Tensor:
    """(e^(kc) - 1) / (e^k - 1) with k = exponent."""
    rate = torch.tensor(settings.exponent, dtype=c.dtype, device=c.device)
    return torch.expm1(rate * c) / torch.expm1(rate)


def logistic(c: Tensor, settings: OrthogonalityConfig) -> Tensor:
    """1 / (1 + e^(-k (c - c0))) with k = exponent, c0 = threshold; flat at duplicates for large k."""
    return torch.sigmoid(settings.exponent * (c - (settings.threshold or 0)))


def hinge(c: Tensor, settings: OrthogonalityConfig) -> Tensor:
    """max(0, c - tau)^2 with tau = threshold: cosines below tau are free."""
    return (c - (settings.threshold or 0)).clamp(min=0) ** 2


def barrier(c: Tensor, settings: OrthogonalityConfig) -> Tensor:
    """-log(1 - c^2): grows without bound towards a duplicate (c is cut at 1 - 1e-6)."""
    return -torch.log1p(-(c.clamp(max=BARRIER_LIMIT) ** 2))


PHI: dict[str, Callable[[Tensor, OrthogonalityConfig], Tensor]] = {
    "abs": absolute,
    "square": square,
    "power": power,
    "exponential": exponential,
    "logistic": logistic,
    "hinge": hinge,
    "barrier": barrier,
}


def penalised(c: Tensor, settings: OrthogonalityConfig) -> Tensor:
    """Return phi of cosines, elementwise: phi(min(max(c, 0), cap)) if signed, else phi(min(|c|, cap)).

    Latents are non-negative, so antipodes are harmless: signed is the default. Beyond the cap there is no gradient.
    """
    c = c.clamp(min=0) if settings.signed else c.abs()
    return PHI[settings.phi](c.clamp(max=settings.cap) if settings.cap < 1 else c, settings)
