"""A step's products with gradients: the dense encoder, its entries, and the reconstruction from entries."""

import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from sae_cli.sparse.compiled import Compiled, library
from sae_cli.sparse.operators import Entries, Operators

log = logging.getLogger(__name__)

COMPILED_FROM = 1 << 18
"""Numbers in a matrix from which compiled kernels are worth their overhead and, once per machine, their compilation."""


def operators(device: str, size: int) -> Operators:
    """Return the operators for matrices of `size` numbers: Triton's kernels on CUDA, else compiled ones or torch's.

    Compiled kernels are taken for large matrices on a CPU. On CUDA, torch's operators serve rows of parameters only.
    """
    if device.startswith("cuda"):
        return _triton()
    compiled = library() if device == "cpu" and size >= COMPILED_FROM else None
    return Operators() if compiled is None else Compiled(compiled)


@cache
def _triton() -> Operators:
    try:
        from sae_cli.sparse.triton_operators import Triton
    except ImportError as error:
        log.info("on this GPU all products are dense, and steps slower: no Triton (%s)", error)
        return Operators()
    return Triton()


def low(values: Tensor) -> Tensor:
    """Return values in the precision of products: autocast's where that is on."""
    device = values.device.type
    return values.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else values


class Encode(Function):
    """m = (x - c) W (K, B, F) of `low` x - c. dc = -(sum over rows of dm) W^T, which takes no product of B rows."""

    @staticmethod
    def forward(ctx: Any, x_KBD: Tensor, centre_KD: Tensor, W_KDF: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x_KBD, W_KDF)
        return x_KBD @ low(W_KDF)

    @staticmethod
    def backward(ctx: Any, dm_KBF: Tensor) -> tuple[None, Tensor | None, Tensor]:  # type: ignore[override]
        x_KBD, W_KDF = ctx.saved_tensors
        dm_KBF = dm_KBF.to(x_KBD.dtype)
        dc_KD = None
        if ctx.needs_input_grad[1]:
            ones_KB = dm_KBF.new_ones(len(dm_KBF), 1, dm_KBF.shape[1])
            dc_KD = -((ones_KB @ dm_KBF).to(W_KDF.dtype) @ W_KDF.mT).squeeze(1)
        return None, dc_KD, (x_KBD.mT @ dm_KBF).to(W_KDF.dtype)


class EncodeEntries(Function):
    """The entries m_N of m = (x - c) W, with the gradients of these alone."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, m_N: Tensor, x_KBD: Tensor, centre_KD: Tensor, W_KDF: Tensor, entries: Entries
    ) -> Tensor:
        ctx.save_for_backward(x_KBD, W_KDF)
        ctx.entries = entries
        return m_N.view_as(m_N)

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, dm_N: Tensor
    ) -> tuple[None, None, Tensor | None, Tensor, None]:
        (x_KBD, W_KDF), entries = ctx.saved_tensors, ctx.entries
        dc_KD = None
        if ctx.needs_input_grad[2]:
            sums_KF1 = entries.operators.column_sums(entries, dm_N).view(len(W_KDF), -1, 1)
            dc_KD = -(W_KDF @ sums_KF1).squeeze(2)
        return None, None, dc_KD, entries.operators.accumulate(entries, dm_N, x_KBD.flatten(0, 1), True), None


class AtEntries(Function):
    """What a vector (latents of all members,) has for the latent of each entry (N,)."""

    @staticmethod
    def forward(ctx: Any, vector: Tensor, entries: Entries) -> Tensor:  # type: ignore[override]
        ctx.entries = entries
        return vector.index_select(0, entries.columns_N)

    @staticmethod
    def backward(ctx: Any, g_N: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.entries.operators.column_sums(ctx.entries, g_N), None


class MemberSums(Function):
    """The sum over each member's entries (K,)."""

    @staticmethod
    def forward(ctx: Any, values_N: Tensor, entries: Entries) -> Tensor:  # type: ignore[override]
        ctx.entries = entries
        return entries.operators.member_sums(entries, values_N)

    @staticmethod
    def backward(ctx: Any, g_K: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.entries.each(g_K).expand(len(ctx.entries.columns_N)), None


class Reconstruct(Function):
    """mean_B ||target - f W - b||^2 (K,), f given by its entries; with it `low` f W + b - target, a row for each."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, f_N: Tensor, W_CD: Tensor, b_dec_KD: Tensor, target_TD: Tensor, entries: Entries
    ) -> tuple[Tensor, Tensor]:
        e_RD, squares_R, dots_N = entries.operators.decode(entries, f_N, low(W_CD), b_dec_KD, target_TD)
        ctx.save_for_backward(f_N, e_RD, dots_N)
        ctx.entries = entries
        ctx.mark_non_differentiable(e_RD)
        ctx.set_materialize_grads(False)
        return squares_R.view(entries.members, -1).mean(1), e_RD

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, g_K: Tensor, _: None
    ) -> tuple[Tensor, Tensor | None, Tensor, None, None]:
        (f_N, e_RD, dots_N), entries = ctx.saved_tensors, ctx.entries
        e_KBD = e_RD.view(entries.members, -1, e_RD.shape[1])
        scale_K = 2 * g_K / e_KBD.shape[1]
        scale_N = entries.each(scale_K)
        wanted = ctx.needs_input_grad[1]
        dW_CD = entries.operators.accumulate(entries, f_N * scale_N, e_RD, False) if wanted else None
        db_KD = e_KBD.sum(1, dtype=torch.float32) * scale_K.unsqueeze(1)
        return dots_N * scale_N, dW_CD, db_KD, None, None
