"""Listed pairs of rows: their inner products, sums over them, and the largest numbers of a tile of all products.

Compiled kernels on a CPU, Triton's where there is CUDA, else torch's operators.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import embedding_bag

from sae_cli.sparse.compiled import call, library

NONE = -2.0
"""Below every cosine."""
BLOCK = 1 << 22
"""Numbers that torch's operators gather at one time."""


def kernels(*tensors: Tensor) -> ctypes.CDLL | None:
    """Return the compiled kernels if they read these tensors: in bf16 or fp32, on a CPU."""
    usable = all(t.device.type == "cpu" and t.dtype in (torch.float32, torch.bfloat16) for t in tensors)
    return library() if usable else None


def dots(U_MD: Tensor, rows_N: Tensor, others_NC: Tensor) -> Tensor:
    """Return the inner products (N, C) of rows of U with the others listed for each, summed in fp32 at least."""
    (N, C), D = others_NC.shape, U_MD.shape[1]
    found = kernels(U_MD)
    if found is not None:
        U_MD, out_NC = U_MD.contiguous(), torch.empty(N, C)
        pairs = rows_N.int(), others_NC.int().contiguous()
        call(found, "sae_pair_dots", U_MD, U_MD.dtype == torch.bfloat16, D, *pairs, N, C, threads(), out_NC)
        return out_NC
    at_once = max(1, BLOCK // (C * D))
    parts = []
    for rows_T, others_TC in zip(rows_N.split(at_once), others_NC.split(at_once), strict=True):
        others_TCD = wide(U_MD.index_select(0, others_TC.flatten())).view(*others_TC.shape, D)
        parts.append(torch.einsum("td,tcd->tc", wide(U_MD.index_select(0, rows_T)), others_TCD))
    return torch.cat(parts)


def sums(U_MD: Tensor, rows_N: Tensor, others_NC: Tensor, weights_NC: Tensor) -> Tensor:
    """Return (M, D): for each pair (i, j) of weight w, w u_j is added to row i and w u_i to row j."""
    (N, C), (M, D) = others_NC.shape, U_MD.shape
    found = kernels(U_MD, weights_NC)
    if found is not None:
        U_MD, out_MD, weights_NC = U_MD.contiguous(), torch.empty(M, D), weights_NC.contiguous()
        pairs = rows_N.int(), others_NC.int().contiguous(), weights_NC
        call(found, "sae_pair_sums", U_MD, U_MD.dtype == torch.bfloat16, M, D, *pairs, N, C, threads(), out_MD)
        return out_MD
    starts_M, partners_E, weights_E = by_target(M, rows_N, others_NC, weights_NC)
    return embedding_bag(partners_E, wide(U_MD), starts_M[:-1], mode="sum", per_sample_weights=weights_E)


def by_target(M: int, rows_N: Tensor, others_NC: Tensor, weights_NC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return pairs both ways round by the row they add to: where each begins (M + 1), the other row, and the weight."""
    rows_E, others_E = rows_N.repeat_interleave(others_NC.shape[1]), others_NC.flatten()
    targets_E, order_E = torch.cat([rows_E, others_E]).sort(stable=True)
    starts_M = torch.searchsorted(targets_E, torch.arange(M + 1, device=targets_E.device))
    return starts_M, torch.cat([others_E, rows_E])[order_E], weights_NC.flatten().repeat(2)[order_E]


class PairDots(Function):
    """`dots` with gradients; memory and cost N C D either way, and no product of rows that are not listed."""

    @staticmethod
    def forward(ctx: Any, U_MD: Tensor, rows_N: Tensor, others_NC: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(U_MD, rows_N, others_NC)
        return dots(U_MD, rows_N, others_NC)

    @staticmethod
    def backward(ctx: Any, upstream_NC: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return sums(*ctx.saved_tensors, upstream_NC), None, None


class Largest:
    """The C largest numbers seen per row, and whose they are; descending, of equal ones the first seen."""

    def __init__(self, rows: int, count: int, like: Tensor) -> None:
        wider = torch.float64 if like.dtype == torch.float64 else torch.float32
        self.values_NC = torch.full((rows, count), NONE, dtype=wider, device=like.device)
        self.indices_NC = torch.zeros(rows, count, dtype=torch.int64, device=like.device)

    def part(self, rows: slice) -> "Largest":
        """Return a view of some rows."""
        made = object.__new__(Largest)
        made.values_NC, made.indices_NC = self.values_NC[rows], self.indices_NC[rows]
        return made

    def keep(self, c_NS: Tensor, indices_S: Tensor) -> None:
        """See more numbers of each row, which are those of `indices_S`."""
        found = torch.cat([self.values_NC, c_NS.to(self.values_NC.dtype)], 1).topk(self.values_NC.shape[1], dim=1)
        indices_NX = torch.cat([self.indices_NC, indices_S.expand(len(c_NS), -1)], 1)
        self.values_NC.copy_(found.values)
        self.indices_NC.copy_(indices_NX.gather(1, found.indices))


def see(c_TS: Tensor, rows_T: Tensor, columns_S: Tensor, signed: bool, of_T: Largest, of_S: Largest | None) -> None:
    """Show a tile of cosines of rows with columns to what keeps the largest of each row, and of each column.

    Cosines of a direction with itself do not count; unless `signed`, absolute ones do. The tile may be changed.
    """
    found = kernels(c_TS)
    if found is not None:
        (T, S), none = c_TS.shape, (0, 0, 0)
        ids = rows_T, columns_S
        kept_S = none if of_S is None else (of_S.values_NC.shape[1], of_S.values_NC, of_S.indices_NC)
        kept_T = of_T.values_NC.shape[1], of_T.values_NC, of_T.indices_NC
        narrow = c_TS.dtype == torch.bfloat16
        call(found, "sae_keep_largest", c_TS.contiguous(), narrow, T, S, not signed, *ids, *kept_T, *kept_S, threads())
        return
    c_TS = c_TS if signed else c_TS.abs()
    c_TS = c_TS.masked_fill(rows_T.unsqueeze(1) == columns_S, NONE)
    of_T.keep(c_TS, columns_S)
    if of_S is not None:
        of_S.keep(c_TS.T, rows_T)


def threads() -> int:
    """Return how many threads a compiled kernel takes."""
    return torch.get_num_threads()


def wide(values: Tensor) -> Tensor:
    """Return values in fp32 at least."""
    return values.float() if values.dtype == torch.bfloat16 else values
