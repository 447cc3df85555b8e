"""A stack: K sparse autoencoders of equal shape whose parameters share a leading member axis."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_cli.config.schema import Config, SAEConfig
from sae_cli.dictionary.artifact import SAE
from sae_cli.dictionary.nonlinearities import NONLINEARITIES
from sae_cli.dictionary.nonlinearities.base import Nonlinearity
from sae_cli.randomness import derive_seed
from sae_cli.ranks import ALONE, Ranks
from sae_cli.sparse.functions import Encode, low

WEIGHTS = ("W_enc_KDF", "b_enc_KF", "W_dec_KFD", "b_dec_KD")
DRAWN = 1 << 24
"""Numbers that are drawn at a time where a rank keeps a share of them."""


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
    ranks: Ranks = ALONE
    """Who trains it; each may hold a share of the latents, and F is then the number in a share."""
    cuts_K: Tensor | None = None
    """Where the latents are those of a piece of a batch: where BatchTopK cuts the whole of it."""

    @classmethod
    def initialise(
        cls,
        configs: Sequence[Config],
        mean_D: Tensor,
        device: str,
        rows_ND: Tensor | Callable[[int], Tensor],
        ranks: Ranks = ALONE,
    ) -> "SAEStack":
        """Return a stack with one member per configuration, each drawn from its own seed alone.

        Directions are unit rows, random or taken from scaled inputs (N, D) with probability proportional to
        ||x - b_dec||^2 (a function gives those of a member by its index); encoder rows are the same scaled by
        `sae.encoder_scale`; the decoder bias is the mean (D,) of the scaled data or 0. A rank keeps its share of them.
        """
        sae, own = configs[0].sae, ranks.own(configs[0].sae.latents)
        size = own.stop - own.start
        b_dec_D = mean_D.float().cpu() if sae.decoder_bias_init == "mean" else torch.zeros(len(mean_D))
        members = []
        for index, config in enumerate(configs):
            generator = torch.Generator().manual_seed(derive_seed(config.seed, "init"))
            if sae.decoder_init == "data":
                inputs_ND = rows_ND(index) if callable(rows_ND) else rows_ND
                offsets_ND = inputs_ND.float().cpu() - b_dec_D
                chances_N = offsets_ND.square().sum(1).double()
                rows = torch.multinomial(chances_N, sae.latents, sae.latents > len(chances_N), generator=generator)
                W_dec_FD = normalize(offsets_ND[rows[own]], dim=1)
            else:
                W_dec_FD = normalize(draw_rows(sae.latents, len(mean_D), own, generator), dim=1)
            b_enc_F = torch.full((size,), config.sae.bias_init)
            members.append((sae.encoder_scale * W_dec_FD.T, b_enc_F, W_dec_FD, b_dec_D))
        stacked = [torch.stack(tensors).contiguous().to(device) for tensors in zip(*members, strict=True)]
        nonlinearity = NONLINEARITIES[sae.nonlinearity]
        started = [nonlinearity.start(config.sae) for config in configs]

        def vectors(names: Sequence[str]) -> dict[str, Tensor]:
            values = {name: torch.tensor([start[name] for start in started], device=device) for name in names}
            return {name: value_K.unsqueeze(1).repeat(1, size) for name, value_K in values.items()}

        settings = [config.sae for config in configs]
        W_enc_KDF, b_enc_KF, W_dec_KFD, b_dec_KD = stacked
        learned_KF, buffers_KF = vectors(nonlinearity.learned), vectors(nonlinearity.buffers)
        return cls(settings, W_enc_KDF, b_enc_KF, W_dec_KFD, b_dec_KD, learned_KF, buffers_KF, None, ranks)

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
        vectors = {f"{name}_KF": tensor for name, tensor in (self.learned_KF | self.buffers_KF).items()}
        return {name: getattr(self, name) for name in WEIGHTS} | vectors

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
        centre_KD = None if self.centre_KD is None else self.centre_KD[members]
        part = self._of(self.settings[members], {name: one[members] for name, one in self.state().items()}, centre_KD)
        for tensor in (*(getattr(part, name) for name in WEIGHTS), *part.learned_KF.values()):
            tensor.requires_grad_()
        return part

    def _of(self, settings: Sequence[SAEConfig], state: dict[str, Tensor], centre_KD: Tensor | None) -> "SAEStack":
        """Return the stack that has this `state`, without its history."""
        plain: dict[str, Any] = {name: tensor.detach() for name, tensor in state.items()}
        for held in ("learned_KF", "buffers_KF"):
            plain[held] = {name: plain.pop(f"{name}_KF") for name in getattr(self, held)}
        return replace(self, settings=settings, centre_KD=centre_KD, **plain)

    def freeze(self) -> "SAEStack":
        """Return this stack as the first stage, by whose b_dec all stages are centred."""
        return replace(self, centre_KD=self.b_dec_KD.clone())

    @torch.no_grad()
    def join(self, later: "SAEStack") -> "SAEStack":
        """Return the stack of this one's latents and those of a later stage, which reconstructs what this one leaves.

        Decoder biases add; k adds, too.
        """
        joined = {
            name: torch.cat([tensor, later.state()[name]], dim=2 if name == "W_enc_KDF" else 1)
            for name, tensor in self.state().items()
        }
        settings = [
            replace(one, latents=one.latents + other.latents, k=one.k + other.k)
            for one, other in zip(self.settings, later.settings, strict=True)
        ]
        return self._of(settings, joined | {"b_dec_KD": self.b_dec_KD + later.b_dec_KD}, self.centre_KD)

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
        return Encode.apply(x_KBD, self.ranks.spread(self.encoder_centre_KD), W_enc_KDF)

    def latents(self, m_KBF: Tensor) -> Tensor:
        """Return the latents (K, B, F) of pre-activations, as in training."""
        if self.ranks.size == 1 and self.cuts_K is None:
            return self.nonlinearity.latents(m_KBF, self.parameters(), self.settings)
        return self.nonlinearity.latents_among(m_KBF, self.parameters(), self.settings, self.ranks, self.cuts_K)

    def encode(self, x_BD: Tensor) -> Tensor:
        """Return latents (K, B, F) of scaled activations (B, D), as in training."""
        return self.latents(self.pre_activations(self.centred(x_BD)))

    @torch.no_grad()
    def infer(self, x_BD: Tensor) -> Tensor:
        """Return latents (K, B, F) of scaled activations (B, D), as of an artefact."""
        parameters = self.parameters()
        stored = {"b_enc": parameters["b_enc"], **self.nonlinearity.store(parameters)}
        return self.nonlinearity.infer(self.pre_activations(self.centred(x_BD)), stored, self.settings[0].k)

    @property
    def depends_on_others(self) -> bool:
        """Whether a step needs more of the batch than these rows and latents, between encoding and decoding."""
        return self.ranks.sharded or (
            self.nonlinearity.whole_batch and not (self.ranks.size == 1 and self.cuts_K is None)
        )

    def decode(self, acts_KBF: Tensor) -> Tensor:
        """Return reconstructions (K, B, D), scaled."""
        return self.ranks.total(acts_KBF @ self.W_dec_KFD) + self.b_dec_KD.unsqueeze(1)

    @torch.no_grad()
    def member(self, index: int, scale: float, metadata: dict[str, object]) -> SAE:
        """Return one member as an SAE that acts on raw activations."""
        parameters = {name: tensor[index, 0] for name, tensor in self.parameters().items()}
        stored = {name: tensor.detach().cpu().clone() for name, tensor in self.nonlinearity.store(parameters).items()}
        own: dict[str, Any] = {
            name.replace("K", ""): getattr(self, name)[index].detach().cpu().clone() for name in WEIGHTS
        }
        if self.centre_KD is not None:
            shift_D = self.b_dec_KD[index] - self.centre_KD[index]
            own["b_enc_F"] += (shift_D @ self.W_enc_KDF[index]).cpu()
        sae = self.settings[index]
        own |= {"k": sae.k, "stored": stored, "input_norm": sae.input_norm, "metadata": metadata}
        return SAE(sae.nonlinearity, **own).on_raw(scale)


def draw_rows(count: int, width: int, own: slice, generator: torch.Generator) -> Tensor:
    """Return the rows `own` of torch.randn(count, width), of which few others exist at a time.

    torch fills tensors in blocks of 16 numbers, so draws of a multiple of 16 rows continue each other bit for bit.
    """
    step = count if own == slice(0, count) else 16 * max(1, DRAWN // (16 * width))
    rows = torch.empty(own.stop - own.start, width)
    for start in range(0, count, step):
        drawn = torch.randn(min(step, count - start), width, generator=generator)
        first, last = max(start, own.start), min(start + len(drawn), own.stop)
        if first < last:
            rows[first - own.start : last - own.start] = drawn[first - start : last - start]
    return rows
