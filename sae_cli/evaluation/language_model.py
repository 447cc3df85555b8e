"""What a language model loses when an SAE's reconstruction replaces the activations at its hook."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from sae_cli.dictionary.artifact import SAE
from sae_cli.evaluation.reconstruction import ratio
from sae_cli.sources.language_model import LanguageModel

LOGITS = 2**26
"""Logits (positions x vocabulary) that exist at a time; bounds the contexts of a forward pass."""
CHUNK = 2**24
"""Logits that a reduction touches at a time; bounds its temporary memory."""

Replacement = Callable[[Tensor], Tensor]
"""From the activations (C, T, D) at the hook to those that take their place."""


@torch.no_grad()
def spliced_losses(
    model: LanguageModel,
    tokens: Iterable[Tensor],
    hook: str,
    saes: list[SAE],
    mean_D: Tensor,
    keep_first: bool,
) -> list[dict[str, float]]:
    """Return the `language_model` section of each SAE from one pass over batches of tokens (C, T).

    Cross-entropies are means over all next-token predictions, T-1 per context, in nats. The clean, zero-ablated and
    mean-ablated (mean_D, raw units) passes are shared by all SAEs. keep_first: the first row of each context (BOS)
    keeps its value in every replacement. recovered_zero = (CE_zero - CE_sae) / (CE_zero - CE_clean), recovered_mean
    alike; kl is KL(clean || sae).
    """
    ablations: list[Replacement] = [torch.zeros_like, lambda x_CTD: mean_D.to(x_CTD).expand_as(x_CTD)]
    replacements = ablations + [_reconstruction(sae) for sae in saes]
    if keep_first:
        replacements = [_keeping_first(replacement) for replacement in replacements]
    count, clean = 0, 0.0
    losses, divergences = [0.0] * len(replacements), [0.0] * len(saes)
    for batch_CT in tokens:
        for tokens_CT in batch_CT.split(max(1, LOGITS // (batch_CT.shape[1] * model.vocabulary))):
            clean_NV = _log_probabilities(model.logits(tokens_CT))
            target_N = tokens_CT[:, 1:].reshape(-1).to(clean_NV.device)
            clean += _cross_entropy(clean_NV, target_N)
            count += len(target_N)
            for i, replacement in enumerate(replacements):
                spliced_NV = _log_probabilities(model.logits(tokens_CT, hook, replacement))
                losses[i] += _cross_entropy(spliced_NV, target_N)
                if i >= len(ablations):
                    divergences[i - len(ablations)] += _divergence(clean_NV, spliced_NV)
    zero, mean, *spliced = losses
    return [
        {
            "ce_clean": ratio(clean, count),
            "ce_sae": ratio(loss, count),
            "ce_zero": ratio(zero, count),
            "ce_mean": ratio(mean, count),
            "recovered_zero": ratio(zero - loss, zero - clean),
            "recovered_mean": ratio(mean - loss, mean - clean),
            "delta_nats": ratio(loss - clean, count),
            "delta_bits": ratio(loss - clean, count) / math.log(2),
            "kl": ratio(divergence, count),
            "tokens": count,
        }
        for loss, divergence in zip(spliced, divergences, strict=True)
    ]


def _reconstruction(sae: SAE) -> Replacement:
    def replace(x_CTD: Tensor) -> Tensor:
        x_ND = x_CTD.float().flatten(0, 1)
        return sae.forward(x_ND)[1].to(x_CTD.dtype).reshape(x_CTD.shape)

    return replace


def _keeping_first(replacement: Replacement) -> Replacement:
    return lambda x_CTD: torch.cat([x_CTD[:, :1], replacement(x_CTD[:, 1:])], dim=1)


def _log_probabilities(logits_CTV: Tensor) -> Tensor:
    """Return fp32 log-probabilities (N, V) of the positions that have a next token."""
    logits_NV = logits_CTV[:, :-1].flatten(0, 1).float()
    for part_NV in _chunks(logits_NV):
        part_NV -= part_NV.logsumexp(dim=1, keepdim=True)
    return logits_NV


def _cross_entropy(log_NV: Tensor, target_N: Tensor) -> float:
    """Return the summed cross-entropy in nats."""
    return -float(log_NV.gather(1, target_N[:, None]).sum(dtype=torch.float64))


def _divergence(clean_NV: Tensor, spliced_NV: Tensor) -> float:
    """Return the summed KL(clean || spliced) in nats."""
    parts = zip(_chunks(clean_NV), _chunks(spliced_NV), strict=True)
    return sum(float((p_NV.exp() * (p_NV - q_NV)).sum(dtype=torch.float64)) for p_NV, q_NV in parts)


def _chunks(rows_NV: Tensor) -> tuple[Tensor, ...]:
    return rows_NV.split(max(1, CHUNK // rows_NV.shape[1]))
