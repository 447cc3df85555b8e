"""Synthetic activations with known true features, endless and seeded.

x = sum_g z_g s_g w_g + noise, where z_g says whether feature g fires, s_g is its strength and w_g its unit direction.
"""

from collections.abc import Iterator
from dataclasses import asdict

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_cli.config.schema import SourceConfig
from sae_cli.files import short_hash
from sae_cli.randomness import derive_seed

STATISTICS_ROWS = 65_536
BLOCK = 4096


def true_directions(source: SourceConfig) -> Tensor:
    """Return unit directions (G, D): the standard basis of R^3 for three_features, random or orthonormal otherwise."""
    if source.kind == "three_features":
        return torch.eye(3)
    generator = torch.Generator().manual_seed(derive_seed(source.seed, "directions"))
    directions_GD = torch.randn(source.features, source.width, generator=generator)
    if source.orthogonal:
        return torch.linalg.qr(directions_GD.T).Q.T.contiguous()
    return normalize(directions_GD, dim=1)


def firing_probabilities(source: SourceConfig) -> Tensor:
    """Return each feature's probability (G,): frequent, frequent, rare for three_features, else Zipf's law."""
    if source.kind == "three_features":
        return torch.tensor([source.probability, source.probability, source.rare])
    return source.probability / torch.arange(1, source.features + 1) ** source.zipf


class SyntheticSource:
    """An ActivationSource that draws rows; batch t of a stream is a pure function of the settings and t."""

    def __init__(self, source: SourceConfig, data_seed: int, validation_rows: int) -> None:
        self.settings, self.data_seed, self.validation_rows = source, data_seed, validation_rows
        self.true_GD: Tensor | None = true_directions(source)
        self.directions_GD = self.true_GD
        self.probabilities_G = firing_probabilities(source)
        self.d_model = self.directions_GD.shape[1]
        self.fingerprint = fingerprint(source)
        rows = self.rows(STATISTICS_ROWS, derive_seed(source.seed, "statistics")).double()
        self.mean_D = rows.mean(0).float()
        self.scale = float((self.d_model / rows.square().sum(1).mean()).sqrt())
        self.variance = float((rows - rows.mean(0)).square().sum(1).mean())

    def fire(self, count: int, generator: torch.Generator) -> Tensor:
        """Return which features fire (N, G): independent draws, then the second of each pair copies on some rows."""
        fires_NG = torch.rand(count, len(self.probabilities_G), generator=generator) < self.probabilities_G
        if self.settings.cooccurrence > 0:
            partners = fires_NG[:, : fires_NG.shape[1] // 2 * 2].view(count, -1, 2)
            copies = torch.rand(partners.shape[:2], generator=generator) < self.settings.cooccurrence
            partners[..., 1] = torch.where(copies, partners[..., 0], partners[..., 1])
        return fires_NG

    def rows(self, count: int, seed: int) -> Tensor:
        """Draw rows (N, D) from `seed`."""
        settings, generator = self.settings, torch.Generator().manual_seed(seed)
        strength_NG = self.fire(count, generator) * settings.magnitude
        if settings.magnitude_spread > 0:
            spread = 2 * torch.rand(strength_NG.shape, generator=generator) - 1
            strength_NG = strength_NG * (1 + settings.magnitude_spread * spread)
        x_ND = strength_NG @ self.directions_GD
        if settings.noise > 0:
            x_ND += settings.noise * torch.randn(x_ND.shape, generator=generator)
        return x_ND

    def batches(self, start: int, size: int) -> Iterator[Tensor]:
        """Yield training batches (B, D) from batch `start` on, without end."""
        index = start
        while True:
            yield self.rows(size, derive_seed(self.settings.seed, self.data_seed, "train", size, index))
            index += 1

    def validation(self, size: int) -> Iterator[Tensor]:
        """Yield the validation rows, drawn in fixed blocks so that `size` does not change them."""
        for start in range(0, self.validation_rows, BLOCK):
            count = min(BLOCK, self.validation_rows - start)
            yield from self.rows(count, derive_seed(self.settings.seed, "validation", start, count)).split(size)


def fingerprint(source: SourceConfig) -> str:
    """Return the hash of the generator's settings."""
    settings = {key: value for key, value in asdict(source).items() if key != "path"}
    return short_hash({"synthetic": 1, **settings})
