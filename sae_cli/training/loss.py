"""The loss of a stack on one batch.

L = sum over prefixes (mean_B ||x - x_hat||^2 + lambda mean_B P(f)) + gamma D Omega(W_dec) + auxiliary terms, per
member; x is scaled to E||x||^2 = D. Without `sae.prefixes` the only prefix is the whole dictionary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_cli.config.schema import Config, OrthogonalityConfig, SAEConfig
from sae_cli.dictionary.nonlinearities import NONLINEARITIES
from sae_cli.dictionary.stack import SAEStack
from sae_cli.losses.baseline import with_threshold
from sae_cli.losses.directions import Directions
from sae_cli.losses.orthogonality import ORTHOGONALITY
from sae_cli.losses.sparsity import SPARSITY, row_sums
from sae_cli.randomness import derive_seed

EXACT_ROWS = 256
"""Rows whose firings bf16 counts exactly."""


@dataclass
class Weights:
    """What multiplies the terms at a step, warm-ups included."""

    lambda_K: Tensor
    gamma_K: Tensor
    """0 at steps on which the penalty is not due; `every` times gamma where it is."""
    penalise: Sequence[bool]
    """Which members' penalties are computed."""


@dataclass
class Losses:
    """Terms of the loss (K,), and what the batch activated."""

    mse_K: Tensor
    """Of the whole dictionary."""
    sparsity_K: Tensor
    omega_K: Tensor
    auxiliary_K: Tensor
    loss_K: Tensor
    acts_KBF: Tensor
    counts_KF: Tensor
    """Rows on which each latent fires."""
    frozen_KG: Tensor
    """The same of the frozen stack's latents, of which there may be none."""


def firing_counts(acts_KBF: Tensor, negative: bool = False) -> Tensor:
    """Return on how many rows each latent fires (K, F), fp32 and exact, by products over blocks of rows."""
    B = acts_KBF.shape[1]
    rows = torch.arange(B, device=acts_KBF.device) // EXACT_ROWS
    blocks = torch.arange(-(-B // EXACT_ROWS), device=acts_KBF.device)
    membership = (rows == blocks.unsqueeze(1)).to(acts_KBF.dtype)
    fires_KBF = acts_KBF.sign().abs() if negative else acts_KBF.sign()
    return (membership @ fires_KBF).float().sum(1)


def has_auxiliary(sae: SAEConfig) -> bool:
    """Whether there is a loss beside reconstruction, sparsity and orthogonality."""
    return bool(sae.auxk_weight or sae.preact_weight) or NONLINEARITIES[sae.nonlinearity].has_auxiliary


def prefix_ends(latents: int, shares: Sequence[float]) -> list[int]:
    """Return where each prefix of the dictionary ends, the whole last."""
    return [*sorted({max(1, round(share * latents)) for share in shares} - {latents}), latents]


def losses(
    part: SAEStack,
    config: Config,
    x_BD: Tensor,
    dead_KF: Tensor,
    weights: Weights,
    step: int,
    states: Sequence[dict[str, Tensor]],
    frozen: SAEStack | None = None,
) -> Losses:
    """Return the losses of members on scaled activations (B, D).

    `dead_KF` (bool) are the latents that AuxK and the pre-activation loss revive, `states` what each member's
    orthogonality penalty keeps between steps. With `frozen` the members reconstruct what that stack leaves of x.
    """
    sae = config.sae
    D = x_BD.shape[1]
    with torch.autocast(x_BD.device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
        target_KBD, frozen_KG = left_over(frozen, x_BD)
        m_KBF = part.pre_activations(x_BD)
        acts_KBF = part.latents(m_KBF)
        with torch.no_grad():
            counts_KF = firing_counts(acts_KBF, part.nonlinearity.negative)
        ends = prefix_ends(sae.latents, sae.prefixes)
        errors_PK = []
        x_hat_KBD = part.b_dec_KD.unsqueeze(1)
        for start, end in zip([0, *ends], ends, strict=False):
            x_hat_KBD = x_hat_KBD + acts_KBF[..., start:end] @ part.W_dec_KFD[:, start:end]
            errors_PK.append(_squared_error(target_KBD, x_hat_KBD))
        omega_K = torch.stack(
            [
                _orthogonality(
                    directions_of(part, k, config, x_BD, counts_KF[k] > 0, ~dead_KF[k], step, states[k], frozen),
                    config.orthogonality,
                )
                if penalise
                else x_BD.new_zeros(())
                for k, penalise in enumerate(weights.penalise)
            ]
        )
        norm_KF = part.W_dec_KFD.norm(dim=-1) if sae.decoder_norm == "free" else None
        sparsity_K = _sparsity(part, config, m_KBF, acts_KBF, norm_KF, ends)
        auxiliary_K = torch.zeros_like(sparsity_K)
        gate_KBF = part.nonlinearity.auxiliary(m_KBF, part.parameters())
        if gate_KBF is not None:
            by_gate_KBD = gate_KBF @ part.W_dec_KFD.detach() + part.b_dec_KD.detach().unsqueeze(1)
            auxiliary_K = auxiliary_K + _squared_error(target_KBD, by_gate_KBD)
        if sae.auxk_weight:
            auxiliary_K = auxiliary_K + sae.auxk_weight * _auxk(part, m_KBF, target_KBD - x_hat_KBD, dead_KF)
        if sae.preact_weight:
            short_KBF = torch.relu(-part.nonlinearity.margin(m_KBF, part.parameters()))
            missing_KF = row_sums(short_KBF) / len(x_BD) * dead_KF
            missing_KF = missing_KF if norm_KF is None else missing_KF * norm_KF
            auxiliary_K = auxiliary_K + sae.preact_weight * missing_KF.sum(1)
    loss_K = torch.stack(errors_PK).sum(0) + weights.lambda_K * sparsity_K + weights.gamma_K * D * omega_K + auxiliary_K
    return Losses(errors_PK[-1], sparsity_K, omega_K, auxiliary_K, loss_K, acts_KBF, counts_KF, frozen_KG)


@torch.no_grad()
def left_over(frozen: SAEStack | None, x_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Return x - x_hat (K, B, D) of a stack that is no longer trained, and its firing counts (K, G); without one, x."""
    if frozen is None:
        return x_BD.unsqueeze(0), x_BD.new_zeros(1, 0)
    acts_KBG = frozen.infer(x_BD)
    return x_BD - frozen.decode(acts_KBG), firing_counts(acts_KBG, frozen.nonlinearity.negative)


def _squared_error(x_KBD: Tensor, x_hat_KBD: Tensor) -> Tensor:
    """Return mean_B ||x - x_hat||^2 (K,)."""
    return (x_KBD - x_hat_KBD).float().square().sum(2).mean(1)


def _sparsity(
    part: SAEStack, config: Config, m_KBF: Tensor, acts_KBF: Tensor, norm_KF: Tensor | None, ends: list[int]
) -> Tensor:
    """Return mean_B P(f) (K,), of each latent as often as there are prefixes that hold it."""
    nonlinearity, parameters = part.nonlinearity, part.parameters()
    values_KBF = nonlinearity.penalised(m_KBF, acts_KBF, parameters)
    if norm_KF is not None:
        values_KBF = values_KBF * norm_KF.unsqueeze(1).to(values_KBF.dtype)
    gates = {name: tensor if name in nonlinearity.gates else tensor.detach() for name, tensor in parameters.items()}
    terms_KBF = SPARSITY[config.sparsity.kind](
        values_KBF, lambda: nonlinearity.margin(m_KBF.detach(), gates), config.sparsity
    )
    sums_KF = row_sums(terms_KBF) / terms_KBF.shape[1]
    return sum((sums_KF[:, :end].sum(1) for end in ends), torch.zeros_like(sums_KF[:, 0]))


def _auxk(part: SAEStack, m_KBF: Tensor, error_KBD: Tensor, dead_KF: Tensor) -> Tensor:
    """Return mean_B ||e - e_hat||^2 (K,), e_hat from a row's largest dead latents (arXiv 2406.04093); 0 if none."""
    parameters, W_dec_KFD, any_dead_K = part.parameters(), part.W_dec_KFD, dead_KF.any(1)
    if not m_KBF.is_cuda:  # there, looking at which latents are dead would stop the stream
        columns = dead_KF.any(0).nonzero().squeeze(1)
        if not len(columns):
            return any_dead_K.float()
        m_KBF, W_dec_KFD, dead_KF = m_KBF[..., columns], W_dec_KFD[:, columns], dead_KF[:, columns]
        parameters = {name: tensor[..., columns] for name, tensor in parameters.items()}
    revived_KBF = part.nonlinearity.revived(m_KBF, parameters) * dead_KF.unsqueeze(1)
    if part.settings[0].auxk_latents < revived_KBF.shape[2]:
        largest, places = revived_KBF.topk(part.settings[0].auxk_latents, dim=2)
        revived_KBF = torch.zeros_like(revived_KBF).scatter(2, places, largest)
    return _squared_error(error_KBD.detach(), revived_KBF @ W_dec_KFD) * any_dead_K


def directions_of(
    part: SAEStack,
    member: int,
    config: Config,
    x_BD: Tensor | None,
    active_F: Tensor,
    alive_F: Tensor,
    step: int,
    state: dict[str, Tensor],
    frozen: SAEStack | None,
) -> Directions:
    """Return what a member's orthogonality penalty sees at a step."""
    rows_F = {"all": None, "active": active_F, "alive": alive_F}[config.orthogonality.rows]
    return Directions(
        part.W_dec_KFD[member],
        derive_seed(config.train.data_seed, "orthogonality", step),
        step,
        None if rows_F is None else rows_F.nonzero().squeeze(1),
        None if frozen is None else frozen.W_dec_KFD[member].detach(),
        x_BD,
        state,
    )


def _orthogonality(directions: Directions, settings: OrthogonalityConfig) -> Tensor:
    """Return Omega of a member's directions, a scalar."""
    penalty = ORTHOGONALITY[settings.kind]
    assert penalty is not None, "orthogonality=none has weight 0"
    return penalty(directions, with_threshold(settings, *directions.unit_MD.shape))
