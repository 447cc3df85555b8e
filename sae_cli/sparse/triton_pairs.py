"""Triton kernels for listed pairs of rows, and for the two nearest others of rows by a streamed search.

Numbers are summed in fp32 in an order that follows from shapes and lists alone, without atomics: a result does not
change from run to run. Written for CUDA; what the tests run is Triton's interpreter.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def dots_kernel(U, rows, others, out, D, C: tl.constexpr, BLOCK: tl.constexpr):
    """out[n, c] = <row rows[n] of U, row others[n, c] of U>; one program per n."""
    n = tl.program_id(0).to(tl.int64)
    i = tl.load(rows + n)
    d = tl.arange(0, BLOCK)
    for c in range(C):
        j = tl.load(others + n * C + c)
        total = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, D, BLOCK):
            inside = start + d < D
            u = tl.load(U + i * D + start + d, mask=inside, other=0.0).to(tl.float32)
            v = tl.load(U + j * D + start + d, mask=inside, other=0.0).to(tl.float32)
            total += u * v
        tl.store(out + n * C + c, tl.sum(total, 0))


@triton.jit
def sums_kernel(U, starts, partners, weights, out, D, BLOCK: tl.constexpr):
    """out[m] += sum of weight times row of U over the pairs of row m; one program per m and BLOCK numbers of it."""
    m = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for pair in range(tl.load(starts + m), tl.load(starts + m + 1)):
        weight = tl.load(weights + pair + tl.zeros_like(d))
        j = tl.load(partners + pair)
        # a pair without weight, as most are under a hinge, is not read
        total += weight * tl.load(U + j * D + d, mask=(d < D) & (weight != 0), other=0.0).to(tl.float32)
    tl.store(out + m * D + d, tl.load(out + m * D + d, mask=d < D) + total, mask=d < D)


@triton.jit
def nearest_kernel(
    Q, K, q_ids, k_ids, values, found, N, S, D,
    ABSOLUTE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """The two largest (absolute) products of each row of Q with rows of K of another id, and these ids.

    One program keeps the running largest of ROWS rows while all rows of K stream by, COLUMNS at a time.
    """
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, DEPTH)
    own = tl.load(q_ids + n, mask=n < N, other=-1)
    first, second = tl.full((ROWS,), -2.0, tl.float32), tl.full((ROWS,), -2.0, tl.float32)
    first_at, second_at = tl.zeros((ROWS,), tl.int64), tl.zeros((ROWS,), tl.int64)
    q_rows = Q + n.to(tl.int64)[:, None] * D
    for start in range(0, S, COLUMNS):
        s = start + tl.arange(0, COLUMNS)
        k_rows = K + s.to(tl.int64)[None, :] * D
        c = tl.zeros((ROWS, COLUMNS), tl.float32)
        for depth in range(0, D, DEPTH):
            inside = depth + d < D
            q = tl.load(q_rows + (depth + d)[None, :], mask=(n < N)[:, None] & inside[None, :], other=0.0)
            k = tl.load(k_rows + (depth + d)[:, None], mask=inside[:, None] & (s < S)[None, :], other=0.0)
            c = tl.dot(q, k, c, input_precision="ieee")
        if ABSOLUTE:
            c = tl.abs(c)
        ids = tl.load(k_ids + s, mask=s < S, other=-1)
        c = tl.where((s < S)[None, :] & (own[:, None] != ids[None, :]), c, -2.0)
        for _ in tl.static_range(2):
            largest = tl.max(c, 1)
            place = tl.min(tl.where(c == largest[:, None], s[None, :], S), 1)  # of equal ones the first
            at = tl.load(k_ids + place, mask=place < S, other=0)
            ahead, between = largest > first, largest > second
            second_at = tl.where(ahead, first_at, tl.where(between, at, second_at))
            second = tl.where(ahead, first, tl.where(between, largest, second))
            first_at, first = tl.where(ahead, at, first_at), tl.where(ahead, largest, first)
            c = tl.where(s[None, :] == place[:, None], -2.0, c)
    tl.store(values + n * 2, first, mask=n < N)
    tl.store(values + n * 2 + 1, second, mask=n < N)
    tl.store(found + n * 2, first_at, mask=n < N)
    tl.store(found + n * 2 + 1, second_at, mask=n < N)


def dots(U_MD: Tensor, rows_N: Tensor, others_NC: Tensor) -> Tensor:
    """Return the inner products (N, C) of rows of U with the others listed for each."""
    (N, C), D = others_NC.shape, U_MD.shape[1]
    out_NC = torch.empty(N, C, device=U_MD.device)
    if N:
        dots_kernel[(N,)](U_MD.contiguous(), rows_N, others_NC.contiguous(), out_NC, D, C, _block(D))
    return out_NC


def add_sums(out_MD: Tensor, U_MD: Tensor, starts_M: Tensor, partners_E: Tensor, weights_E: Tensor) -> None:
    """Add in place to each row the sum over its pairs, which begin at `starts` (M + 1), of weight times partner."""
    M, D = U_MD.shape
    grid = (M, triton.cdiv(D, _block(D)))
    sums_kernel[grid](U_MD.contiguous(), starts_M, partners_E, weights_E, out_MD, D, _block(D))


def nearest(
    queries_ND: Tensor, keys_SD: Tensor, rows_N: Tensor, columns_S: Tensor, signed: bool
) -> tuple[Tensor, Tensor]:
    """Return the two largest cosines (N, 2) of queries with keys of other ids, and whose they are; memory N.

    The cosine is -2 where there is no such key.
    """
    (N, D), S, device = queries_ND.shape, len(keys_SD), queries_ND.device
    values_N2, found_N2 = torch.empty(N, 2, device=device), torch.empty(N, 2, dtype=torch.int64, device=device)
    if N:
        tensors = queries_ND.contiguous(), keys_SD.contiguous(), rows_N, columns_S, values_N2, found_N2
        nearest_kernel[(triton.cdiv(N, 64),)](*tensors, N, S, D, not signed, 64, 128, 64, num_warps=8)
    return values_N2, found_N2


def _block(width: int) -> int:
    return min(1024, triton.next_power_of_2(width))
