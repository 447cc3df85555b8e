"""Which features fire on a batch of rows, and how strongly."""

import math

import torch
from torch import Tensor

from sae_cli.config.schema_data import SourceConfig
from sae_cli.randomness import derive_seed
from sae_cli.sources.synthetic.events import Events, bernoulli
from sae_cli.sources.synthetic.probabilities import Firing, firing

SHARED_ROWS = 256
"""sharkey: consecutive rows that share one draw of the correlated probabilities."""
CHUNK = 2048
"""Rows of dense tables that exist at one time."""


class Draws:
    """Draws events of a configured source; a pure function of the settings and the generator's seed."""

    def __init__(self, source: SourceConfig) -> None:
        self.source = source
        self.firing: Firing = firing(source)
        self.p_G, self.parents_G = self.firing.p_G, self.firing.parents_G
        self.roots = (self.parents_G < 0).nonzero().squeeze(1)
        self.children_GC = children_table(self.parents_G)
        self.loading_GR = loadings(source, self.parents_G)
        features = len(self.p_G)
        # Where a feature's normal deviate falls below its threshold, it fires.
        self.threshold_G = torch.special.ndtri(self.p_G.double()).float()
        self.own_G = (1 - self.loading_GR.square().sum(1)).clamp(min=0).sqrt()
        self.mean_G = torch.full((features,), source.magnitude)
        self.deviation_G = torch.full((features,), source.magnitude_spread * source.magnitude)
        if source.kind == "synthbench":
            generator = torch.Generator().manual_seed(derive_seed(source.seed, "strengths"))
            self.mean_G *= torch.linspace(1, 0.8, features)
            self.deviation_G *= (1 + torch.randn(features, generator=generator)).abs()

    def events(self, rows: int, generator: torch.Generator) -> Events:
        """Draw the events of N rows, in the order of rows."""
        if self.source.kind == "tms":
            return self._with_strengths(rows, *self._one_of_each_set(rows, generator), generator).by_row()
        if self.source.kind == "sharkey" and self.source.correlation > 0:
            return self._with_strengths(rows, *self._shared_draws(rows, generator), generator).by_row()
        if self.source.cooccurrence > 0:
            return self._copying_pairs(rows, generator)
        if self.loading_GR.any():
            return self._forest(rows, *self._copula_roots(rows, generator), generator)
        row_M, feature_M = bernoulli(self.p_G[self.roots], rows, generator)
        factors_NR = torch.zeros(rows, 0)
        return self._forest(rows, row_M, self.roots[feature_M], factors_NR, generator)

    def strength(self, feature_M: Tensor, generator: torch.Generator) -> Tensor:
        """Draw strengths: uniform in mean (1 +- spread), or median exp(spread normal), or normal."""
        mean_M, size = self.mean_G[feature_M], feature_M.shape
        if self.source.magnitude_spread == 0:
            return mean_M
        if self.source.strength == "uniform":
            return mean_M + self.deviation_G[feature_M] * (2 * torch.rand(size, generator=generator) - 1)
        noise_M = torch.randn(size, generator=generator)
        if self.source.strength == "lognormal":
            return mean_M * (self.source.magnitude_spread * noise_M).exp()
        return mean_M + self.deviation_G[feature_M] * noise_M

    def _with_strengths(self, rows: int, row_M: Tensor, feature_M: Tensor, generator: torch.Generator) -> Events:
        """A strength that is not positive means that the feature does not fire."""
        strength_M = self.strength(feature_M, generator)
        keep_M = strength_M > 0
        return Events(rows, row_M[keep_M], feature_M[keep_M], strength_M[keep_M])

    def _one_of_each_set(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Each set fires with source.probability, and then one of its features, all alike."""
        sets = self.source.sets
        size = len(self.p_G) // sets
        member_NS = torch.randint(size, (rows, sets), generator=generator)
        row_M, set_M = (torch.rand(rows, sets, generator=generator) < self.source.probability).nonzero(as_tuple=True)
        return row_M, set_M * size + member_NS[row_M, set_M]

    def _shared_draws(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows share 2 p Phi(z) as their probabilities, z one correlated normal draw per SHARED_ROWS rows."""
        row_M, feature_M = bernoulli((2 * self.p_G).clamp(max=1), rows, generator)
        groups, features = -(-rows // SHARED_ROWS), len(self.p_G)
        factor_JR = torch.randn(groups, self.loading_GR.shape[1], generator=generator)
        z_JG = factor_JR @ self.loading_GR.T + self.own_G * torch.randn(groups, features, generator=generator)
        share_JG = torch.special.ndtr(z_JG)
        keep_M = torch.rand(len(row_M), generator=generator) < share_JG[row_M // SHARED_ROWS, feature_M]
        return row_M[keep_M], feature_M[keep_M]

    def _copying_pairs(self, rows: int, generator: torch.Generator) -> Events:
        """Independent draws, then the second of each pair copies the first on some rows; dense, for few features."""
        features = len(self.p_G)
        fires_NG = torch.rand(rows, features, generator=generator) < self.p_G
        partners = fires_NG[:, : features // 2 * 2].view(rows, -1, 2)
        copies = torch.rand(partners.shape[:2], generator=generator) < self.source.cooccurrence
        partners[..., 1] = torch.where(copies, partners[..., 0], partners[..., 1])
        strength_NG = self.strength(torch.arange(features).expand(rows, features), generator)
        row_M, feature_M = (fires_NG & (strength_NG > 0)).nonzero(as_tuple=True)
        return Events(rows, row_M, feature_M, strength_NG[row_M, feature_M])

    def _copula_roots(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Roots fire where a Gaussian with unit variance and low-rank correlation is below their threshold."""
        factors_NR = torch.randn(rows, self.loading_GR.shape[1], generator=generator)
        loading_R, own, threshold = (part[self.roots] for part in (self.loading_GR, self.own_G, self.threshold_G))
        parts = []
        for start in range(0, rows, CHUNK):
            factors = factors_NR[start : start + CHUNK]
            z = torch.randn(len(factors), len(own), generator=generator).mul_(own).addmm_(factors, loading_R.T)
            row, root = (z < threshold).nonzero(as_tuple=True)
            parts.append((row + start, self.roots[root]))
        row_parts, feature_parts = zip(*parts, strict=True)
        return torch.cat(row_parts), torch.cat(feature_parts), factors_NR

    def _forest(
        self, rows: int, row_M: Tensor, root_M: Tensor, factors_NR: Tensor, generator: torch.Generator
    ) -> Events:
        """Add the descendants of the roots that fire, level by level."""
        level = self._with_strengths(rows, row_M, root_M, generator)
        levels = [level]
        while self.children_GC.shape[1] and len(level.row_M):
            child_MC = self.children_GC[level.feature_M]
            index_J, slot_J = self._children_that_fire(child_MC, level.row_M, factors_NR, generator)
            feature_J = child_MC[index_J, slot_J]
            strength_J = self.strength(feature_J, generator)
            if self.source.kind == "synthbench":
                strength_J = strength_J * (level.strength_M / self.mean_G[level.feature_M])[index_J]
            keep_J = strength_J > 0
            level = Events(rows, level.row_M[index_J][keep_J], feature_J[keep_J], strength_J[keep_J])
            levels.append(level)
        parts = zip(*((part.row_M, part.feature_M, part.strength_M) for part in levels), strict=True)
        return Events(rows, *(torch.cat(part) for part in parts)).by_row()

    def _children_that_fire(
        self, child_MC: Tensor, row_M: Tensor, factors_NR: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return (event, slot) of the children that fire under the events' features; -1 in child_MC is no child."""
        p_MC = self.p_G[child_MC] * (child_MC >= 0)
        if factors_NR.shape[1]:
            shift_MC = torch.einsum("mcr,mr->mc", self.loading_GR[child_MC], factors_NR[row_M])
            p_MC = torch.special.ndtr((self.threshold_G[child_MC] - shift_MC) / self.own_G[child_MC]) * (child_MC >= 0)
        if not self.source.exclusive:
            index_J, slot_J = (torch.rand(p_MC.shape, generator=generator) < p_MC).nonzero(as_tuple=True)
            return index_J, slot_J
        upper_MC = (p_MC / p_MC.sum(1, keepdim=True).clamp(min=1)).cumsum(1)
        chosen_M = (torch.rand(len(p_MC), 1, generator=generator) >= upper_MC).sum(1)
        index_J = (chosen_M < p_MC.shape[1]).nonzero().squeeze(1)
        return index_J, chosen_M[index_J]


def children_table(parents_G: Tensor) -> Tensor:
    """Return the children of each feature (G, C), filled up with -1."""
    children: list[list[int]] = [[] for _ in parents_G]
    for child, parent in enumerate(parents_G.tolist()):
        if parent >= 0:
            children[parent].append(child)
    most = max(map(len, children), default=0)
    return torch.tensor([row + [-1] * (most - len(row)) for row in children], dtype=torch.int64).view(
        len(children), most
    )


def loadings(source: SourceConfig, parents_G: Tensor) -> Tensor:
    """Return the factor loadings L of the Gaussian copula (G, R): correlations are L L^T off the diagonal.

    synthbench: entries N(0, correlation^2), rows shortened to norm .99 where needed (arXiv 2602.14687). sharkey:
    random rows of norm sqrt(correlation). hierarchical: root i loads sqrt(correlation) on factor i mod R, so
    that the roots of a group have this correlation; children none, given their parent. Others: none.
    """
    kinds = ("synthbench", "sharkey", "hierarchical")
    if source.correlation == 0 or source.kind not in kinds:
        return torch.zeros(len(parents_G), 0)
    if source.kind == "hierarchical":
        loading_GR = torch.zeros(len(parents_G), source.rank)
        roots = (parents_G < 0).nonzero().squeeze(1)
        loading_GR[roots, torch.arange(len(roots)) % source.rank] = math.sqrt(source.correlation)
        return loading_GR
    generator = torch.Generator().manual_seed(derive_seed(source.seed, "correlations"))
    loading_GR = torch.randn(len(parents_G), source.rank, generator=generator)
    if source.kind == "sharkey":
        return torch.nn.functional.normalize(loading_GR, dim=1) * math.sqrt(source.correlation)
    loading_GR *= source.correlation
    return loading_GR * (0.99 / loading_GR.norm(dim=1, keepdim=True)).clamp(max=1)
