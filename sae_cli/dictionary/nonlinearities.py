"""Nonlinearities f = T(m, b) of a pre-activation without bias m and a bias b, with their gradients.

Each takes `m` (..., B, F) and `b` (..., 1, F) and returns latents of the shape and dtype of `m`. The bias is an fp32
parameter; it is compared in the precision of `m`, and its gradient is summed in fp32.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx


def relu(m: Tensor, b: Tensor) -> Tensor:
    """max(m + b, 0), with its ordinary gradient."""
    return torch.relu(m + b.to(m.dtype))


def prolu_gate(m: Tensor, b: Tensor) -> Tensor:
    """1[m > 0 and m + b > 0], written as m > max(0, -b): ProLU is JumpReLU with that threshold in the forward."""
    return m > (-b).clamp(min=0).to(m.dtype)


class ProLU(Function):
    """m * 1[m > 0 and m + b > 0] with a synthetic gradient for the bias (ProLU post, 2024).

    With g the upstream gradient and `gate` the indicator: under "relu" dm = g gate, db = g gate; under "ste"
    dm = (1 + m) g gate, db = m g gate.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, m: Tensor, b: Tensor, ste: bool) -> Tensor:  # type: ignore[override]
        gate = prolu_gate(m, b)
        f = torch.where(gate, m, 0)
        ctx.save_for_backward(f if ste else gate)
        ctx.ste = ste  # type: ignore[attr-defined]
        return f

    @staticmethod
    def backward(ctx: FunctionCtx, g: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        if ctx.ste:  # type: ignore[attr-defined]
            (f,) = ctx.saved_tensors  # type: ignore[attr-defined]
            db = g * f  # f is m where the gate is open and 0 elsewhere
            dm = torch.where(f > 0, g, 0) + db
        else:
            (gate,) = ctx.saved_tensors  # type: ignore[attr-defined]
            dm = db = g * gate
        return dm, db.sum(-2, keepdim=True, dtype=torch.promote_types(g.dtype, torch.float32)), None


def prolu_relu(m: Tensor, b: Tensor) -> Tensor:
    """ProLU whose gradient in m and b is ReLU's."""
    return ProLU.apply(m, b, False)


def prolu_ste(m: Tensor, b: Tensor) -> Tensor:
    """ProLU whose threshold gets a straight-through gradient with T'(x) = 1[x > 0]."""
    return ProLU.apply(m, b, True)


NONLINEARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": relu,
    "prolu_relu": prolu_relu,
    "prolu_ste": prolu_ste,
}
