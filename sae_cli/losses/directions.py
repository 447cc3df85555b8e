"""What an orthogonality penalty sees of a dictionary: one member's directions at one step."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_cli.config.schema import OrthogonalityConfig
from sae_cli.sparse.functions import low


@dataclass
class Directions:
    """One member's directions at one step. M = F + G counts the frozen ones too; index F + g is frozen g."""

    W_FD: Tensor
    """Decoder rows, with gradients."""
    seed: int = 0
    """Of this step's random draws."""
    step: int = 0
    """Training step; a penalty is called on the multiples of `orthogonality.every`."""
    rows_N: Tensor | None = None
    """Indices of the directions that are penalised; None: all."""
    frozen_GD: Tensor | None = None
    """Directions that are no longer trained; only ever a neighbour."""
    x_BD: Tensor | None = None
    """The batch, scaled."""
    state: dict[str, Tensor] = field(default_factory=dict)
    """What a penalty keeps from step to step; it is part of checkpoints."""
    unit: bool = False
    """The rows have norm 1 and their gradients are projected afterwards, so neither has to be done here."""

    later: tuple[Tensor, Callable[..., None]] | None = None
    """Of unit directions that are not frozen: what came out of `AddLater`, and where pairs wait for it."""

    @cached_property
    def unit_MD(self) -> Tensor:
        """All directions at norm 1, the frozen ones last; gradients reach the first F."""
        with torch.enable_grad():  # also where a search, which has none, is the first to ask
            unit_FD = self.W_FD if self.unit else normalize(self.W_FD, dim=-1)
            if self.frozen_GD is None:
                return unit_FD
            return torch.cat([unit_FD, normalize(self.frozen_GD.detach().to(unit_FD.dtype), dim=-1)])

    @cached_property
    def low_MD(self) -> Tensor:
        """The same in the precision of products, without gradients."""
        return low(self.unit_MD.detach())

    @property
    def penalised_N(self) -> Tensor:
        """Indices of the directions that are penalised."""
        return torch.arange(len(self.W_FD), device=self.W_FD.device) if self.rows_N is None else self.rows_N

    def refresh_due(self, settings: OrthogonalityConfig) -> bool:
        """Return whether what is kept is to be renewed: on every `refresh`-th call, or if nothing is kept yet."""
        return not self.state or self.step // settings.every % settings.refresh == 0
