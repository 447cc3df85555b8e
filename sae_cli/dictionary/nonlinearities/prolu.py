"""ReLU and ProLU, f = m 1[m > 0 and m + b > 0] (ProLU post, 2024), with its families of synthetic gradients."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from sae_cli.config.combinations import ONE_SIDED
from sae_cli.config.schema import SAEConfig
from sae_cli.dictionary.nonlinearities.base import Nonlinearity, Parameters, Settings, keep_where_positive, sum_rows

STE: dict[str, Callable[[Tensor], Tensor]] = {
    "step": lambda x: (x > 0).to(x.dtype),
    "window": lambda x: ((x > 0) & (x < 1)).to(x.dtype),
    "clamp_0_1": lambda x: x.clamp(0, 1),
    "clamp_1_1": lambda x: x.clamp(-1, 1),
    "one": torch.ones_like,
    "exp": torch.exp,
}
"""Straight-through stand-ins T'(x) for the derivative of the threshold 1[x > 0] at x = m + b."""


class ReLU(Nonlinearity):
    """max(m + b, 0), with its ordinary gradient."""

    def latents(self, m: Tensor, P: Parameters, settings: Settings) -> Tensor:
        return torch.relu(m + P["b_enc"].to(m.dtype))

    def reach(self, settings: SAEConfig) -> float:
        return 0.0


class _ProLU(Function):
    """ProLU with dm = g (gate + alpha_m s), db = g ((1 - alpha_b) gate + alpha_b s), where s = m 1[m > 0] T'(m + b).

    With T' = 1[x > 0], s is the latent itself and the gradients vanish where the gate is shut.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, m: Tensor, b: Tensor, alpha_m: float, alpha_b: float, ste: str
    ) -> Tensor:
        f = keep_where_positive(m, m - (-b).clamp(min=0).to(m.dtype))
        ctx.save_for_backward(f, *(() if ste == "step" else (m, b)))
        ctx.settings = alpha_m, alpha_b, ste
        return f

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # type: ignore[override]
        f, *inputs = ctx.saved_tensors  # f is m where the gate is open, 0 elsewhere
        alpha_m, alpha_b, ste = ctx.settings
        gated = keep_where_positive(g, f)
        if not alpha_m and not alpha_b:
            return gated, sum_rows(gated), None, None, None
        if inputs:
            m, b = inputs
            through = g * m.clamp(min=0) * STE[ste](m + b.to(m.dtype))
        else:
            through = g * f
        dm = gated + (through if alpha_m == 1 else alpha_m * through) if alpha_m else gated
        db = through if alpha_b == 1 else torch.lerp(gated, through, alpha_b)
        return dm, sum_rows(db), None, None, None


class ProLU(Nonlinearity):
    """m where m > 0 and m + b > 0: in the forward, JumpReLU with threshold max(0, -b).

    `alpha_m`, `alpha_b`: how much of the straight-through gradient goes to m and to b; 0 and 0 give ReLU's gradients
    (dm = db = g gate), 1 and 1 those of the post (dm = (1 + m) g gate, db = m g gate); None: `sae.alpha_m`, `_b`.
    """

    additive = False

    def __init__(self, alpha_m: float | None = None, alpha_b: float | None = None) -> None:
        self.alpha_m, self.alpha_b = alpha_m, alpha_b

    def latents(self, m: Tensor, P: Parameters, settings: Settings) -> Tensor:
        return self._apply(m, P["b_enc"], settings[0])

    def _apply(self, m: Tensor, b: Tensor, sae: SAEConfig) -> Tensor:
        alpha_m = sae.alpha_m if self.alpha_m is None else self.alpha_m
        alpha_b = sae.alpha_b if self.alpha_b is None else self.alpha_b
        return _ProLU.apply(m, b, alpha_m, alpha_b, sae.ste)

    def offset(self, P: Parameters) -> Tensor:
        return P["b_enc"].clamp(max=0)

    def reach(self, settings: SAEConfig) -> float | None:
        """Return 0, unless a straight-through gradient reaches shut latents."""
        return 0.0 if settings.ste in ONE_SIDED else None


class ProLUHybrid(ProLU):
    """ProLU where b <= 0, ReLU where b > 0 (in ProLU a positive bias has no effect); each part has its own gradient."""

    def latents(self, m: Tensor, P: Parameters, settings: Settings) -> Tensor:
        b = P["b_enc"]
        return torch.where(b > 0, torch.relu(m + b.to(m.dtype)), self._apply(m, b, settings[0]))

    def offset(self, P: Parameters) -> Tensor:
        """Return b: on either side of b = 0 the gate opens at m + b = 0."""
        return P["b_enc"]
