"""A stack: K sparse autoencoders of equal shape whose parameters share a leading member axis."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_cli.config.schema import Config, SAEConfig
from sae_cli.dictionary.artifact import SAE
from sae_cli.dictionary.nonlinearities import NONLINEARITIES
from sae_cli.dictionary.nonlinearities.base import Nonlinearity
from sae_cli.randomness import derive_seed
from sae_cli.sparse.functions import Encode, low


@dataclass
class SAEStack:
    """Parameters in fp32; the input is scaled so that E||x||^2 = D."""

    settings: Sequence[SAEConfig]
    """Of each member; only per-member keys differ."""
    W_enc_KDF: Tensor
    b_enc_KF: Tensor
    W_dec_KFD: Tensor
    b_dec_KD: Tensor
    learned_KF: dict[str, Tensor]
    """What the nonlinearity learns beside b_enc."""
    buffers_KF: dict[str, Tensor]
    """What the nonlinearity keeps without a gradient."""
    centre_KD: Tensor | None = None
    """What encoders take off x; None: b_dec. Where latents are trained in stages it is the first stage's b_dec."""

    @classmethod
    def initialise(
        cls, configs: Sequence[Config], mean_D: Tensor, device: str, rows_ND: Tensor | Callable[[int], Tensor]
    ) -> "SAEStack":
        """Return a stack with one member per configuration, each drawn from its own seed alone.

        Directions are unit rows, random or taken from scaled inputs (N, D) with probability proportional to
        ||x - b_dec||^2 (a function gives those of a member by its index); encoder rows are the same scaled by
        `sae.encoder_scale`; the decoder bias is the mean (D,) of the scaled data or 0.
        """
        sae = configs[0].sae
        b_dec_D = mean_D.float().cpu() if sae.decoder_bias_init == "mean" else torch.zeros(len(mean_D))
        members = []
        for index, config in enumerate(configs):
            generator = torch.Generator().manual_seed(derive_seed(config.seed, "init"))
            if sae.decoder_init == "data":
                inputs_ND = rows_ND(index) if callable(rows_ND) else rows_ND
                offsets_ND = inputs_ND.float().cpu() - b_dec_D
                chances_N = offsets_ND.square().sum(1).double()
                rows = torch.multinomial(chances_N, sae.latents, sae.latents > len(chances_N), generator=generator)
                W_dec_FD = normalize(offsets_ND[rows], dim=1)
            else:
                W_dec_FD = normalize(torch.randn(sae.latents, len(mean_D), generator=generator), dim=1)
            b_enc_F = torch.full((sae.latents,), config.sae.bias_init)
            members.append((sae.encoder_scale * W_dec_FD.T, b_enc_F, W_dec_FD, b_dec_D))
        stacked = [torch.stack(tensors).contiguous().to(device) for tensors in zip(*members, strict=True)]
        nonlinearity = NONLINEARITIES[sae.nonlinearity]
        started = [nonlinearity.start(config.sae) for config in configs]

        def vectors(names: Sequence[str]) -> dict[str, Tensor]:
            values = {name: torch.tensor([start[name] for start in started], device=device) for name in names}
            return {name: value_K.unsqueeze(1).repeat(1, sae.latents) for name, value_K in values.items()}

        settings = [config.sae for config in configs]
        W_enc_KDF, b_enc_KF, W_dec_KFD, b_dec_KD = stacked
        learned_KF, buffers_KF = vectors(nonlinearity.learned), vectors(nonlinearity.buffers)
        return cls(settings, W_enc_KDF, b_enc_KF, W_dec_KFD, b_dec_KD, learned_KF, buffers_KF)

    @property
    def nonlinearity(self) -> Nonlinearity:
        """The members' nonlinearity."""
        return NONLINEARITIES[self.settings[0].nonlinearity]

    @property
    def members(self) -> int:
        """Number of members K."""
        return len(self.b_enc_KF)

    def state(self) -> dict[str, Tensor]:
        """Return the parameters and the buffers by name."""
        return {
            "W_enc_KDF": self.W_enc_KDF,
            "b_enc_KF": self.b_enc_KF,
            "W_dec_KFD": self.W_dec_KFD,
            "b_dec_KD": self.b_dec_KD,
            **{f"{name}_KF": tensor for name, tensor in (self.learned_KF | self.buffers_KF).items()},
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return the trained parameters by name.

        An artefact centres x by the sum of the stages' b_dec. A stage that is centred elsewhere therefore trains its
        b_dec only if the nonlinearity lets the difference be folded into b_enc.
        """
        fixed = {f"{name}_KF" for name in self.buffers_KF}
        if self.centre_KD is not None and not self.nonlinearity.additive:
            fixed.add("b_dec_KD")
        if self.settings[0].freeze_decoder:
            fixed.add("W_dec_KFD")
        return {name: tensor for name, tensor in self.state().items() if name not in fixed}

    def part(self, members: slice) -> "SAEStack":
        """Return some members as a stack of leaves that share this stack's storage and require gradients."""

        def leaf(tensor: Tensor) -> Tensor:
            return tensor[members].detach().requires_grad_()

        return SAEStack(
            self.settings[members],
            leaf(self.W_enc_KDF),
            leaf(self.b_enc_KF),
            leaf(self.W_dec_KFD),
            leaf(self.b_dec_KD),
            {name: leaf(tensor) for name, tensor in self.learned_KF.items()},
            {name: tensor[members] for name, tensor in self.buffers_KF.items()},
            None if self.centre_KD is None else self.centre_KD[members],
        )

    def freeze(self) -> "SAEStack":
        """Return this stack as the first stage, by whose b_dec all stages are centred."""
        return replace(self, centre_KD=self.b_dec_KD.clone())

    @torch.no_grad()
    def join(self, later: "SAEStack") -> "SAEStack":
        """Return the stack of this one's latents and those of a later stage, which reconstructs what this one leaves.

        Decoder biases add; k adds, too.
        """

        def together(name: str, tensor: Tensor) -> Tensor:
            return torch.cat([tensor, later.state()[name]], dim=2 if name == "W_enc_KDF" else 1)

        return SAEStack(
            [
                replace(one, latents=one.latents + other.latents, k=one.k + other.k)
                for one, other in zip(self.settings, later.settings, strict=True)
            ],
            together("W_enc_KDF", self.W_enc_KDF),
            together("b_enc_KF", self.b_enc_KF),
            together("W_dec_KFD", self.W_dec_KFD),
            self.b_dec_KD + later.b_dec_KD,
            {name: together(f"{name}_KF", tensor) for name, tensor in self.learned_KF.items()},
            {name: together(f"{name}_KF", tensor) for name, tensor in self.buffers_KF.items()},
            self.centre_KD,
        )

    def parameters(self) -> dict[str, Tensor]:
        """Return what the nonlinearity reads, (K, 1, F) by name."""
        vectors = {"b_enc": self.b_enc_KF, **self.learned_KF, **self.buffers_KF}
        return {name: tensor.unsqueeze(1) for name, tensor in vectors.items()}

    @property
    def encoder_centre_KD(self) -> Tensor:
        """What encoders take off x."""
        return self.b_dec_KD if self.centre_KD is None else self.centre_KD

    @torch.no_grad()
    def centred(self, x_BD: Tensor) -> Tensor:
        """Return what encoders multiply (K, B, D), in the precision of products.

        The centre is taken off in fp32 before: it is a large part of x, which low precision cancels badly.
        """
        return low(x_BD - self.encoder_centre_KD.unsqueeze(1))

    def pre_activations(self, x_KBD: Tensor, columns: Tensor | None = None) -> Tensor:
        """Return m (K, B, F), without the encoder bias, of centred activations; with `columns` of these alone."""
        W_enc_KDF = self.W_enc_KDF if columns is None else self.W_enc_KDF[..., columns]
        return Encode.apply(x_KBD, self.encoder_centre_KD, W_enc_KDF)

    def latents(self, m_KBF: Tensor) -> Tensor:
        """Return the latents (K, B, F) of pre-activations, as in training."""
        return self.nonlinearity.latents(m_KBF, self.parameters(), self.settings)

    def encode(self, x_BD: Tensor) -> Tensor:
        """Return latents (K, B, F) of scaled activations (B, D), as in training."""
        return self.latents(self.pre_activations(self.centred(x_BD)))

    @torch.no_grad()
    def infer(self, x_BD: Tensor) -> Tensor:
        """Return latents (K, B, F) of scaled activations (B, D), as of an artefact."""
        parameters = self.parameters()
        stored = {"b_enc": parameters["b_enc"], **self.nonlinearity.store(parameters)}
        return self.nonlinearity.infer(self.pre_activations(self.centred(x_BD)), stored, self.settings[0].k)

    def decode(self, acts_KBF: Tensor) -> Tensor:
        """Return reconstructions (K, B, D), scaled."""
        return acts_KBF @ self.W_dec_KFD + self.b_dec_KD.unsqueeze(1)

    @torch.no_grad()
    def member(self, index: int, scale: float, metadata: dict[str, object]) -> SAE:
        """Return one member as an SAE that acts on raw activations."""
        parameters = {name: tensor[index, 0] for name, tensor in self.parameters().items()}
        stored = {name: tensor.detach().cpu().clone() for name, tensor in self.nonlinearity.store(parameters).items()}
        folded = {
            name.replace("K", ""): getattr(self, name)[index].detach().cpu().clone()
            for name in ("W_enc_KDF", "b_enc_KF", "W_dec_KFD", "b_dec_KD")
        }
        if self.centre_KD is not None:
            shift_D = self.b_dec_KD[index] - self.centre_KD[index]
            folded["b_enc_F"] += (shift_D @ self.W_enc_KDF[index]).cpu()
        sae = self.settings[index]
        return SAE.fold(sae.nonlinearity, sae.k, scale, stored, metadata, sae.input_norm, **folded)
