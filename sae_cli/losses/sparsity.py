"""Sparsity penalties P(f): sum over latents, mean over the batch."""

from collections.abc import Callable

import torch
from torch import Tensor

from sae_cli.config.schema import SparsityConfig


def l1(acts_KBF: Tensor, settings: SparsityConfig) -> Tensor:
    """mean_B sum_F f, per member (K,)."""
    return acts_KBF.sum((1, 2), dtype=torch.float32) / acts_KBF.shape[1]


def sqrt_l1(acts_KBF: Tensor, settings: SparsityConfig) -> Tensor:
    """mean_B sum_F (f + epsilon)^(1/2), per member (K,). Silent latents get no gradient through the nonlinearity."""
    return (acts_KBF + settings.epsilon).sqrt().sum((1, 2), dtype=torch.float32) / acts_KBF.shape[1]


SPARSITY: dict[str, Callable[[Tensor, SparsityConfig], Tensor]] = {"l1": l1, "sqrt_l1": sqrt_l1}
