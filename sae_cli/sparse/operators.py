"""The entries (row, latent) of a batch that are not zero, and products over them by torch's operators."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


@dataclass
class Entries:
    """N places in a B x F matrix, row by row, columns ascending or in any fixed order.

    The rows of a stack are those of all members one after the other (row k B + b), and so are its latents (k F + f).
    """

    starts_R: Tensor
    """Where each row's entries begin, and their number N last (R = rows + 1, int32)."""
    columns_N: Tensor
    """The latent of each entry (int32)."""
    latents: int
    """Of all members."""
    operators: "Operators"
    sizes: Sequence[int]
    """How many of the entries each member has."""

    @property
    def rows(self) -> int:
        """Number of rows of all members."""
        return len(self.starts_R) - 1

    @property
    def members(self) -> int:
        """Number of members K."""
        return len(self.sizes)

    def each(self, values_K: Tensor) -> Tensor:
        """Return a member's value for each of its entries."""
        return values_K if self.members == 1 else values_K[self.columns_N // (self.latents // self.members)]

    @cached_property
    def by_column(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where each latent's entries begin (F + 1), and in this order their rows and indices among the N (int32)."""
        return self.operators.by_column(self)

    @cached_property
    def row_N(self) -> Tensor:
        """The row of each entry."""
        return torch.repeat_interleave(torch.arange(self.rows), self.starts_R.diff().long())

    def keep(self, kept_N: Tensor) -> "Entries":
        """Return some of one member's entries, by a bool for each."""
        before_N = torch.cat([self.starts_R.new_zeros(1), kept_N.cumsum(0, dtype=torch.int32)])
        columns_N = self.columns_N[kept_N]
        return Entries(before_N[self.starts_R], columns_N, self.latents, self.operators, [len(columns_N)])


class Operators:
    """Products over entries by torch's operators, of one member."""

    stacks: ClassVar[bool] = False
    """Whether the members of a stack are taken together."""
    auto_from: ClassVar[int] = 1 << 18
    """Numbers K B F from which entries are looked for where `train.sparse=auto`."""
    wide_share: ClassVar[float] = 1 / 4
    """Share of the latents that fire from which dense products in fp32 are faster."""
    narrow_share: ClassVar[float] = 1 / 16
    """Share of the latents that fire from which dense products in bf16 are faster.

    Measured on a processor that multiplies bf16 natively, D 512, F 4,096, B 2,048, one thread: a step by entries took
    1.06 times less time at 1/16 and 1.6 times more at 1/8; the compiled kernels 1.16 less at 1/8, 1.6 more at 1/4. In
    fp32 dense products are slower: 1.01 and 1.39 less at 1/4.
    """

    def find(self, m_KBF: Tensor, offset_KF: Tensor, ks: Sequence[int], capacity: int) -> tuple[Entries, Tensor] | None:
        """Return where m + offset > 0, of each row at most the k largest sums (0: all), and m there (N,) in fp32.

        NaN is found, too: it must reach the loss. None if there are more than `capacity`.
        """
        (m_BF,), (k,) = m_KBF, ks
        z_BF = m_BF + offset_KF
        largest, columns = z_BF.topk(k, dim=1) if k else (z_BF, None)
        open_BC = ~(largest <= 0)
        counts_B = open_BC.sum(1)
        if counts_B.sum() > capacity:
            return None
        row_N, place_N = open_BC.nonzero(as_tuple=True)
        columns_N = place_N if columns is None else columns[row_N, place_N]
        starts_R = torch.cat([counts_B.new_zeros(1), counts_B.cumsum(0)]).int()
        m_N = m_BF[row_N, columns_N].float()
        return Entries(starts_R, columns_N.int(), m_BF.shape[1], self, [len(m_N)]), m_N

    def keep(self, entries: Entries, m_N: Tensor, kept_N: Tensor) -> tuple[Entries, Tensor]:
        """Return some of the entries, by a bool for each, and their m."""
        return entries.keep(kept_N), m_N[kept_N]

    def by_column(self, entries: Entries) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `Entries.by_column` says."""
        order_N = entries.columns_N.argsort(stable=True)
        counts_F = torch.bincount(entries.columns_N, minlength=entries.latents)
        starts_C = torch.cat([counts_F.new_zeros(1), counts_F.cumsum(0)]).int()
        return starts_C, entries.row_N[order_N].int(), order_N.int()

    def decode(
        self, entries: Entries, f_N: Tensor, W_FD: Tensor, b_dec_KD: Tensor, target_BD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return e = f W + b_dec - target (B, D) in the dtype of W, ||e||^2 (B,), and <e, W's row> of each entry.

        The target is of all members' rows, or the same for each member.
        """
        e_BD = _bags(W_FD, entries.columns_N, entries.starts_R, f_N) + (b_dec_KD - target_BD)
        shape = entries.rows, entries.latents
        with warnings.catch_warnings(action="ignore"):  # "beta state"
            pattern = torch.sparse_csr_tensor(entries.starts_R, entries.columns_N, torch.zeros_like(f_N), shape)
        dots_N = torch.sparse.sampled_addmm(pattern, e_BD, W_FD.float().T, beta=0.0).values()
        return e_BD.to(W_FD.dtype), e_BD.norm(dim=1).square(), dots_N

    def accumulate(self, entries: Entries, weights_N: Tensor, G_BD: Tensor, transposed: bool) -> Tensor:
        """Return for each latent the sum over its entries of weight times the row of G, in fp32.

        (F, D) for the latents of all members, or transposed (K, D, F).
        """
        starts_C, rows_N, order_N = entries.by_column
        sums_FD = _bags(G_BD, rows_N, starts_C, weights_N[order_N])
        return sums_FD.T.contiguous().unsqueeze(0) if transposed else sums_FD

    def column_sums(self, entries: Entries, values_N: Tensor) -> Tensor:
        """Return the sum over each latent's entries (F,)."""
        return values_N.new_zeros(entries.latents).index_add_(0, entries.columns_N, values_N)

    def member_sums(self, entries: Entries, values_N: Tensor) -> Tensor:
        """Return the sum over each member's entries (K,)."""
        return values_N.sum().unsqueeze(0)

    def project(self, grad: Tensor, directions: Tensor) -> None:
        """Take off each row of a gradient (..., D), in place, what is along its direction."""
        grad -= (grad * directions).sum(-1, keepdim=True) * directions

    def unit(self, directions: Tensor) -> None:
        """Set each row (..., D) to norm 1, in place."""
        directions /= directions.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def _bags(rows: Tensor, indices_N: Tensor, starts: Tensor, weights_N: Tensor) -> Tensor:
    """Return the weighted sum of the rows of each bag; `starts` counts the indices last."""
    return embedding_bag(
        indices_N, rows.float(), starts, mode="sum", per_sample_weights=weights_N, include_last_offset=True
    )
