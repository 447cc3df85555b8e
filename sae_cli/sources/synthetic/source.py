"""The synthetic ActivationSource: endless seeded rows whose true features are known.

Generators (source.kind), where each comes from, and what is assumed beyond it:

- three_features: the founding example; R^3, features 1 and 2 frequent and co-occurring, 3 rare.
- features: independent random features; pairs may copy (source.cooccurrence).
- chanin: Chanin et al. 2024 (arXiv 2409.14507): orthonormal features of magnitude 1; hierarchical with depth 1, where
  feature 1 fires on a share of the rows of feature 0 that keeps its overall rate.
- sharkey: Sharkey, Braun, Millidge 2022: p proportional to decay^i, strengths U(0, 1). With correlation > 0 the
  probabilities are 2 p Phi(z) with one correlated normal draw z per 256 consecutive rows (per batch in the original);
  its correlation matrix is assumed to have low rank.
- tms: Anders et al. 2024: one feature of each of two sets per draw. The directions are the symmetric solutions
  of the toy model (assumed: orthogonal sets, antipodal or polygonal inside), not those of a trained model;
  strengths U(0, 1) are assumed.
- tree: Nabeshima 2024: roots, exclusive children, lone features; orthonormal directions are assumed.
- sanity: Korznikov et al. 2026 (arXiv 2602.14111): independent, LogNormal(0, .25) strengths, E[L0] 20. The range of the
  log-uniform probabilities is assumed.
- synthbench: SynthSAEBench (arXiv 2602.14687): Zipf, copula, exclusive trees, children scaled by their parent.
  Assumed: siblings are one categorical draw given the factors (so that rates need no compensation), ranks go level by
  level, the frame is tightened by projections, and there is no constant offset.
- hierarchical: ours, for comparing penalties: Zipf roots in correlated groups, trees whose children fire
  independently given their parent.
"""

from collections.abc import Iterator
from dataclasses import asdict

import torch
from torch import Tensor

from sae_cli.config.schema_data import SourceConfig
from sae_cli.files import short_hash
from sae_cli.randomness import derive_seed
from sae_cli.sources.synthetic.directions import true_directions
from sae_cli.sources.synthetic.draws import Draws
from sae_cli.sources.synthetic.events import Events

STATISTICS_ROWS = 65_536
BLOCK = 4096


class SyntheticSource:
    """An ActivationSource that draws rows; batch t of a stream is a pure function of the settings and t."""

    def __init__(self, source: SourceConfig, data_seed: int, validation_rows: int) -> None:
        self.settings, self.data_seed, self.validation_rows = source, data_seed, validation_rows
        self.draws = Draws(source)
        self.directions_GD = true_directions(source)
        self.true_GD: Tensor | None = self.directions_GD
        self.parents_G: Tensor | None = self.draws.parents_G
        self.d_model = self.directions_GD.shape[1]
        self.fingerprint = fingerprint(source)
        rows = self.rows(STATISTICS_ROWS, derive_seed(source.seed, "statistics"))
        mean_D = rows.mean(0, dtype=torch.float64)
        square = float(rows.square().sum(1).mean(dtype=torch.float64))
        self.mean_D = mean_D.float()
        self.scale = float((self.d_model / square) ** 0.5)
        self.variance = square - float(mean_D.square().sum())

    def draw(self, count: int, seed: int) -> tuple[Tensor, Events]:
        """Draw rows (N, D) and the events they are made of."""
        generator = torch.Generator().manual_seed(seed)
        events = self.draws.events(count, generator)
        x_ND = events.activations(self.directions_GD)
        if self.settings.noise > 0:
            x_ND += self.settings.noise * torch.randn(x_ND.shape, generator=generator)
        return x_ND, events

    def rows(self, count: int, seed: int) -> Tensor:
        """Draw rows (N, D) from `seed`."""
        return self.draw(count, seed)[0]

    def batches(self, start: int, size: int) -> Iterator[Tensor]:
        """Yield training batches (B, D) from batch `start` on, without end."""
        index = start
        while True:
            yield self.rows(size, derive_seed(self.settings.seed, self.data_seed, "train", size, index))
            index += 1

    def validation(self, size: int) -> Iterator[Tensor]:
        """Yield the validation rows, drawn in fixed blocks so that `size` does not change them."""
        for x_ND, _ in self._validation_blocks():
            yield from x_ND.split(size)

    def validation_features(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of `validation(size)` with the true strengths (B, G) of each row."""
        for x_ND, events in self._validation_blocks():
            for start in range(0, len(x_ND), size):
                x_BD = x_ND[start : start + size]
                yield x_BD, events.between(start, start + len(x_BD)).strengths(len(self.directions_GD))

    def _validation_blocks(self) -> Iterator[tuple[Tensor, Events]]:
        for start in range(0, self.validation_rows, BLOCK):
            count = min(BLOCK, self.validation_rows - start)
            yield self.draw(count, derive_seed(self.settings.seed, "validation", start, count))


def fingerprint(source: SourceConfig) -> str:
    """Return the hash of the generator's settings."""
    settings = {key: value for key, value in asdict(source).items() if key != "path"}
    return short_hash({"synthetic": 2, **settings})
