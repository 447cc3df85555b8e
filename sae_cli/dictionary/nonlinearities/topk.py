"""TopK (arXiv 2406.04093) and BatchTopK (arXiv 2412.06410): the largest pre-activations fire, L0 is k."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from sae_cli.config.schema import SAEConfig
from sae_cli.dictionary.nonlinearities.base import Find, Nonlinearity, Parameters, Settings, keep_where_positive
from sae_cli.ranks import ALONE, Ranks
from sae_cli.sparse.operators import Entries

DECAY = 0.99
"""Decay per step of the running mean of the smallest kept value."""
SAMPLED = 61
"""One value of so many is looked at to guess where a cut lies; a prime, so that latents are sampled evenly."""
SEARCHED = 1 << 18
"""From so many values on, a cut is guessed before it is searched."""


class _Selected(Function):
    """Some of the positive values of z; the gradient reaches these and no others."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (f,) = ctx.saved_tensors
        return keep_where_positive(g, f), None, None


class _TopK(_Selected):
    @staticmethod
    def forward(ctx: Any, z: Tensor, ks: Sequence[int], ranks: Ranks) -> Tensor:  # type: ignore[override]
        largest, places = z.topk(min(max(ks), z.shape[-1]), dim=-1)
        largest = largest.relu()
        if ranks.sharded:
            largest = largest * winners(largest, ks, ranks)
        elif min(ks) < max(ks):
            rank = torch.arange(max(ks), device=z.device)
            largest = largest * (rank < torch.tensor(ks, device=z.device).view(-1, 1, 1))
        f = torch.zeros_like(z).scatter_(-1, places, largest)
        ctx.save_for_backward(f)
        return f


class _BatchTopK(_Selected):
    @staticmethod
    def forward(ctx: Any, z: Tensor, cuts: Tensor, _: None) -> Tensor:  # type: ignore[override]
        # one step of the number format below the cut, so that the cut itself passes
        f = keep_where_positive(z, z - torch.nextafter(cuts, cuts - 1).clamp(min=0))
        ctx.save_for_backward(f)
        return f


class TopK(Nonlinearity):
    """The k largest of max(m + b, 0) in each row, with the ordinary gradient."""

    sparse_by_itself = True
    resampled_norm = 1.0

    def latents(self, m: Tensor, P: Parameters, settings: Settings) -> Tensor:
        """Return z = max(m + b, 0) where it is among its row's k largest, else 0."""
        return self.latents_among(m, P, settings, ALONE, None)

    def latents_among(
        self, m: Tensor, P: Parameters, settings: Settings, ranks: Ranks, cuts_K: Tensor | None
    ) -> Tensor:
        """Return the same of the largest that all ranks have of a row."""
        z = m + P["b_enc"].to(m.dtype)
        most = z.shape[-1] * ranks.size // ranks.row_shares
        return _TopK.apply(z, [min(sae.k, most) for sae in settings], ranks)

    def revived(self, m: Tensor, P: Parameters) -> Tensor:
        """Return max(m + b, 0)."""
        return torch.relu(m + P["b_enc"].to(m.dtype))

    def reach(self, settings: SAEConfig) -> float:
        """Return 0: a latent that is not selected has no gradient."""
        return 0.0

    def entries(self, m_KBF: Tensor, offset_KF: Tensor, ks: Sequence[int], find: Find) -> tuple[Entries, Tensor] | None:
        """Return the k largest of each row."""
        return find(m_KBF, offset_KF, [min(k, m_KBF.shape[2]) for k in ks])

    def at_entries(self, m: Tensor, P: Parameters, settings: Settings) -> Tensor:
        """Return max(m + b, 0): they are selected."""
        return self.revived(m, P)


class BatchTopK(TopK):
    """The k B largest of max(m + b, 0) in a batch of B rows, with the ordinary gradient; ties at the cut all fire.

    An artefact has a threshold instead: the running mean of the smallest value kept in training.
    """

    whole_batch = True
    buffers = ("threshold",)
    stored = ("threshold",)

    def start(self, settings: SAEConfig) -> dict[str, float]:
        """Return a threshold that no step has observed yet."""
        return {"threshold": -1.0}

    def latents(self, m: Tensor, P: Parameters, settings: Settings) -> Tensor:
        """Return z = max(m + b, 0) where it is among the batch's k B largest, else 0."""
        z = m + P["b_enc"].to(m.dtype)
        cuts = torch.stack([cut(z_BF, sae.k * z.shape[-2]) for z_BF, sae in zip(z, settings, strict=True)])
        return _BatchTopK.apply(z, cuts.view(-1, 1, 1), None)

    def latents_among(
        self, m: Tensor, P: Parameters, settings: Settings, ranks: Ranks, cuts_K: Tensor | None
    ) -> Tensor:
        """Return the same of the largest in the whole batch."""
        z = m + P["b_enc"].to(m.dtype)
        counts = [sae.k * z.shape[-2] * ranks.row_shares for sae in settings]
        cuts_K = common_cuts([z.detach()], counts, ranks) if cuts_K is None else cuts_K
        return _BatchTopK.apply(z, cuts_K.view(-1, 1, 1), None)

    def entries(self, m_KBF: Tensor, offset_KF: Tensor, ks: Sequence[int], find: Find) -> tuple[Entries, Tensor] | None:
        """Return the k B largest of each member, and all that are equal to the smallest of these."""
        _, B, F = m_KBF.shape
        counts, sampled = [k * B for k in ks], torch.arange(0, B * F, SAMPLED, device=m_KBF.device)
        samples_KS = m_KBF.flatten(1)[:, ::SAMPLED].float() + offset_KF[:, sampled % F]
        guesses = [
            sample_S.topk(min(len(sample_S), count * 5 // (4 * SAMPLED) + 20), sorted=False).values.amin().clamp(min=0)
            for sample_S, count in zip(samples_KS, counts, strict=True)
        ]
        found = find(m_KBF, offset_KF - torch.stack(guesses).unsqueeze(1), [0] * len(ks))
        if found is not None and any(
            size < count and guess > 0 for size, count, guess in zip(found[0].sizes, counts, guesses, strict=True)
        ):
            found = find(m_KBF, offset_KF, [0] * len(ks))
        if found is None or all(size <= count for size, count in zip(found[0].sizes, counts, strict=True)):
            return found
        entries, m_N = found
        z_N = m_N + offset_KF.flatten()[entries.columns_N]
        cuts_K = torch.stack(
            [
                cut(part_N, count) if len(part_N) else part_N.new_zeros(())
                for part_N, count in zip(z_N.split(list(entries.sizes)), counts, strict=True)
            ]
        )
        return entries.operators.keep(entries, m_N, ~(z_N < entries.each(cuts_K)))

    @torch.no_grad()
    def observe(self, acts: Tensor, P: Parameters) -> None:
        """Move the threshold towards the smallest latent that fired; the first step sets it."""
        smallest = torch.where(acts > 0, acts, torch.inf).amin((-2, -1)).float().view(-1, 1, 1)
        threshold = P["threshold"]
        moved = torch.where(threshold < 0, smallest, torch.lerp(smallest, threshold, DECAY))
        threshold.copy_(torch.where(smallest.isfinite(), moved, threshold))

    def infer(self, m: Tensor, P: Parameters, k: int) -> Tensor:
        """Return z where it is at least the threshold, else 0."""
        z = torch.relu(m + P["b_enc"])
        return torch.where(z >= P["threshold"], z, 0)


def winners(largest: Tensor, ks: Sequence[int], ranks: Ranks) -> Tensor:
    """Return which of this rank's largest values (K, B, C) of rows are among the k largest of all ranks, as 0 and 1."""
    every = ranks.gather(largest)
    places = every.topk(min(max(ks), every.shape[-1]), dim=-1).indices
    within = torch.arange(places.shape[-1], device=every.device) < torch.tensor(ks, device=every.device).view(-1, 1, 1)
    won = torch.zeros_like(every).scatter_(-1, places, within.to(every.dtype).expand_as(places))
    return won.chunk(ranks.size, -1)[ranks.rank]


def common_cuts(pieces: Iterable[Tensor], counts: Sequence[int], ranks: Ranks) -> Tensor:
    """Return the count-th largest value (K,) of each member in a batch, given in pieces (K, b, F) on each rank."""
    best: list[Tensor] = []
    for z in pieces:
        values = [z_BF.flatten() for z_BF in z]
        values = [torch.cat(pair) for pair in zip(best, values, strict=True)] if best else values
        best = [v.topk(min(count, len(v)), sorted=False).values for v, count in zip(values, counts, strict=True)]
    return torch.stack([cut(ranks.gather(values), count) for values, count in zip(best, counts, strict=True)])


def cut(z_BF: Tensor, count: int) -> Tensor:
    """Return the count-th largest of all values, a scalar; the smallest if there are fewer."""
    values = z_BF.flatten()
    count = min(count, len(values))
    if values.is_cuda:
        return values.topk(count, sorted=False).values.amin()
    if len(values) >= SEARCHED:
        # Selection is slow on many values: keep those above a guess, and select among them if they are enough.
        sample = values[::SAMPLED]
        guess = sample.topk(min(len(sample), count * 5 // (4 * SAMPLED) + 20), sorted=False).values.amin()
        candidates = values[values > guess]
        if len(candidates) >= count:
            values = candidates
    return values.kthvalue(len(values) - count + 1).values
