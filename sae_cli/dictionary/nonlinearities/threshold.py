"""Gates at a threshold: TRec and TLin, whose threshold is fixed, and JumpReLU, which learns it."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from sae_cli.config.schema import SAEConfig
from sae_cli.dictionary.nonlinearities.base import Nonlinearity, Parameters, Settings, keep_where_positive, sum_rows


class TRec(Nonlinearity):
    """m 1[m > theta] with a fixed theta and no bias (zero-bias autoencoders, arXiv 1402.3337)."""

    buffers = ("threshold",)
    stored = ("threshold",)
    gates = ()
    resampled_norm = 1.0
    additive = False

    def start(self, settings: SAEConfig) -> dict[str, float]:
        return {"threshold": settings.theta}

    def latents(self, m: Tensor, P: Parameters, settings: Settings) -> Tensor:
        return keep_where_positive(m, self.margin(m, P))

    def offset(self, P: Parameters) -> Tensor:
        return -P["threshold"]

    def reach(self, settings: SAEConfig) -> float | None:
        return 0.0


class TLin(TRec):
    """m 1[m^2 > theta^2]: as TRec, on both sides of 0. Latents may be negative; penalties see their absolute value."""

    negative = True

    def margin(self, m: Tensor, P: Parameters) -> Tensor:
        return m.abs() - P["threshold"].to(m.dtype)

    def reach(self, settings: SAEConfig) -> None:
        """Return None: the margin is no sum."""

    def revived(self, m: Tensor, P: Parameters) -> Tensor:
        return m

    def penalised(self, m: Tensor, acts: Tensor, P: Parameters) -> Tensor:
        return acts.abs()


class _JumpReLU(Function):
    """z 1[z > theta]; dz = g 1[z > theta], dtheta = -(theta / eps) 1[|z - theta| < eps / 2] g, summed over rows."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, bandwidth: float) -> Tensor:  # type: ignore[override]
        f = keep_where_positive(z, z - theta.to(z.dtype))
        ctx.save_for_backward(z, f, theta)
        ctx.bandwidth = bandwidth
        return f

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        z, f, theta = ctx.saved_tensors
        near = keep_where_positive(g, ctx.bandwidth / 2 - (z - theta.to(z.dtype)).abs())
        return keep_where_positive(g, f), -theta / ctx.bandwidth * sum_rows(near), None


class JumpReLU(Nonlinearity):
    """z 1[z > theta] with z = m + b and a learned theta > 0 (arXiv 2407.14435).

    log theta is learned, through a rectangle kernel of width `sae.bandwidth`.
    """

    learned = ("log_threshold",)
    stored = ("threshold",)
    gates = ("log_threshold",)
    resampled_norm = 1.0

    def start(self, settings: SAEConfig) -> dict[str, float]:
        return {"log_threshold": math.log(settings.theta)}

    def latents(self, m: Tensor, P: Parameters, settings: Settings) -> Tensor:
        return _JumpReLU.apply(m + P["b_enc"].to(m.dtype), P["log_threshold"].exp(), settings[0].bandwidth)

    def offset(self, P: Parameters) -> Tensor:
        return P["b_enc"] - P["log_threshold"].exp()

    def reach(self, settings: SAEConfig) -> float:
        """Return half the kernel's width: there theta has a gradient."""
        return settings.bandwidth / 2

    def revived(self, m: Tensor, P: Parameters) -> Tensor:
        return torch.relu(m + P["b_enc"].to(m.dtype))

    def store(self, P: Parameters) -> dict[str, Tensor]:
        return {"threshold": P["log_threshold"].exp()}

    def infer(self, m: Tensor, P: Parameters, k: int) -> Tensor:
        z = m + P["b_enc"]
        return torch.where(z > P["threshold"], z, 0)
