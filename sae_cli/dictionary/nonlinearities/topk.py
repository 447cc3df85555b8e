"""TopK (arXiv 2406.04093) and BatchTopK (arXiv 2412.06410): the largest pre-activations fire, L0 is k."""

import torch
from torch import Tensor

from sae_cli.config.schema import SAEConfig
from sae_cli.dictionary.nonlinearities.base import Nonlinearity, Parameters, Settings, keep_where_positive

DECAY = 0.99
"""Decay per step of the running mean of the smallest kept value."""


class TopK(Nonlinearity):
    """The k largest of max(m + b, 0) in each row, with the ordinary gradient."""

    sparse_by_itself = True

    def latents(self, m: Tensor, P: Parameters, settings: Settings) -> Tensor:
        """Return z = max(m + b, 0) where it is among its row's k largest, else 0."""
        z = torch.relu(m + P["b_enc"].to(m.dtype))
        ks = [min(sae.k, z.shape[-1]) for sae in settings]
        largest, places = z.topk(max(ks), dim=-1)
        if min(ks) < max(ks):
            rank = torch.arange(max(ks), device=z.device)
            largest = largest * (rank < torch.tensor(ks, device=z.device).view(-1, 1, 1))
        return torch.zeros_like(z).scatter(-1, places, largest)


class BatchTopK(Nonlinearity):
    """The k B largest of max(m + b, 0) in a batch of B rows, with the ordinary gradient.

    An artefact has a threshold instead: the running mean of the smallest value kept in training.
    """

    buffers = ("threshold",)
    stored = ("threshold",)
    sparse_by_itself = True

    def start(self, settings: SAEConfig) -> dict[str, float]:
        """Return a threshold that no step has observed yet."""
        return {"threshold": -1.0}

    def latents(self, m: Tensor, P: Parameters, settings: Settings) -> Tensor:
        """Return z = max(m + b, 0) where it is among the batch's k B largest, else 0; ties at the cut all fire."""
        z = torch.relu(m + P["b_enc"].to(m.dtype))
        cuts = [cut(values.detach(), sae.k * z.shape[-2]) for values, sae in zip(z, settings, strict=True)]
        # one step of the number format below the cut, so that the cut itself passes
        below = torch.nextafter(torch.stack(cuts).view(-1, 1, 1), z.new_tensor(-1.0))
        return keep_where_positive(z, z - below.clamp(min=0))

    @torch.no_grad()
    def observe(self, acts: Tensor, P: Parameters) -> None:
        """Move the threshold towards the smallest latent that fired; the first step sets it."""
        smallest = torch.where(acts > 0, acts, torch.inf).float().amin((-2, -1)).view(-1, 1, 1)
        threshold = P["threshold"]
        moved = torch.where(threshold < 0, smallest, torch.lerp(smallest, threshold, DECAY))
        threshold.copy_(torch.where(smallest.isfinite(), moved, threshold))

    def infer(self, m: Tensor, P: Parameters, k: int) -> Tensor:
        """Return z where it is at least the threshold, else 0."""
        z = torch.relu(m + P["b_enc"])
        return torch.where(z >= P["threshold"], z, 0)


def cut(z_BF: Tensor, count: int) -> Tensor:
    """Return the count-th largest of all values, a scalar."""
    values = z_BF.flatten()
    return values.kthvalue(len(values) - min(count, len(values)) + 1).values
