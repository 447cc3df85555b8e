"""How far directions are made of common parts: a small SAE trained on the directions themselves (a meta-SAE)."""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_cli.randomness import derive_seed

RATIO = 4
"""Directions per meta-latent."""
K = 4
"""Active meta-latents per direction."""
BATCH = 256
EPOCHS = 30
STEPS = 300
"""Least number of steps."""
LR = 5e-3
FEWEST = 16
"""Directions below which a meta-SAE says nothing."""


def composition(W_FD: Tensor, alive_F: Tensor, seed: int = 0) -> dict[str, float | int | None]:
    """Return the `composition` section (docs/eval-format.md); alive_F is a bool mask.

    random_ev is the floor that a quarter as many meta-latents reach on anything. A pure function on one device.
    """
    unit_ND = normalize(W_FD[alive_F].float(), dim=1)
    count, width = unit_ND.shape
    latents = max(count // RATIO, 1)
    section: dict[str, float | int | None] = {"ev": None, "random_ev": None, "latents": latents, "k": K, "count": count}
    if count < FEWEST:
        return section
    generator = torch.Generator().manual_seed(derive_seed(seed, "composition", "random"))
    random_ND = normalize(torch.randn(count, width, generator=generator), dim=1).to(unit_ND)
    return section | {"ev": meta_ev(unit_ND, latents, seed), "random_ev": meta_ev(random_ND, latents, seed)}


def meta_ev(unit_ND: Tensor, latents: int, seed: int) -> float:
    """Train a BatchTopK SAE (M latents) on the rows (N, D) and return its explained variance of them.

    w_hat = f W_dec + mean, f the k B largest of relu((w - mean) W_enc + b) in a batch. Decoder rows are unit and begin
    at rows of the data; Adam, learning rate falling to 0. Only chosen pairs carry gradient, so that a step costs one
    product B M D.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "composition"))
    mean_D = unit_ND.mean(0)
    x_ND = unit_ND - mean_D
    count = len(x_ND)
    with torch.enable_grad():
        start = torch.randperm(count, generator=generator)[:latents].to(x_ND.device)
        W_dec_MD = normalize(x_ND[start], dim=1).requires_grad_()
        W_enc_MD = W_dec_MD.detach().clone().requires_grad_()
        b_enc_M = torch.zeros(latents, device=x_ND.device, requires_grad=True)
        parameters = (W_dec_MD, W_enc_MD, b_enc_M)
        optimiser = torch.optim.Adam(parameters, lr=LR)
        steps = max(STEPS, EPOCHS * math.ceil(count / BATCH))
        decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
        for _ in range(steps):
            batch = torch.randperm(count, generator=generator)[:BATCH].to(x_ND.device)
            x_BD = x_ND[batch]
            loss = (x_BD - _reconstruct(x_BD, *parameters)).square().sum(1).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            decay.step()
            with torch.no_grad():
                W_dec_MD.copy_(normalize(W_dec_MD, dim=1))
    with torch.no_grad():
        order = torch.randperm(count, generator=generator).to(x_ND.device)
        error = sum(
            float((x_BD - _reconstruct(x_BD, *parameters)).square().sum(dtype=torch.float64))
            for x_BD in x_ND[order].split(BATCH)
        )
    return 1 - error / float(x_ND.square().sum(dtype=torch.float64))


def _reconstruct(x_BD: Tensor, W_dec_MD: Tensor, W_enc_MD: Tensor, b_enc_M: Tensor) -> Tensor:
    """Return the reconstruction of centred rows from the k B largest pre-activations of the batch."""
    with torch.no_grad():
        pre_BM = x_BD @ W_enc_MD.T + b_enc_M
        chosen = pre_BM.flatten().topk(min(K * len(x_BD), pre_BM.numel()), sorted=False).indices
    row, latent = chosen // len(W_dec_MD), chosen % len(W_dec_MD)
    value = ((x_BD[row] * W_enc_MD[latent]).sum(1) + b_enc_M[latent]).relu()
    return torch.zeros_like(x_BD).index_add(0, row, value[:, None] * W_dec_MD[latent])
