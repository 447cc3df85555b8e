"""Listed pairs of rows: their inner products, sums over them, and the largest numbers of a tile of all products.

Compiled kernels on a CPU, Triton's where there is CUDA, else torch's operators.
"""

import ctypes
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import embedding_bag

from sae_cli.sparse.compiled import library
from sae_cli.sparse.functions import COMPILED_FROM

log = logging.getLogger(__name__)

NONE = -2.0
"""Below every cosine."""
BLOCK = 1 << 22
"""Numbers that torch's operators gather at one time."""
LOW = (torch.float32, torch.bfloat16)


def compiled(*tensors: Tensor) -> ctypes.CDLL | None:
    """Return the compiled kernels if they read these tensors, in bf16 or fp32 on a CPU, and the first is large."""
    usable = all(t.device.type == "cpu" and t.dtype in LOW for t in tensors)
    return library() if usable and tensors[0].numel() >= COMPILED_FROM else None


def on_cuda(*tensors: Tensor) -> ModuleType | None:
    """Return Triton's kernels if they read these tensors: in bf16 or fp32, on CUDA, where Triton is installed."""
    return _triton() if all(t.is_cuda and t.dtype in LOW for t in tensors) else None


@cache
def _triton() -> ModuleType | None:
    try:
        from sae_cli.sparse import triton_pairs
    except ImportError as error:
        log.info("penalties on directions are slower on this GPU: no Triton (%s)", error)
        return None
    return triton_pairs


def _call(kernels: ctypes.CDLL, name: str, *values: Tensor | int) -> None:
    """Call a kernel on as many threads as torch uses; tensors have no gaps."""
    given = (*values, torch.get_num_threads())
    arguments = [ctypes.c_void_p(v.data_ptr()) if isinstance(v, Tensor) else ctypes.c_int64(v) for v in given]
    getattr(kernels, name)(*arguments)


def dots(U_MD: Tensor, rows_N: Tensor, others_NC: Tensor) -> Tensor:
    """Return the inner products (N, C) of rows of U with the others listed for each, summed in fp32 at least."""
    (N, C), D = others_NC.shape, U_MD.shape[1]
    if (kernels := compiled(U_MD)) is not None:
        out_NC = torch.empty(N, C)
        pairs = rows_N.int().contiguous(), others_NC.int().contiguous()
        _call(kernels, "sae_pair_dots", U_MD.contiguous(), U_MD.dtype == LOW[1], D, *pairs, N, C, out_NC)
        return out_NC
    if (triton := on_cuda(U_MD)) is not None:
        return triton.dots(U_MD, rows_N, others_NC)
    at_once = max(1, BLOCK // max(1, C * D))
    parts = []
    for rows_T, others_TC in zip(rows_N.split(at_once), others_NC.split(at_once), strict=True):
        others_TCD = _wide(U_MD.index_select(0, others_TC.flatten())).view(*others_TC.shape, D)
        parts.append((_wide(U_MD.index_select(0, rows_T)).unsqueeze(1) * others_TCD).sum(2))
    return torch.cat(parts)


def add_sums(out_MD: Tensor, U_MD: Tensor, rows_N: Tensor, others_NC: Tensor, weights_NC: Tensor) -> None:
    """Add in place, for each pair (i, j) of weight w, w u_j to row i of `out` and w u_i to row j."""
    (N, C), (M, D) = others_NC.shape, U_MD.shape
    if (kernels := compiled(out_MD, U_MD, weights_NC)) is not None:
        pairs = rows_N.int().contiguous(), others_NC.int().contiguous(), weights_NC.contiguous()
        _call(kernels, "sae_pair_sums", U_MD.contiguous(), U_MD.dtype == LOW[1], M, D, *pairs, N, C, out_MD)
        return
    starts_M, partners_E, weights_E = by_target(M, rows_N, others_NC, weights_NC)
    if (triton := on_cuda(out_MD, U_MD, weights_NC)) is not None:
        triton.add_sums(out_MD, U_MD, starts_M, partners_E, weights_E)
    else:
        out_MD += embedding_bag(partners_E, _wide(U_MD), starts_M[:-1], mode="sum", per_sample_weights=weights_E)


def by_target(M: int, rows_N: Tensor, others_NC: Tensor, weights_NC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return pairs both ways round by the row they add to: where each begins (M + 1), the other row, and the weight."""
    rows_E, others_E = rows_N.repeat_interleave(others_NC.shape[1]), others_NC.flatten()
    targets_E, order_E = torch.cat([rows_E, others_E]).sort(stable=True)
    starts_M = torch.searchsorted(targets_E, torch.arange(M + 1, device=targets_E.device))
    return starts_M, torch.cat([others_E, rows_E])[order_E], weights_NC.flatten().repeat(2)[order_E]


class PairDots(Function):
    """`dots` of rows of U, read in another precision, with gradients for U; cost N C D either way.

    With `later` the gradient is not made: what `add_sums` needs for it is put there, for `AddLater`.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, U: Tensor, read_MD: Tensor, rows_N: Tensor, others_NC: Tensor, later: Callable[..., None] | None
    ) -> Tensor:
        ctx.save_for_backward(read_MD, rows_N, others_NC)
        ctx.later, ctx.dtype = later, U.dtype
        return dots(read_MD, rows_N, others_NC)

    @staticmethod
    def backward(ctx: Any, upstream_NC: Tensor) -> tuple[Tensor | None, None, None, None, None]:  # type: ignore[override]
        read_MD, rows_N, others_NC = ctx.saved_tensors
        if ctx.later is not None:
            ctx.later(read_MD, rows_N, others_NC, upstream_NC)
            return None, None, None, None, None
        grad_MD = torch.zeros_like(read_MD, dtype=ctx.dtype)
        add_sums(grad_MD, read_MD, rows_N, others_NC, upstream_NC)
        return grad_MD, None, None, None, None


class AddLater(Function):
    """Rows (K, M, D) as they are. Pairs that were put off are added to the gradient of all else that uses the rows.

    This is done in place: it takes no matrix and no pass of its own. `pairs` holds members and arguments of `add_sums`.
    """

    @staticmethod
    def forward(ctx: Any, W_KMD: Tensor, pairs: list[tuple[int, tuple[Tensor, ...]]]) -> Tensor:  # type: ignore[override]
        ctx.pairs = pairs
        return W_KMD.view_as(W_KMD)

    @staticmethod
    def backward(ctx: Any, grad_KMD: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        grad_KMD = grad_KMD.contiguous()
        for member, (read_MD, rows_N, others_NC, weights_NC) in ctx.pairs:
            add_sums(grad_KMD[member], read_MD, rows_N, others_NC, weights_NC)
        return grad_KMD, None


@dataclass
class Largest:
    """The C largest numbers seen per row, descending, and whose they are."""

    values_NC: Tensor
    indices_NC: Tensor

    @classmethod
    def of_none(cls, rows: int, count: int, like: Tensor) -> Self:
        """Return what is kept before anything is seen; numbers are in fp32 at least."""
        return cls(_wide(like.new_full((rows, count), NONE)), like.new_zeros(rows, count, dtype=torch.int64))

    @property
    def count(self) -> int:
        """How many are kept per row."""
        return self.values_NC.shape[1]

    def part(self, rows: slice) -> "Largest":
        """Return a view of some rows."""
        return Largest(self.values_NC[rows], self.indices_NC[rows])

    def keep(self, c_NS: Tensor, indices_S: Tensor) -> None:
        """See more numbers of each row, which are those of `indices_S`."""
        found = torch.cat([self.values_NC, c_NS.to(self.values_NC.dtype)], 1).topk(self.count, dim=1)
        indices_NX = torch.cat([self.indices_NC, indices_S.expand(len(c_NS), -1)], 1)
        self.values_NC.copy_(found.values)
        self.indices_NC.copy_(indices_NX.gather(1, found.indices))


def see(c_TS: Tensor, rows_T: Tensor, columns_S: Tensor, signed: bool, of_T: Largest, of_S: Largest | None) -> None:
    """Show a tile of cosines of rows with columns to what keeps the largest of each row, and of each column.

    Cosines of a direction with itself do not count; unless `signed`, absolute ones do.
    """
    if (kernels := compiled(c_TS)) is not None:
        kept_T, kept_S = ((0, 0, 0) if of is None else (of.count, of.values_NC, of.indices_NC) for of in (of_T, of_S))
        tile = (
            c_TS.contiguous(),
            c_TS.dtype == LOW[1],
            *c_TS.shape,
            not signed,
            rows_T.contiguous(),
            columns_S.contiguous(),
        )
        _call(kernels, "sae_keep_largest", *tile, *kept_T, *kept_S)
        return
    c_TS = (c_TS if signed else c_TS.abs()).masked_fill(rows_T.unsqueeze(1) == columns_S, NONE)
    of_T.keep(c_TS, columns_S)
    if of_S is not None:
        of_S.keep(c_TS.T, rows_T)


def _wide(values: Tensor) -> Tensor:
    return values.float() if values.dtype == LOW[1] else values
