"""The gated SAE (arXiv 2404.16014): one pre-activation opens the gate, another gives the magnitude."""

import torch
from torch import Tensor

from sae_cli.config.schema import SAEConfig
from sae_cli.dictionary.nonlinearities.base import Nonlinearity, Parameters, Settings, keep_where_positive


class Gated(Nonlinearity):
    """1[m + b_enc > 0] max(exp(r_mag) m + b_mag, 0).

    The sparsity penalty falls on max(m + b_enc, 0), which must also reconstruct x through the detached decoder: this
    is where the gate gets its gradient.
    """

    learned = ("r_mag", "b_mag")
    stored = ("r_mag", "b_mag")
    additive = False
    has_auxiliary = True

    def start(self, settings: SAEConfig) -> dict[str, float]:
        """Return magnitudes equal to the gate's pre-activation."""
        return {"r_mag": 0.0, "b_mag": settings.bias_init}

    def latents(self, m: Tensor, P: Parameters, settings: Settings) -> Tensor:
        return keep_where_positive(self.revived(m, P), self.margin(m, P).detach())

    def revived(self, m: Tensor, P: Parameters) -> Tensor:
        return torch.relu(P["r_mag"].exp().to(m.dtype) * m + P["b_mag"].to(m.dtype))

    def penalised(self, m: Tensor, acts: Tensor, P: Parameters) -> Tensor:
        return torch.relu(self.margin(m, P))

    def auxiliary(self, m: Tensor, P: Parameters) -> Tensor:
        return self.penalised(m, m, P)
