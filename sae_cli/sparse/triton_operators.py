"""Products over the entries of a whole stack on CUDA, by Triton's kernels."""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import torch
import triton
from torch import Tensor

from sae_cli.sparse import triton_kernels as kernels
from sae_cli.sparse.operators import Entries, Operators

SPAN = 256
"""Entries of a latent that one program sums; those of a latent with more are summed by several."""
ROW = 32768
"""Latents of a row that fit the registers of one program."""
LONGEST = 2**31 - 1
SHUT = -1e30
"""m of an entry that is not wanted: its latent and its gradients are 0."""


class Triton(Operators):
    """Operators for CUDA. Nothing here waits for the device but `find`, for the number of entries of each member.

    That number decides between dense and sparse products, and the sizes of all that follows. It is of the batch at
    hand, so no count lags, none overflows and a resumed run takes the same path without a state of its own. TopK's
    number follows from k.
    """

    stacks = True
    # Estimates for an H100 (700 TFLOP/s in bf16, 5 TB/s out of its cache), not measured: an entry moves four rows.
    auto_from = 1 << 24
    narrow_share = 1 / 128
    wide_share = 1 / 32

    def find(self, m_KBF: Tensor, offset_KF: Tensor, ks: Sequence[int], capacity: int) -> tuple[Entries, Tensor] | None:
        """Return what the base class says; with k > 0 the k largest sums of a row also where they are not positive."""
        (K, B, F), device = m_KBF.shape, m_KBF.device
        R, most = K * B, min(capacity, LONGEST)
        m_KBF, offset_KF = _floats(m_KBF), offset_KF.contiguous()
        cuts_R = ties_R = None
        if any(ks):
            sizes = [k * B for k in ks]
            if sum(sizes) > most:
                return None
            ks_K, starts_R = _rows_of(tuple(ks), B, device)
            cuts_R, ties_R = (torch.empty(R, dtype=torch.int32, device=device) for _ in range(2))
            block = min(triton.next_power_of_2(F), ROW)
            kernels.largest_kernel[(R,)](
                m_KBF, offset_KF, ks_K, cuts_R, ties_R, B, F, block, block >= F, num_warps=_warps(block // 4)
            )
        else:
            counts_R = torch.empty(R + 1, dtype=torch.int32, device=device)
            kernels.count_kernel[(R,)](m_KBF, offset_KF, counts_R, B, F, _block(F, 1024), num_warps=4)
            before_R = counts_R.cumsum(0)
            ends = _on_host(before_R[::B])
            if ends[-1] > most:
                return None
            sizes, starts_R = [end - begin for begin, end in pairwise(ends)], before_R.int()
        N = sum(sizes)
        columns_N, rows_N = (torch.empty(N, dtype=torch.int32, device=device) for _ in range(2))
        m_N = torch.empty(N, device=device)
        kernels.write_kernel[(R,)](
            m_KBF, offset_KF, starts_R, cuts_R, ties_R, columns_N, rows_N, m_N, B, F, cuts_R is not None,
            _block(F, 1024), num_warps=4,
        )  # fmt: skip
        entries = Entries(starts_R, columns_N, K * F, self, sizes)
        entries.row_N = rows_N
        return entries, m_N

    def keep(self, entries: Entries, m_N: Tensor, kept_N: Tensor) -> tuple[Entries, Tensor]:
        """Return the same entries, those that are not kept shut: dropping them would wait for their number."""
        return entries, torch.where(kept_N, m_N, SHUT)

    def by_column(self, entries: Entries) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `Entries.by_column` says, by a stable radix sort."""
        sorted_N, order_N = entries.columns_N.sort(stable=True)
        latents_C = torch.arange(entries.latents + 1, dtype=torch.int32, device=sorted_N.device)
        starts_C = torch.searchsorted(sorted_N, latents_C, out_int32=True)
        return starts_C, entries.row_N[order_N], order_N.int()

    def decode(
        self, entries: Entries, f_N: Tensor, W_CD: Tensor, b_dec_KD: Tensor, target_TD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the base class says in one kernel, a program for each row."""
        R, D, W_CD, target_TD = entries.rows, W_CD.shape[1], _floats(W_CD), target_TD.float().contiguous()
        e_RD, squares_R, dots_N = W_CD.new_empty(R, D), f_N.new_empty(R), torch.empty_like(f_N)
        kernels.decode_kernel[(R,)](
            W_CD, b_dec_KD.contiguous(), target_TD, entries.starts_R, entries.columns_N, f_N.contiguous(),
            e_RD, squares_R, dots_N, R // entries.members, len(target_TD), D, **_tiles(D),
        )  # fmt: skip
        return e_RD, squares_R, dots_N

    def accumulate(self, entries: Entries, weights_N: Tensor, G_RD: Tensor, transposed: bool) -> Tensor:
        """Return what the base class says; a latent that fires on many rows is summed in parts, in their order."""
        (starts_C, rows_N, order_N), (C, D, N) = (
            entries.by_column, (entries.latents, G_RD.shape[1], len(entries.columns_N)),
        )  # fmt: skip
        G_RD, weights_N, spans = _floats(G_RD), weights_N.contiguous(), -(-N // SPAN)
        parts = torch.empty(2 * spans, D, device=G_RD.device)
        sums_CD = torch.empty(C, D, device=G_RD.device)
        if spans:
            kernels.parts_kernel[(spans,)](
                G_RD, starts_C, entries.columns_N, rows_N, order_N, weights_N, parts, N, D, SPAN, **_tiles(D)
            )
        kernels.accumulate_kernel[(C,)](
            G_RD, starts_C, rows_N, order_N, weights_N, parts, sums_CD, D, SPAN, **_tiles(D)
        )
        return sums_CD.view(entries.members, -1, D).mT.contiguous() if transposed else sums_CD

    def column_sums(self, entries: Entries, values_N: Tensor) -> Tensor:
        """Return what the base class says, in the order by column."""
        starts_C, _, order_N = entries.by_column
        return _segments(values_N, starts_C, order_N)

    def member_sums(self, entries: Entries, values_N: Tensor) -> Tensor:
        """Return what the base class says, by the sums of rows."""
        return _segments(values_N, entries.starts_R, None).view(entries.members, -1).sum(1)

    def project(self, grad: Tensor, directions: Tensor) -> None:
        """Take off each row of a gradient (..., D), in place, what is along its direction."""
        if not (grad.is_contiguous() and directions.is_contiguous() and grad.dtype == torch.float32):
            return super().project(grad, directions)
        D = grad.shape[-1]
        block = triton.next_power_of_2(D)
        kernels.project_kernel[(grad.numel() // D,)](grad, directions, D, block, num_warps=_warps(block))

    def unit(self, directions: Tensor) -> None:
        """Set each row (..., D) to norm 1, in place."""
        D = directions.shape[-1]
        block = triton.next_power_of_2(D)
        kernels.unit_kernel[(directions.numel() // D,)](directions, D, block, num_warps=_warps(block))


def adam(
    values: Tensor, grad: Tensor, mean: Tensor, square: Tensor, factors_K4: Tensor, betas: tuple[float, float],
    epsilon: float, unit: bool,
) -> None:  # fmt: skip
    """Apply Adam in place to a parameter (K, ...) and its moments; `unit`: rows (K, F, D) end with norm 1.

    factors (K, 4): rate / (1 - beta1^t), (1 - beta2^t)^(-1/2), a factor of the gradient, and 0 for a member to skip.
    """
    size = values[0].numel()
    length = values.shape[-1] if unit else min(1024, triton.next_power_of_2(size))
    block = triton.next_power_of_2(length)
    kernels.adam_kernel[(-(-size // length), len(values))](
        values, grad.contiguous(), mean, square, factors_K4, size, length, *betas, epsilon, unit, block,
        num_warps=_warps(block),
    )  # fmt: skip


@cache
def _rows_of(ks: tuple[int, ...], rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return k of each member, and where entries begin if each row has its member's k."""
    ks_K = torch.tensor(ks, dtype=torch.int32, device=device)
    sizes_R = ks_K.repeat_interleave(rows, output_size=rows * len(ks))
    return ks_K, torch.cat([sizes_R.new_zeros(1), sizes_R.cumsum(0, dtype=torch.int32)])


def _on_host(values: Tensor) -> list[int]:
    """Return a few integers, waiting for what was asked of the device before them and for nothing else."""
    if not values.is_cuda:
        return values.tolist()
    found = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    found.copy_(values.contiguous(), non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    copied.synchronize()
    return found.tolist()


def _segments(values_N: Tensor, starts: Tensor, order_N: Tensor | None) -> Tensor:
    """Return the sum of each segment of the values."""
    segments = len(starts) - 1
    out = torch.empty(segments, device=values_N.device)
    kernels.segments_kernel[(-(-segments // 32),)](
        values_N.float().contiguous(), starts, order_N, out, segments, order_N is not None, 32, 16, num_warps=4
    )
    return out


def _floats(values: Tensor) -> Tensor:
    """Return values in bf16 or fp32 without gaps."""
    return (values if values.dtype == torch.bfloat16 else values.float()).contiguous()


def _block(size: int, most: int) -> int:
    return min(triton.next_power_of_2(size), most)


def _warps(numbers: int) -> int:
    """Return how many warps a program over so many numbers has: at least 8 of them for each thread."""
    return max(1, min(16, numbers // 256))


def _tiles(D: int) -> dict[str, int]:
    """Return how many rows of D numbers a program reads at once, and its blocks."""
    block = triton.next_power_of_2(D)
    return {"TILE": max(2, min(16, 8192 // block)), "BLOCK": block, "num_warps": max(4, _warps(block))}
