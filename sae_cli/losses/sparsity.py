"""Sparsity penalties P(f): elementwise functions whose values are summed over latents and averaged over the batch."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.autograd import Function

from sae_cli.config.schema import SparsityConfig

Margin = Callable[[], Tensor]
"""Gives how far each gate is open, with gradients for what sets the gates only."""


def row_sums(values_KBF: Tensor) -> Tensor:
    """Return the sum over rows (K, F) in fp32 by a product, which low precision runs fastest."""
    ones = values_KBF.new_ones(len(values_KBF), 1, values_KBF.shape[1])
    return (ones @ values_KBF).squeeze(1).float()


def none(values: Tensor, margin: Margin, settings: SparsityConfig) -> Tensor:
    """0."""
    return values.detach() * 0


def l1(values: Tensor, margin: Margin, settings: SparsityConfig) -> Tensor:
    """f."""
    return values


def sqrt_l1(values: Tensor, margin: Margin, settings: SparsityConfig) -> Tensor:
    """(f + epsilon)^(1/2). Silent latents get no gradient through the nonlinearity."""
    return (values + settings.epsilon).sqrt()


def lp(values: Tensor, margin: Margin, settings: SparsityConfig) -> Tensor:
    """(f + epsilon)^p with p = exponent."""
    return (values + settings.epsilon) ** settings.exponent


def tanh(values: Tensor, margin: Margin, settings: SparsityConfig) -> Tensor:
    """tanh(c f) with c = scale."""
    return (settings.scale * values).tanh()


class _Step(Function):
    """1[margin > 0]; its derivative is a rectangle of width eps and height 1 / eps (arXiv 2407.14435)."""

    @staticmethod
    def forward(ctx: Any, margin: Tensor, bandwidth: float) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(margin)
        ctx.bandwidth = bandwidth
        return (margin > 0).to(margin.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (margin,) = ctx.saved_tensors
        return g * (margin.abs() < ctx.bandwidth / 2) / ctx.bandwidth, None


def l0(values: Tensor, margin: Margin, settings: SparsityConfig) -> Tensor:
    """1[f > 0], whose gradient reaches biases and thresholds alone, through a rectangle of width bandwidth."""
    return _Step.apply(margin(), settings.bandwidth)


SPARSITY: dict[str, Callable[[Tensor, Margin, SparsityConfig], Tensor]] = {
    "none": none,
    "l1": l1,
    "sqrt_l1": sqrt_l1,
    "lp": lp,
    "tanh": tanh,
    "l0": l0,
}
