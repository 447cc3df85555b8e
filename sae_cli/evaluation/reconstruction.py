"""Reconstruction, sparsity and firing rates of one SAE, from fp64 sums over streamed batches."""

import math

import numpy as np
import torch
from torch import Tensor

DENSITY_EDGES = np.linspace(-8.0, 0.0, 81)
"""Bin edges of the log10 density histogram."""


def rows_within(memory_bytes: int, latents: int, width: int, features: int = 0) -> int:
    """Return how many rows at a time an SAE can be measured on, at least 1.

    A row takes some six numbers per latent (and per true feature) and eight in double precision per dimension.
    """
    return max(1, memory_bytes // (24 * (latents + features) + 64 * width))


class Reconstruction:
    """Sums over the rows seen so far; how the rows are cut into batches does not change the result.

    Every mean is over rows. FVU divides by the variance of these same rows about their own mean, so it is invariant
    to scale and shift of the data (given an SAE that follows).
    """

    def __init__(self, width: int, latents: int, device: torch.device | str = "cpu") -> None:
        self.rows = 0
        self.fired_F = torch.zeros(latents, dtype=torch.int64, device=device)
        """Rows on which each latent fired."""
        self._sums = torch.zeros(6, dtype=torch.float64, device=device)
        self._offset_D: Tensor | None = None
        self._centred_D = torch.zeros(width, dtype=torch.float64, device=device)
        self._centred_square = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, x_BD: Tensor, acts_BF: Tensor, x_hat_BD: Tensor) -> None:
        """Add a batch: inputs and reconstructions in raw units, activities of the latents as the SAE gives them."""
        x_BD, x_hat_BD = x_BD.double(), x_hat_BD.double()
        if self._offset_D is None:
            # Any offset gives the same variance; one near the mean keeps the subtraction at the end accurate.
            self._offset_D = x_BD.mean(0)
        centred_BD = x_BD - self._offset_D
        self.rows += len(x_BD)
        self.fired_F += (acts_BF != 0).sum(0)
        size_BF = acts_BF.abs()
        self._centred_D += centred_BD.sum(0)
        self._centred_square += centred_BD.square().sum()
        self._sums += torch.stack(
            [
                size_BF.sum(dtype=torch.float64),
                size_BF.sqrt().sum(dtype=torch.float64),
                (x_BD - x_hat_BD).square().sum(),
                x_BD.square().sum(),
                x_hat_BD.square().sum(),
                (x_BD * x_hat_BD).sum(),
            ]
        )

    def metrics(self) -> dict[str, float]:
        """Return the `reconstruction` section (docs/eval-format.md); a ratio with a zero denominator is NaN."""
        l1, sqrt_l1, error, square, square_hat, product = self._sums.tolist()
        variance = float(self._centred_square - self._centred_D.square().sum() / max(self.rows, 1))
        fvu = ratio(error, variance)
        return {
            "l0": ratio(float(self.fired_F.sum()), self.rows),
            "l1": ratio(l1, self.rows),
            "sqrt_l1": ratio(sqrt_l1, self.rows),
            "mse": ratio(error, self.rows),
            "nmse": ratio(error, square),
            "fvu": fvu,
            "explained_variance": 1 - fvu,
            "shrinkage": ratio(square_hat, product),
        }

    def latents(self) -> dict[str, object]:
        """Return the `latents` section (docs/eval-format.md)."""
        density_F = self.fired_F.cpu().numpy() / max(self.rows, 1)
        alive_F = density_F[density_F > 0]
        counts, _ = np.histogram(np.log10(alive_F), bins=DENSITY_EDGES)
        return {
            "dead": 1 - len(alive_F) / len(density_F),
            "dead_over_rows": self.rows,
            "dense_1pct": float((density_F > 0.01).mean()),
            "dense_10pct": float((density_F > 0.1).mean()),
            "density_histogram": {"edges": DENSITY_EDGES.round(6).tolist(), "counts": counts.tolist()},
        }


def ratio(numerator: float, denominator: float) -> float:
    """Return the quotient, NaN where it is undefined."""
    return numerator / denominator if denominator else math.nan
