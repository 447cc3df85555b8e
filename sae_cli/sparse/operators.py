"""The entries (row, latent) of a batch that are not zero, and products over them by torch's operators."""

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


@dataclass
class Entries:
    """N places in a B x F matrix, row by row, columns ascending or in any fixed order."""

    starts_R: Tensor
    """Where each row's entries begin, and their number N last (R = B + 1, int32)."""
    columns_N: Tensor
    """The latent of each entry (int32)."""
    latents: int
    operators: "Operators"

    @property
    def rows(self) -> int:
        """Number of rows B."""
        return len(self.starts_R) - 1

    @cached_property
    def by_column(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where each latent's entries begin (F + 1), and in this order their rows and indices among the N (int32)."""
        return self.operators.by_column(self)

    @cached_property
    def row_N(self) -> Tensor:
        """The row of each entry."""
        return torch.repeat_interleave(torch.arange(self.rows), self.starts_R.diff().long())

    def keep(self, kept_N: Tensor) -> "Entries":
        """Return some of the entries, by a bool for each."""
        before_N = torch.cat([self.starts_R.new_zeros(1), kept_N.cumsum(0, dtype=torch.int32)])
        return Entries(before_N[self.starts_R], self.columns_N[kept_N], self.latents, self.operators)


class Operators:
    """Products over entries by torch's operators."""

    narrow_share: ClassVar[float] = 1 / 16
    """Share of the latents that fire from which dense products in bf16 are faster.

    Measured on a processor that multiplies bf16 natively, D 512, F 4,096, B 2,048, one thread: a step by entries took
    1.06 times less time at 1/16 and 1.6 times more at 1/8; the compiled kernels 1.16 less at 1/8, 1.6 more at 1/4. In
    fp32 dense products are slower: 1.01 and 1.39 less at 1/4.
    """

    def find(self, m_BF: Tensor, offset_F: Tensor, k: int, capacity: int) -> tuple[Entries, Tensor] | None:
        """Return where m + offset > 0, of each row at most the k largest sums (0: all), and m there (N,) in fp32.

        NaN is found, too: it must reach the loss. None if there are more than `capacity`.
        """
        z_BF = m_BF + offset_F
        largest, columns = z_BF.topk(k, dim=1) if k else (z_BF, None)
        open_BC = ~(largest <= 0)
        counts_B = open_BC.sum(1)
        if counts_B.sum() > capacity:
            return None
        row_N, place_N = open_BC.nonzero(as_tuple=True)
        columns_N = place_N if columns is None else columns[row_N, place_N]
        starts_R = torch.cat([counts_B.new_zeros(1), counts_B.cumsum(0)]).int()
        return Entries(starts_R, columns_N.int(), m_BF.shape[1], self), m_BF[row_N, columns_N].float()

    def by_column(self, entries: Entries) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `Entries.by_column` says."""
        order_N = entries.columns_N.argsort(stable=True)
        counts_F = torch.bincount(entries.columns_N, minlength=entries.latents)
        starts_C = torch.cat([counts_F.new_zeros(1), counts_F.cumsum(0)]).int()
        return starts_C, entries.row_N[order_N].int(), order_N.int()

    def decode(
        self, entries: Entries, f_N: Tensor, W_FD: Tensor, b_dec_D: Tensor, target_BD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return e = f W + b_dec - target (B, D) in the dtype of W, ||e||^2 (B,), and <e, W's row> of each entry."""
        e_BD = _bags(W_FD, entries.columns_N, entries.starts_R, f_N) + (b_dec_D - target_BD)
        shape = entries.rows, entries.latents
        with warnings.catch_warnings(action="ignore"):  # "beta state"
            pattern = torch.sparse_csr_tensor(entries.starts_R, entries.columns_N, torch.zeros_like(f_N), shape)
        dots_N = torch.sparse.sampled_addmm(pattern, e_BD, W_FD.float().T, beta=0.0).values()
        return e_BD.to(W_FD.dtype), e_BD.norm(dim=1).square(), dots_N

    def accumulate(self, entries: Entries, weights_N: Tensor, G_BD: Tensor, transposed: bool) -> Tensor:
        """Return for each latent the sum over its entries of weight times the row of G: (F, D), or (D, F), in fp32."""
        starts_C, rows_N, order_N = entries.by_column
        sums_FD = _bags(G_BD, rows_N, starts_C, weights_N[order_N])
        return sums_FD.T.contiguous() if transposed else sums_FD

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
