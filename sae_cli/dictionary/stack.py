"""A stack: K sparse autoencoders of equal shape whose parameters share a leading member axis."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_cli.config.schema import Config
from sae_cli.dictionary.artifact import SAE
from sae_cli.dictionary.nonlinearities import NONLINEARITIES
from sae_cli.randomness import derive_seed

NAMES = ("W_enc_KDF", "b_enc_KF", "W_dec_KFD", "b_dec_KD")


@dataclass
class SAEStack:
    """Parameters in fp32; the input is scaled so that E||x||^2 = D."""

    nonlinearity: str
    W_enc_KDF: Tensor
    b_enc_KF: Tensor
    W_dec_KFD: Tensor
    b_dec_KD: Tensor

    @classmethod
    def initialise(cls, configs: Sequence[Config], mean_D: Tensor, device: str, rows_ND: Tensor) -> "SAEStack":
        """Return a stack with one member per configuration, each drawn from its own seed alone.

        Directions are unit rows, random or taken from scaled inputs (N, D) with probability proportional to
        ||x - b_dec||^2; encoder rows are the same scaled by `sae.encoder_scale`; the decoder bias is the mean (D,) of
        the scaled data or 0.
        """
        sae = configs[0].sae
        b_dec_D = mean_D.float().cpu() if sae.decoder_bias_init == "mean" else torch.zeros(len(mean_D))
        members = []
        for config in configs:
            generator = torch.Generator().manual_seed(derive_seed(config.seed, "init"))
            if sae.decoder_init == "data":
                offsets_ND = rows_ND.float().cpu() - b_dec_D
                chances_N = offsets_ND.square().sum(1).double()
                rows = torch.multinomial(chances_N, sae.latents, sae.latents > len(chances_N), generator=generator)
                W_dec_FD = normalize(offsets_ND[rows], dim=1)
            else:
                W_dec_FD = normalize(torch.randn(sae.latents, len(mean_D), generator=generator), dim=1)
            b_enc_F = torch.full((sae.latents,), config.sae.bias_init)
            members.append((sae.encoder_scale * W_dec_FD.T, b_enc_F, W_dec_FD, b_dec_D))
        stacked = (torch.stack(tensors).contiguous().to(device) for tensors in zip(*members, strict=True))
        return cls(sae.nonlinearity, *stacked)

    @property
    def members(self) -> int:
        """Number of members K."""
        return len(self.b_enc_KF)

    def tensors(self) -> dict[str, Tensor]:
        """Return the parameters by name."""
        return {name: getattr(self, name) for name in NAMES}

    def part(self, members: slice) -> "SAEStack":
        """Return some members as a stack of leaves that share this stack's storage and require gradients."""
        leaves = (tensor[members].detach().requires_grad_() for tensor in self.tensors().values())
        return SAEStack(self.nonlinearity, *leaves)

    def encode(self, x_BD: Tensor) -> Tensor:
        """Return latents (K, B, F) of scaled activations (B, D)."""
        # b_dec is taken off in fp32 before the product: it is a large part of x, which low precision cancels badly.
        m_KBF = (x_BD - self.b_dec_KD.unsqueeze(1)) @ self.W_enc_KDF
        return NONLINEARITIES[self.nonlinearity](m_KBF, self.b_enc_KF.unsqueeze(1))

    def decode(self, acts_KBF: Tensor) -> Tensor:
        """Return reconstructions (K, B, D), scaled."""
        return acts_KBF @ self.W_dec_KFD + self.b_dec_KD.unsqueeze(1)

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Set every direction to unit norm."""
        self.W_dec_KFD /= self.W_dec_KFD.norm(dim=-1, keepdim=True).clamp(min=1e-12)

    def member(self, index: int, scale: float, metadata: dict[str, object]) -> SAE:
        """Return one member as an SAE that acts on raw activations."""
        folded = {
            name.replace("K", ""): tensor[index].detach().cpu().clone() for name, tensor in self.tensors().items()
        }
        return SAE.fold(self.nonlinearity, scale, metadata, **folded)
