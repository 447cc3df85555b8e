"""A source whose rows are brought to norm sqrt(D) one by one, as in the ProLU author's recipe."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_cli.sources import ActivationSource

STATISTICS_ROWS = 65_536


class RowNormalised:
    """An ActivationSource over another one; its mean and variance are those of the first training rows."""

    scale = 1.0

    def __init__(self, source: ActivationSource) -> None:
        self.source, self.d_model = source, source.d_model
        self.fingerprint, self.true_GD, self.parents_G = source.fingerprint, source.true_GD, source.parents_G
        rows_ND = next(self.batches(0, STATISTICS_ROWS)).double()
        self.mean_D = rows_ND.mean(0).float()
        self.variance = float((rows_ND - rows_ND.mean(0)).square().sum(1).mean())

    def batches(self, start: int, size: int) -> Iterator[Tensor]:
        """Yield training batches from `start` on, each row of norm sqrt(D)."""
        return map(self._normalise, self.source.batches(start, size))

    def validation(self, size: int) -> Iterator[Tensor]:
        """Yield the validation rows, each of norm sqrt(D)."""
        return map(self._normalise, self.source.validation(size))

    def _normalise(self, x_BD: Tensor) -> Tensor:
        return normalize(x_BD.to(torch.float32), dim=1) * self.d_model**0.5
