"""What a training step has to do at least: products, and bytes to and from memory."""

from dataclasses import dataclass
from typing import Self

ADAM_BYTES = 32
"""Per parameter, in fp32: weight, gradient and two moments are read; gradient, weight and moments are written."""


@dataclass(frozen=True)
class Work:
    """Of one member's step on B rows of width D with F latents."""

    flops: float
    """Of the dense products."""
    entry_bytes: float
    """Of rows (D) that are read for each latent that fires: W_dec twice, and x and the error, by the four products
    over these latents. Most come from a processor's caches."""
    latent_bytes: float
    """Of (B, F) tensors: each is written once and read once."""
    parameter_bytes: float
    """Of weights, gradients and Adam's moments."""

    @classmethod
    def of(cls, B: int, D: int, F: int, l0: float, narrow: bool, sparse: bool) -> Self:
        """Return the work in bf16 (`narrow`) or fp32, by the latents that fire (`sparse`) or all of them.

        By all of them there are five products, and m, f and the gradients of both; else one product and m.
        """
        item = 2 if narrow else 4
        parameters = 2 * D * F + F + D
        return cls(
            flops=(2 if sparse else 10) * B * D * F,
            entry_bytes=4 * B * l0 * D * item if sparse else 0.0,
            latent_bytes=(2 if sparse else 8) * B * F * item,
            parameter_bytes=ADAM_BYTES * parameters,
        )
