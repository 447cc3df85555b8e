"""Reconstruction and sparsity of a stack on one batch, by dense products or by the entries that are not zero."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sae_cli.config.schema import Config
from sae_cli.dictionary.nonlinearities.base import Nonlinearity, Parameters
from sae_cli.dictionary.stack import SAEStack
from sae_cli.losses.sparsity import SPARSITY, row_sums
from sae_cli.sparse.functions import AtEntries, EncodeEntries, MemberSums, Reconstruct, operators
from sae_cli.sparse.operators import Entries
from sae_cli.training.profile import phase

EXACT_ROWS = 256
"""Rows whose firings bf16 counts exactly."""


@dataclass
class Terms:
    """What a batch activated, and what that costs."""

    acts: Tensor
    """Latents (K, B, F), or on the sparse path those of the entries (1, 1, N)."""
    counts_KF: Tensor
    """Rows on which each latent fires."""
    errors_PK: list[Tensor]
    """mean_B ||x - x_hat||^2 of each prefix."""
    sparsity_K: Tensor
    error_KBD: Tensor
    """x_hat - x of the whole dictionary; without gradient on the sparse path."""


@phase("decode")
def dense_terms(part: SAEStack, config: Config, m_KBF: Tensor, target_KBD: Tensor, norm_KF: Tensor | None) -> Terms:
    """Return the terms of pre-activations (K, B, F) by dense products; `norm_KF` scales what is penalised."""
    acts_KBF = part.latents(m_KBF)
    with torch.no_grad():
        counts_KF = firing_counts(acts_KBF, part.nonlinearity.negative)
    own = part.ranks.own(config.sae.latents)
    ends = [
        min(max(end, own.start), own.stop) - own.start for end in prefix_ends(config.sae.latents, config.sae.prefixes)
    ]
    errors_PK = []
    x_hat_KBD = part.b_dec_KD.unsqueeze(1)
    for start, end in zip([0, *ends], ends, strict=False):
        x_hat_KBD = x_hat_KBD + part.ranks.total(acts_KBF[..., start:end] @ part.W_dec_KFD[:, start:end])
        errors_PK.append(squared_error(target_KBD, x_hat_KBD))
    norm_K1F = None if norm_KF is None else norm_KF.unsqueeze(1)
    terms_KBF = _penalties(part.nonlinearity, config, m_KBF, acts_KBF, part.parameters(), norm_K1F)
    sums_KF = row_sums(terms_KBF) / terms_KBF.shape[1]
    sparsity_K = sum((sums_KF[:, :end].sum(1) for end in ends), torch.zeros_like(sums_KF[:, 0]))
    return Terms(acts_KBF, counts_KF, errors_PK, part.ranks.total(sparsity_K), x_hat_KBD.detach() - target_KBD)


@phase("decode")
def sparse_terms(
    part: SAEStack,
    config: Config,
    x_KBD: Tensor,
    target_KBD: Tensor,
    norm_KF: Tensor | None,
    entries: Entries,
    m_N: Tensor,
) -> Terms:
    """Return the same of centred x by the entries within reach, and their m (N,)."""

    def at(vector: Tensor) -> Tensor:
        return AtEntries.apply(vector.flatten(), entries).view(1, 1, -1)

    m_N = EncodeEntries.apply(m_N, x_KBD, part.encoder_centre_KD, part.W_enc_KDF, entries)
    parameters = {name: at(vector) for name, vector in part.parameters().items()}
    m_11N = m_N.view(1, 1, -1)
    acts_11N = part.nonlinearity.at_entries(m_11N, parameters, part.settings)
    counts_C = entries.operators.column_sums(entries, (acts_11N.flatten() > 0).float())
    mse_K, error_RD = Reconstruct.apply(
        acts_11N.flatten(), part.W_dec_KFD.flatten(0, 1), part.b_dec_KD, target_KBD.flatten(0, 1), entries
    )
    norm_11N = None if norm_KF is None else at(norm_KF)
    terms_11N = _penalties(part.nonlinearity, config, m_11N, acts_11N, parameters, norm_11N)
    # what a silent latent costs, such as the square root of epsilon
    silent = SPARSITY[config.sparsity.kind](m_N.new_zeros(1), lambda: m_N.new_full((1,), -1e9), config.sparsity)
    K, B, F = len(part.b_enc_KF), x_KBD.shape[1], part.b_enc_KF.shape[1]
    silent_K = B * F - entries.starts_R[::B].diff()
    sparsity_K = (MemberSums.apply(terms_11N.flatten(), entries) + silent_K * silent) / B
    acts = acts_11N.detach()
    if K > 1 and part.nonlinearity.buffers:  # what these observe of a batch they observe of each member
        acts = pad_sequence(acts.flatten().split(list(entries.sizes)), batch_first=True).unsqueeze(1)
    return Terms(acts, counts_C.view(K, F), [mse_K], sparsity_K, error_RD.view(K, B, -1))


@phase("find")
def find_entries(
    part: SAEStack, config: Config, m_KBF: Tensor, stopped_K: Tensor | None = None
) -> tuple[Entries, Tensor] | None:
    """Return the entries beyond which latents and gradients are 0, and m there (N,); None: dense products are due.

    The answer follows from the configuration and this batch, so a resumed run takes the same path. Members that are
    trained together take the same path; one that has stopped gives no entries, lest it decide for the others.
    """
    reach = entry_reach(config, part.nonlinearity)
    size, auto = m_KBF.numel(), config.train.sparse == "auto"
    if reach is None or part.depends_on_others:
        return None
    chosen = operators(m_KBF.device.type, size)
    one_on_cpu = len(m_KBF) == 1 and m_KBF.device.type == "cpu"
    if (auto and size < chosen.auto_from) or not (chosen.stacks or one_on_cpu):
        return None
    share = chosen.narrow_share if m_KBF.dtype == torch.bfloat16 else chosen.wide_share
    find = partial(chosen.find, capacity=int(size * share) if auto else size)
    with torch.no_grad():
        offset_KF = (part.nonlinearity.offset(part.parameters()) + reach).squeeze(1)
        if stopped_K is not None and chosen.stacks and not part.nonlinearity.sparse_by_itself:
            offset_KF = offset_KF.masked_fill(stopped_K.unsqueeze(1), -torch.inf)
        return part.nonlinearity.entries(m_KBF.detach(), offset_KF, [sae.k for sae in part.settings], find)


def entry_reach(config: Config, nonlinearity: Nonlinearity) -> float | None:
    """Return how far below open gates the loss has gradients; None: not only there, or `train.sparse=dense`."""
    reach, sparsity = nonlinearity.reach(config.sae), config.sparsity
    if reach is None or config.sae.prefixes or config.train.sparse == "dense":
        return None
    if sparsity.kind == "l0":
        return None if nonlinearity.sparse_by_itself else max(reach, sparsity.bandwidth / 2)
    return reach


def firing_counts(acts_KBF: Tensor, negative: bool = False) -> Tensor:
    """Return on how many rows each latent fires (K, F), fp32 and exact, by products over blocks of rows."""
    B = acts_KBF.shape[1]
    rows = torch.arange(B, device=acts_KBF.device) // EXACT_ROWS
    blocks = torch.arange(-(-B // EXACT_ROWS), device=acts_KBF.device)
    membership = (rows == blocks.unsqueeze(1)).to(acts_KBF.dtype)
    fires_KBF = acts_KBF.sign().abs() if negative else acts_KBF.sign()
    return (membership @ fires_KBF).float().sum(1)


def prefix_ends(latents: int, shares: Sequence[float]) -> list[int]:
    """Return where each prefix of the dictionary ends, the whole last."""
    return [*sorted({max(1, round(share * latents)) for share in shares} - {latents}), latents]


def squared_error(x_KBD: Tensor, x_hat_KBD: Tensor) -> Tensor:
    """Return mean_B ||x - x_hat||^2 (K,)."""
    return (x_KBD - x_hat_KBD).float().square().sum(2).mean(1)


def _penalties(
    nonlinearity: Nonlinearity, config: Config, m: Tensor, acts: Tensor, parameters: Parameters, norm: Tensor | None
) -> Tensor:
    """Return P(f) of each latent."""
    values = nonlinearity.penalised(m, acts, parameters)
    if norm is not None:
        values = values * norm.to(values.dtype)
    gates = {name: tensor if name in nonlinearity.gates else tensor.detach() for name, tensor in parameters.items()}
    return SPARSITY[config.sparsity.kind](values, lambda: nonlinearity.margin(m.detach(), gates), config.sparsity)
