"""The losses and gradients of a batch from those of its pieces: rows on several ranks, and on one after each other.

Means over rows are means over pieces weighted by their rows, the penalty on directions is computed with a rank's last
piece, BatchTopK's cut is found in the whole batch before, and ranks are summed at the end.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from sae_cli.config.schema import Config
from sae_cli.dictionary.nonlinearities.topk import common_cuts
from sae_cli.dictionary.stack import SAEStack
from sae_cli.ranks import Ranks
from sae_cli.training.loss import Losses, Weights, losses
from sae_cli.training.profile import phase


def batch_gradients(
    part: SAEStack,
    config: Config,
    x_BD: Tensor,
    dead_KF: Tensor,
    weights: Weights,
    step: int,
    states: list[dict[str, Tensor]],
    frozen: SAEStack | None,
    size: int,
    stopped_K: Tensor | None = None,
) -> tuple[Losses, dict[str, Tensor]]:
    """Return the losses of a batch (B, D), and their gradients by name, from pieces of `size` rows.

    Unless there is one piece and one rank, `Losses.acts` is what a nonlinearity may observe of them (K, 1, N): the
    smallest latents that fired.
    """
    ranks, tensors, pieces = part.ranks, part.tensors(), part.ranks.rows(x_BD).split(size)
    if len(pieces) == 1 and ranks.size == 1:
        found = losses(part, config, x_BD, dead_KF, weights, step, states, frozen, stopped_K)
        with phase("backward"):
            gradients = torch.autograd.grad(found.loss_K.sum(), list(tensors.values()), materialize_grads=True)
        return found, dict(zip(tensors, gradients, strict=True))
    if part.nonlinearity.whole_batch and len(pieces) > 1:
        part.cuts_K = common_cuts(_margins(part, config, pieces), [sae.k * len(x_BD) for sae in part.settings], ranks)
    sums: list[Tensor] = []
    counts_KF, frozen_KG, smallest_K = torch.zeros_like(dead_KF, dtype=torch.float32), torch.zeros(()), []
    means_5K = x_BD.new_zeros(5, part.members)
    for index, piece_BD in enumerate(pieces):
        last, share = index == len(pieces) - 1, len(piece_BD) / len(x_BD)
        gamma_K, due = weights.gamma_K / (share * ranks.row_shares), [last and due for due in weights.penalise]
        count = partial(_counted, ranks, last, counts_KF)
        own = Weights(weights.lambda_K, gamma_K, due)
        found = losses(part, config, piece_BD, dead_KF, own, step, states, frozen, stopped_K, x_BD, count)
        with phase("backward"):
            new = torch.autograd.grad((found.loss_K * share).sum(), list(tensors.values()), materialize_grads=True)
        sums = [before.add_(g) for before, g in zip(sums, new, strict=True)] if sums else [g.contiguous() for g in new]
        with torch.no_grad():
            omega_K = found.omega_K / (share * ranks.row_shares)
            means_5K += share * torch.stack([found.mse_K, found.sparsity_K, omega_K, found.auxiliary_K, found.loss_K])
            counts_KF, frozen_KG = found.counts_KF, frozen_KG.to(x_BD.device) + found.frozen_KG
            if part.nonlinearity.whole_batch:
                smallest_K.append(torch.where(found.acts > 0, found.acts, torch.inf).amin((-2, -1)).float())

    if ranks.row_shares > 1:
        for tensor in (*sums, means_5K, frozen_KG):
            ranks.add(tensor)
    acts_K1N = (
        ranks.gather(torch.stack(smallest_K, 1)).unsqueeze(1) if smallest_K else x_BD.new_zeros(part.members, 1, 1)
    )
    mse_K, sparsity_K, omega_K, auxiliary_K, loss_K = means_5K
    found = Losses(mse_K, sparsity_K, omega_K, auxiliary_K, loss_K, acts_K1N, counts_KF, frozen_KG)
    return found, dict(zip(tensors, sums, strict=True))


def _counted(ranks: Ranks, last: bool, earlier_KF: Tensor, counts_KF: Tensor) -> Tensor:
    """Return the firing counts up to this piece, or with the last one of the whole batch."""
    counts_KF = earlier_KF + counts_KF
    return ranks.add(counts_KF) if last and ranks.row_shares > 1 else counts_KF


@torch.no_grad()
def _margins(part: SAEStack, config: Config, pieces: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield how far each gate is open (K, b, F), before any cut, of each piece."""
    for piece_BD in pieces:
        with torch.autocast(piece_BD.device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
            yield part.nonlinearity.margin(part.pre_activations(part.centred(piece_BD)), part.parameters())
