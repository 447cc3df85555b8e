"""Small SAEs with known behaviour."""

import torch
from torch import Tensor

from sae_cli.dictionary.artifact import SAE


def identity_sae(width: int) -> SAE:
    """x = relu(x) - relu(-x): 2 width latents reconstruct everything."""
    eye = torch.eye(width)
    W_dec_FD = torch.cat([eye, -eye])
    return SAE("relu", W_dec_FD.T.clone(), torch.zeros(2 * width), W_dec_FD, torch.zeros(width))


def random_sae(width: int, latents: int, dtype: torch.dtype = torch.float64) -> SAE:
    generator = torch.Generator().manual_seed(1)
    W_dec_FD = torch.randn(latents, width, generator=generator, dtype=dtype)
    bias_F = torch.randn(latents, generator=generator, dtype=dtype)
    return SAE("relu", W_dec_FD.T * 0.2, bias_F, W_dec_FD, torch.randn(width, generator=generator, dtype=dtype))


def zero_sae(width: int, value: Tensor | None = None) -> SAE:
    """An SAE without active latents: it gives `value`, or zero, everywhere."""
    offset = torch.zeros(width) if value is None else value
    return SAE("prolu_ste", torch.zeros(width, 3), torch.zeros(3), torch.zeros(3, width), offset)
