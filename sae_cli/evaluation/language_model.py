"""What a language model loses when an SAE's reconstruction replaces the activations at its hook."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from sae_cli.dictionary.artifact import SAE
from sae_cli.evaluation.reconstruction import ratio, rows_within
from sae_cli.sources.language_model import LanguageModel

LOGITS, CHUNK = 16, 64
"""Bytes of memory to count per logit of a forward pass (clean and spliced ones exist at a time, fp32 at most), and per
logit that a reduction touches at a time."""
NO_TARGET = -1
"""Target of a context's last position, which predicts nothing."""

Replacement = Callable[[Tensor], Tensor]
"""From the activations (C, T, D) at the hook to those that take their place."""
Scored = tuple[Tensor, Tensor]
"""Logits (N, V) of all positions, and each row's logarithm of the sum of exponentials (N,), fp32."""


@torch.no_grad()
def spliced_losses(
    model: LanguageModel,
    tokens: Iterable[Tensor],
    hook: str,
    saes: list[SAE],
    mean_D: Tensor,
    keep_first: bool,
    memory_bytes: int = 2**30,
) -> list[dict[str, float]]:
    """Return the `language_model` section of each SAE from one pass over batches of tokens (C, T).

    docs/eval-format.md defines its keys. The clean, zero-ablated and mean-ablated (mean_D, raw units) passes are shared
    by all SAEs. keep_first: the first row of each context (BOS) keeps its value in every replacement. Logits take at
    most memory_bytes, but are of one whole context at least.
    """
    ablations: list[Replacement] = [torch.zeros_like, lambda x_CTD: mean_D.to(x_CTD).expand_as(x_CTD)]
    replacements = ablations + [_reconstruction(sae, memory_bytes) for sae in saes]
    if keep_first:
        replacements = [_keeping_first(replacement) for replacement in replacements]
    count, clean_loss = 0, 0.0
    losses, divergences = [0.0] * len(replacements), [0.0] * len(saes)
    for batch_CT in tokens:
        for tokens_CT in batch_CT.split(max(1, memory_bytes // (LOGITS * batch_CT.shape[1] * model.vocabulary))):
            rows = max(1, memory_bytes // (CHUNK * model.vocabulary))
            clean = _scored(model.logits(tokens_CT), rows)
            target_CT = tokens_CT.roll(-1, 1)
            target_CT[:, -1] = NO_TARGET
            target_N = target_CT.flatten().to(clean[0].device)
            clean_loss += _cross_entropy(clean, target_N)
            count += int((target_N != NO_TARGET).sum())
            for i, replacement in enumerate(replacements):
                spliced = _scored(model.logits(tokens_CT, hook, replacement), rows)
                losses[i] += _cross_entropy(spliced, target_N)
                if i >= len(ablations):
                    divergences[i - len(ablations)] += _divergence(clean, spliced, target_N, rows)
                del spliced  # before the next forward pass makes its own
    zero, mean, *of_saes = losses
    return [
        {
            "ce_clean": ratio(clean_loss, count),
            "ce_sae": ratio(loss, count),
            "ce_zero": ratio(zero, count),
            "ce_mean": ratio(mean, count),
            "recovered_zero": ratio(zero - loss, zero - clean_loss),
            "recovered_mean": ratio(mean - loss, mean - clean_loss),
            "delta_nats": ratio(loss - clean_loss, count),
            "delta_bits": ratio(loss - clean_loss, count) / math.log(2),
            "kl": ratio(divergence, count),
            "tokens": count,
        }
        for loss, divergence in zip(of_saes, divergences, strict=True)
    ]


def _reconstruction(sae: SAE, memory_bytes: int) -> Replacement:
    def replace(x_CTD: Tensor) -> Tensor:
        parts = x_CTD.flatten(0, 1).split(rows_within(memory_bytes, *sae.W_dec_FD.shape))
        return torch.cat([sae.forward(x_BD.float())[1].to(x_CTD.dtype) for x_BD in parts]).reshape(x_CTD.shape)

    return replace


def _keeping_first(replacement: Replacement) -> Replacement:
    return lambda x_CTD: torch.cat([x_CTD[:, :1], replacement(x_CTD[:, 1:])], dim=1)


def _scored(logits_CTV: Tensor, rows: int) -> Scored:
    logits_NV = logits_CTV.flatten(0, 1)
    return logits_NV, torch.cat([part_BV.float().logsumexp(1) for part_BV in logits_NV.split(rows)])


def _cross_entropy(scored: Scored, target_N: Tensor) -> float:
    """Return the summed cross-entropy in nats of the positions that have a target."""
    logits_NV, total_N = scored
    chosen_N = logits_NV.gather(1, target_N.clamp(min=0)[:, None]).squeeze(1).float()
    return float((total_N - chosen_N)[target_N != NO_TARGET].sum(dtype=torch.float64))


def _divergence(clean: Scored, spliced: Scored, target_N: Tensor, rows: int) -> float:
    """Return the summed KL(clean || spliced) in nats of the positions that have a target."""
    parts = []
    for p_BV, p_total_B, q_BV, q_total_B in zip(*(tensor.split(rows) for tensor in (*clean, *spliced)), strict=True):
        log_p_BV = p_BV.float() - p_total_B[:, None]
        difference_BV = (log_p_BV - q_BV).add_(q_total_B[:, None])
        parts.append(difference_BV.mul_(log_p_BV.exp_()).sum(1, dtype=torch.float64))
    return float(torch.cat(parts)[target_N != NO_TARGET].sum())
