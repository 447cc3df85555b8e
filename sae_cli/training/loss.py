"""The loss of a stack on one batch.

L = sum over prefixes (mean_B ||x - x_hat||^2 + lambda mean_B P(f)) + gamma D Omega(W_dec) + auxiliary terms, per
member; x is scaled to E||x||^2 = D. Without `sae.prefixes` the only prefix is the whole dictionary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sae_cli.config.schema import Config, OrthogonalityConfig, SAEConfig
from sae_cli.dictionary.nonlinearities import NONLINEARITIES
from sae_cli.dictionary.nonlinearities.topk import winners
from sae_cli.dictionary.stack import SAEStack
from sae_cli.losses.baseline import with_threshold
from sae_cli.losses.directions import Directions
from sae_cli.losses.orthogonality import ORTHOGONALITY
from sae_cli.losses.sharded import SHARDED
from sae_cli.losses.sparsity import row_sums
from sae_cli.randomness import derive_seed
from sae_cli.ranks import Ranks
from sae_cli.sparse.pairs import AddLater
from sae_cli.training.profile import phase
from sae_cli.training.terms import dense_terms, find_entries, firing_counts, sparse_terms, squared_error


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
    acts: Tensor
    """Latents (K, B, F), or on the sparse path those of the entries (1, 1, N)."""
    counts_KF: Tensor
    """Rows on which each latent fires."""
    frozen_KG: Tensor
    """The same of the frozen stack's latents, of which there may be none."""


def has_auxiliary(sae: SAEConfig) -> bool:
    """Whether there is a loss beside reconstruction, sparsity and orthogonality."""
    return bool(sae.auxk_weight or sae.preact_weight) or NONLINEARITIES[sae.nonlinearity].has_auxiliary


def losses(
    part: SAEStack,
    config: Config,
    x_BD: Tensor,
    dead_KF: Tensor,
    weights: Weights,
    step: int,
    states: Sequence[dict[str, Tensor]],
    frozen: SAEStack | None = None,
    stopped_K: Tensor | None = None,
    whole_BD: Tensor | None = None,
    count: Callable[[Tensor], Tensor] = lambda counts_KF: counts_KF,
) -> Losses:
    """Return the losses of members on scaled activations (B, D).

    `dead_KF` (bool) are the latents that AuxK and the pre-activation loss revive, `states` what each member's
    orthogonality penalty keeps between steps. With `frozen` the members reconstruct what that stack leaves of x.
    `stopped_K` (bool) are members whose gradients are not used. Where x is a piece of the batch `whole_BD`, `count`
    gives that batch's firing counts from the piece's own.
    """
    sae = config.sae
    D = x_BD.shape[1]
    with torch.autocast(x_BD.device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
        target_KBD, frozen_KG = left_over(frozen, x_BD)
        put_off: list[tuple[int, tuple[Tensor, ...]]] = []
        alone = frozen is None and not part.ranks.sharded
        adds_later = sae.decoder_norm == "unit" and alone and any(weights.penalise)
        if adds_later:
            part = replace(part, W_dec_KFD=AddLater.apply(part.W_dec_KFD, put_off))
        with phase("encode"):
            x_KBD = part.centred(x_BD)
            m_KBF = part.pre_activations(x_KBD)
        norm_KF = part.W_dec_KFD.norm(dim=-1) if sae.decoder_norm == "free" else None
        found = find_entries(part, config, m_KBF, stopped_K)
        terms = (
            dense_terms(part, config, m_KBF, target_KBD, norm_KF)
            if found is None
            else sparse_terms(part, config, x_KBD, target_KBD, norm_KF, *found)
        )
        counts_KF = count(terms.counts_KF)
        active_KF = counts_KF > 0
        whole_BD = x_BD if whole_BD is None else whole_BD
        omegas = [x_BD.new_zeros(())] * part.members
        for k in (k for k, penalise in enumerate(weights.penalise) if penalise):
            seen = directions_of(part, k, config, whole_BD, active_KF[k], ~dead_KF[k], step, states[k], frozen)
            if adds_later:
                seen.later = part.W_dec_KFD, lambda *pairs, k=k: put_off.append((k, pairs))
            omegas[k] = _orthogonality(seen, config.orthogonality, part.ranks)
        omega_K = torch.stack(omegas)
        auxiliary_K = torch.zeros_like(terms.sparsity_K)
        gate_KBF = part.nonlinearity.auxiliary(m_KBF, part.parameters())
        if gate_KBF is not None:
            by_gate_KBD = part.ranks.total(gate_KBF @ part.W_dec_KFD.detach()) + part.b_dec_KD.detach().unsqueeze(1)
            auxiliary_K = auxiliary_K + squared_error(target_KBD, by_gate_KBD)
        if sae.auxk_weight or sae.preact_weight:

            def dead_m(columns: Tensor | None) -> Tensor:
                if columns is None:
                    return m_KBF
                return m_KBF[..., columns] if found is None else part.pre_activations(x_KBD, columns)

            auxiliary_K = auxiliary_K + _revival(part, config, dead_m, terms.error_KBD, dead_KF)
    penalties_K = weights.lambda_K * terms.sparsity_K + weights.gamma_K * D * omega_K
    loss_K = torch.stack(terms.errors_PK).sum(0) + penalties_K + auxiliary_K
    mse_K, sparsity_K = terms.errors_PK[-1], terms.sparsity_K
    return Losses(mse_K, sparsity_K, omega_K, auxiliary_K, loss_K, terms.acts, counts_KF, frozen_KG)


@torch.no_grad()
def left_over(frozen: SAEStack | None, x_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Return x - x_hat (K, B, D) of a stack that is no longer trained, and its firing counts (K, G); without one, x."""
    if frozen is None:
        return x_BD.unsqueeze(0), x_BD.new_zeros(1, 0)
    acts_KBG = frozen.infer(x_BD)
    return x_BD - frozen.decode(acts_KBG), firing_counts(acts_KBG, frozen.nonlinearity.negative)


@phase("auxiliary")
def _revival(
    part: SAEStack, config: Config, dead_m: Callable[[Tensor | None], Tensor], error_KBD: Tensor, dead_KF: Tensor
) -> Tensor:
    """Return the weighted losses (K,) of dead latents, whose pre-activations `dead_m` gives for some columns or all."""
    sae, nonlinearity, parameters, W_dec_KFD = config.sae, part.nonlinearity, part.parameters(), part.W_dec_KFD
    columns, any_dead_K, ranks = None, dead_KF.any(1).float(), part.ranks
    if ranks.sharded:
        any_dead_K = ranks.add(any_dead_K).clamp(max=1)
    elif not dead_KF.is_cuda:  # there, looking at which latents are dead would stop the stream
        columns = dead_KF.any(0).nonzero().squeeze(1)
        if not len(columns):
            return sae.auxk_weight * any_dead_K
        W_dec_KFD, dead_KF = W_dec_KFD[:, columns], dead_KF[:, columns]
        parameters = {name: tensor[..., columns] for name, tensor in parameters.items()}
    m_KBF = dead_m(columns)
    loss_K = torch.zeros_like(any_dead_K)
    if sae.auxk_weight:
        revived_KBF = nonlinearity.revived(m_KBF, parameters) * dead_KF.unsqueeze(1)
        loss_K = loss_K + sae.auxk_weight * any_dead_K * _auxk(
            revived_KBF, W_dec_KFD, error_KBD, sae.auxk_latents, ranks
        )
    if sae.preact_weight:
        short_KBF = torch.relu(-nonlinearity.margin(m_KBF, parameters))
        missing_KF = row_sums(short_KBF) / short_KBF.shape[1] * dead_KF
        missing_KF = missing_KF * W_dec_KFD.norm(dim=-1) if sae.decoder_norm == "free" else missing_KF
        loss_K = loss_K + sae.preact_weight * ranks.total(missing_KF.sum(1))
    return loss_K


def _auxk(revived_KBF: Tensor, W_dec_KFD: Tensor, error_KBD: Tensor, count: int, ranks: Ranks) -> Tensor:
    """Return mean_B ||e - e_hat||^2 (K,), e_hat from a row's largest dead latents (arXiv 2406.04093)."""
    held = revived_KBF.shape[2]
    if count < held * ranks.size // ranks.row_shares:
        largest, places = revived_KBF.topk(min(count, held), dim=2)
        if ranks.sharded:
            largest = largest * winners(largest.detach(), [count] * len(largest), ranks)
        revived_KBF = torch.zeros_like(revived_KBF).scatter(2, places, largest)
    return squared_error(-error_KBD, ranks.total(revived_KBF @ W_dec_KFD))


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
    W_KFD = part.W_dec_KFD
    return Directions(
        W_KFD[member] if len(W_KFD) > 1 else W_KFD.squeeze(0),  # whose gradient needs no copy
        derive_seed(config.train.data_seed, "orthogonality", step),
        step,
        None if rows_F is None else rows_F.nonzero().squeeze(1),
        None if frozen is None else frozen.W_dec_KFD[member].detach(),
        x_BD,
        state,
        config.sae.decoder_norm == "unit",
    )


@phase("penalty")
def _orthogonality(directions: Directions, settings: OrthogonalityConfig, ranks: Ranks) -> Tensor:
    """Return Omega of a member's directions, a scalar."""
    if ranks.sharded:
        return ranks.total(SHARDED[settings.kind](directions, settings, ranks))
    penalty = ORTHOGONALITY[settings.kind]
    assert penalty is not None, "orthogonality=none has weight 0"
    return penalty(directions, with_threshold(settings, *directions.unit_MD.shape))
