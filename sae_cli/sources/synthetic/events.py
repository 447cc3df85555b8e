"""Which features fire, as a sparse list: a row costs its few active features, not all G of them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


@dataclass
class Events:
    """On row `row_M[m]` feature `feature_M[m]` fires with strength `strength_M[m]` > 0; no pair occurs twice."""

    rows: int
    """Number of rows N, those without an event included."""
    row_M: Tensor
    feature_M: Tensor
    strength_M: Tensor

    def by_row(self) -> "Events":
        """Return the events in the order of their rows."""
        order_M = torch.argsort(self.row_M, stable=True)
        return Events(self.rows, self.row_M[order_M], self.feature_M[order_M], self.strength_M[order_M])

    def between(self, start: int, stop: int) -> "Events":
        """Return the events of rows start..stop-1, renumbered from 0; needs the order of rows."""
        first, last = torch.searchsorted(self.row_M, torch.tensor([start, stop])).tolist()
        part = slice(first, last)
        return Events(stop - start, self.row_M[part] - start, self.feature_M[part], self.strength_M[part])

    def activations(self, directions_GD: Tensor) -> Tensor:
        """Return sum_g s_g w_g for each row (N, D); needs the order of rows."""
        offsets_N = torch.searchsorted(self.row_M, torch.arange(self.rows))
        return embedding_bag(self.feature_M, directions_GD, offsets_N, mode="sum", per_sample_weights=self.strength_M)

    def strengths(self, features: int) -> Tensor:
        """Return the strengths as a dense table (N, G)."""
        strengths_NG = torch.zeros(self.rows, features)
        strengths_NG[self.row_M, self.feature_M] = self.strength_M
        return strengths_NG


def bernoulli(p_G: Tensor, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw independent firings with probabilities p_G; return the row and the feature of each.

    Features whose probabilities lie within a factor of 2 share one pass over their N x (number of them) cells: the
    distance to the next cell that fires at the largest of these probabilities is geometric, and each is then kept
    with the ratio of its own probability to the largest. Exact, at a cost that grows with the number of firings.
    """
    octave_G = torch.where(p_G > 0, p_G.log2().floor(), torch.inf)
    found = []
    for octave in octave_G.unique().tolist():
        if octave == math.inf:
            continue
        member_M = (octave_G == octave).nonzero().squeeze(1)
        top = float(p_G[member_M].max())
        cell = _geometric_cells(top, rows * len(member_M), generator)
        feature, row = member_M[cell % len(member_M)], cell // len(member_M)
        keep = torch.rand(len(cell), generator=generator) * top < p_G[feature]
        found.append((row[keep], feature[keep]))
    if not found:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    row_parts, feature_parts = zip(*found, strict=True)
    return torch.cat(row_parts), torch.cat(feature_parts)


def _geometric_cells(p: float, cells: int, generator: torch.Generator) -> Tensor:
    """Return the ascending indices of the cells 0..cells-1 that fire, each independently with probability p."""
    parts, end = [], -1.0
    while end < cells:
        expected = max(0.0, cells - 1 - end) * p
        uniform = torch.rand(int(expected + 6 * math.sqrt(expected)) + 16, generator=generator, dtype=torch.float64)
        gaps = (torch.log1p(-uniform) / math.log1p(-p)).floor() + 1 if p < 1 else torch.ones_like(uniform)
        parts.append(end + gaps.cumsum(0))
        end = float(parts[-1][-1])
    cell = torch.cat(parts)
    return cell[cell < cells].long()
