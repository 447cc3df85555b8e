"""Sparsity penalties P(f): sum over latents, mean over the batch."""

from collections.abc import Callable

import torch
from torch import Tensor

from sae_cli.config.schema import SparsityConfig


def batch_mean(values_KBF: Tensor) -> Tensor:
    """Return mean_B sum_F per member (K,) in fp32; rows are summed by a product, which low precision runs fastest."""
    ones = values_KBF.new_ones(len(values_KBF), 1, values_KBF.shape[1])
    return (ones @ values_KBF).sum((1, 2), dtype=torch.float32) / values_KBF.shape[1]


def l1(acts_KBF: Tensor, settings: SparsityConfig) -> Tensor:
    """mean_B sum_F f, per member (K,)."""
    return batch_mean(acts_KBF)


def sqrt_l1(acts_KBF: Tensor, settings: SparsityConfig) -> Tensor:
    """mean_B sum_F (f + epsilon)^(1/2), per member (K,). Silent latents get no gradient through the nonlinearity."""
    return batch_mean((acts_KBF + settings.epsilon).sqrt())


SPARSITY: dict[str, Callable[[Tensor, SparsityConfig], Tensor]] = {"l1": l1, "sqrt_l1": sqrt_l1}
