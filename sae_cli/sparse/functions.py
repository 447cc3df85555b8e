"""A step's products with gradients: the dense encoder, its entries, and the reconstruction from entries."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from sae_cli.sparse.compiled import Compiled, library
from sae_cli.sparse.operators import Entries, Operators

COMPILED_FROM = 1 << 18
"""Numbers in a matrix from which compiled kernels are worth their overhead and, once per machine, their compilation."""


def operators(device: str, size: int) -> Operators:
    """Return the operators for matrices of `size` numbers: compiled kernels for large ones on a CPU, else torch's."""
    compiled = library() if device == "cpu" and size >= COMPILED_FROM else None
    return Operators() if compiled is None else Compiled(compiled)


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
    """The entries m_N of m = (x - c) W of one member, with the gradients of these alone."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, m_N: Tensor, x_BD: Tensor, centre_D: Tensor, W_DF: Tensor, entries: Entries
    ) -> Tensor:
        ctx.save_for_backward(x_BD, W_DF)
        ctx.entries = entries
        return m_N.view_as(m_N)

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, dm_N: Tensor
    ) -> tuple[None, None, Tensor | None, Tensor, None]:
        (x_BD, W_DF), entries = ctx.saved_tensors, ctx.entries
        dc_D = None
        if ctx.needs_input_grad[2]:
            dc_D = -(W_DF @ W_DF.new_zeros(entries.latents).index_add_(0, entries.columns_N, dm_N))
        return None, None, dc_D, entries.operators.accumulate(entries, dm_N, x_BD, True), None


class Reconstruct(Function):
    """mean_B ||target - f W - b||^2 of one member, f given by its entries; with it `low` f W + b - target (B, D)."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, f_N: Tensor, W_FD: Tensor, b_dec_D: Tensor, target_BD: Tensor, entries: Entries
    ) -> tuple[Tensor, Tensor]:
        e_BD, squares_B, dots_N = entries.operators.decode(entries, f_N, low(W_FD), b_dec_D, target_BD)
        ctx.save_for_backward(f_N, e_BD, dots_N)
        ctx.entries = entries
        ctx.mark_non_differentiable(e_BD)
        ctx.set_materialize_grads(False)
        return squares_B.mean(), e_BD

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, g: Tensor, _: None
    ) -> tuple[Tensor, Tensor | None, Tensor, None, None]:
        (f_N, e_BD, dots_N), entries = ctx.saved_tensors, ctx.entries
        scale = 2 * g / len(e_BD)
        wanted = ctx.needs_input_grad[1]
        dW_FD = entries.operators.accumulate(entries, f_N * scale, e_BD, False) if wanted else None
        return dots_N * scale, dW_FD, e_BD.sum(0, dtype=torch.float32) * scale, None, None
