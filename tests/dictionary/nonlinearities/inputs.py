"""Random inputs of nonlinearities, and a call with settings."""

import torch
from torch import Tensor

from sae_cli.config.schema import SAEConfig
from sae_cli.dictionary.nonlinearities import NONLINEARITIES


def inputs(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return m (K, B, F), b (K, 1, F) and an upstream gradient (K, B, F)."""
    generator = torch.Generator().manual_seed(seed)
    m = torch.randn(3, 40, 17, generator=generator, dtype=dtype)
    b = torch.randn(3, 1, 17, generator=generator, dtype=dtype)
    return m, b, torch.randn(3, 40, 17, generator=generator, dtype=dtype)


def parameters(name: str, b: Tensor, seed: int = 1) -> dict[str, Tensor]:
    """Return b and random values of what the nonlinearity has beside it; thresholds are above 0."""
    generator = torch.Generator().manual_seed(seed)
    nonlinearity = NONLINEARITIES[name]
    values = {"b_enc": b}
    for key in (*nonlinearity.learned, *nonlinearity.buffers):
        values[key] = torch.randn(b.shape, generator=generator, dtype=b.dtype)
        values[key] = values[key].abs() if key in nonlinearity.buffers else values[key]
    return values


def latents(name: str, m: Tensor, P: dict[str, Tensor], ks: tuple[int, ...] = (4, 4, 4), **settings) -> Tensor:
    """Return the latents of members that share settings and may differ in k."""
    members = [SAEConfig(nonlinearity=name, k=k, **settings) for k in ks[: len(m)]]
    return NONLINEARITIES[name].latents(m, P, members)
