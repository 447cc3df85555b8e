"""The strongest and a random sample of each latent's activations, with their surroundings, kept in one pass."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sae_cli.randomness import derive_seed


@dataclass
class Found:
    """Examples (K, L) of L latents, best first; what is beyond a latent's last example has the score 0."""

    score_KL: Tensor
    context_KL: Tensor
    position_KL: Tensor
    window_KLW: Tensor
    """Activations from `before` tokens before the position to `after` tokens after it; 0 outside the context."""


class Examples:
    """The K contexts with the largest scores of each latent, each at the position of its largest score.

    Exact: a score decides, equal ones go to the earlier context and position, however the contexts are batched.
    Memory K * L * (before + after + 4) numbers, on the device.
    """

    def __init__(self, latents: int, count: int, before: int, after: int, device: str | torch.device) -> None:
        self.offset_W = torch.arange(-before, after + 1, device=device)
        zero_KL = torch.zeros(count, latents, device=device)
        window_KLW = torch.zeros(count, latents, len(self.offset_W), device=device)
        self.found = Found(zero_KL, zero_KL.long(), zero_KL.long(), window_KLW)

    def add(self, score_CTL: Tensor, acts_CTL: Tensor, context_C: Tensor) -> None:
        """Take the contexts that follow; scores are not negative, 0 is no example."""
        old, (count, _) = self.found, self.found.score_KL.shape
        score_CL, position_CL = score_CTL.max(dim=1)
        # Stable, and what is kept comes from earlier contexts: of equal scores the earliest stays.
        score_ML, order_ML = torch.cat([old.score_KL, score_CL]).sort(dim=0, descending=True, stable=True)
        order_KL = order_ML[:count]
        context_CL = context_C[:, None].expand_as(position_CL)
        context_KL = torch.cat([old.context_KL, context_CL]).gather(0, order_KL)
        position_KL = torch.cat([old.position_KL, position_CL]).gather(0, order_KL)
        window_KLW = old.window_KLW.gather(0, order_KL.clamp(max=count - 1)[:, :, None].expand_as(old.window_KLW))
        k_N, l_N = (order_KL >= count).nonzero(as_tuple=True)
        t_NW = position_KL[k_N, l_N, None] + self.offset_W
        length = acts_CTL.shape[1]
        new_NW = acts_CTL[order_KL[k_N, l_N, None] - count, t_NW.clamp(0, length - 1), l_N[:, None]]
        window_KLW[k_N, l_N] = new_NW * ((t_NW >= 0) & (t_NW < length))
        self.found = Found(score_ML[:count], context_KL, position_KL, window_KLW)


class Statistics:
    """How often and how strongly each latent fires, and the histogram of its activations."""

    def __init__(self, latents: int, edges: Tensor, device: str | torch.device) -> None:
        self.edges = edges.to(device)
        self.rows = 0
        self.fired_L = torch.zeros(latents, dtype=torch.int64, device=device)
        self.sum_L = torch.zeros(latents, dtype=torch.float64, device=device)
        self.counts_LH = torch.zeros(latents, len(edges) - 1, dtype=torch.int64, device=device)
        """Firings by size; those beyond the edges count in the first and the last bin."""

    def add(self, acts_NL: Tensor) -> None:
        """Take rows that follow."""
        bins = self.counts_LH.shape[1]
        row_M, latent_M = acts_NL.nonzero(as_tuple=True)
        value_M = acts_NL[row_M, latent_M]
        self.rows += len(acts_NL)
        self.fired_L += latent_M.bincount(minlength=len(self.fired_L))
        self.sum_L += latent_M.bincount(value_M.double(), minlength=len(self.fired_L))
        bin_M = (torch.bucketize(value_M.abs(), self.edges, right=True) - 1).clamp(0, bins - 1)
        self.counts_LH += (latent_M * bins + bin_M).bincount(minlength=self.counts_LH.numel()).view_as(self.counts_LH)


def sample_keys(acts_CTL: Tensor, context_C: Tensor, seed: int) -> Tensor:
    """Return random scores in (0, 1] of firing tokens, 0 elsewhere: the largest ones are a uniform sample.

    A pure function of the seed, the context's number and the shape of a context, not of the batch.
    """
    key_CTL = torch.empty_like(acts_CTL)
    generator = torch.Generator(acts_CTL.device)
    for key_TL, context in zip(key_CTL, context_C.tolist(), strict=True):
        generator.manual_seed(derive_seed(seed, "examples", context))
        key_TL.uniform_(1e-7, 1, generator=generator)
    return key_CTL * (acts_CTL != 0)
