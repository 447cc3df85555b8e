"""How often each true feature fires, and what its parent is."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sae_cli.config.schema_data import SourceConfig
from sae_cli.errors import UserError
from sae_cli.randomness import derive_seed


@dataclass
class Firing:
    """Firing probabilities and the hierarchy."""

    p_G: Tensor
    """Probability that a root fires on a row; of a child: that it fires on a row on which its parent fires."""
    parents_G: Tensor
    """int64 index of each feature's parent, -1 for roots."""

    @property
    def marginal_G(self) -> Tensor:
        """Probability of each feature on any row; an upper bound where exclusive siblings have more than 1 together."""
        marginal_G, parents_G = self.p_G.clone(), self.parents_G.clone()
        while (parents_G >= 0).any():
            above = parents_G.clamp(min=0)
            marginal_G *= torch.where(parents_G >= 0, self.p_G[above], 1.0)
            parents_G = torch.where(parents_G >= 0, self.parents_G[above], -1)
        return marginal_G


def law(source: SourceConfig, count: int) -> Tensor:
    """Return `count` probabilities by source.law, most frequent first (log_uniform: in random order)."""
    low, high = source.probability_min, source.probability
    index = torch.arange(count, dtype=torch.float64)
    if source.law == "geometric":
        return high * source.decay**index
    if source.law == "log_uniform":
        generator = torch.Generator().manual_seed(derive_seed(source.seed, "probabilities"))
        share = torch.rand(count, generator=generator, dtype=torch.float64)
        return low * (high / low) ** share
    weight = (index + 1) ** -source.zipf
    if low == 0 or weight[0] == weight[-1]:
        return high * weight
    return low + (high - low) * (weight - weight[-1]) / (weight[0] - weight[-1])


def forest(features: int, trees: int, branching: int, depth: int) -> Tensor:
    """Return parents (G,): trees depth first (a parent just before its descendants), then features without a tree."""
    parents: list[int] = []

    def grow(parent: int, level: int) -> None:
        parents.append(parent)
        here = len(parents) - 1
        if level < depth:
            for _ in range(branching):
                grow(here, level + 1)

    for _ in range(trees):
        grow(-1, 0)
    return torch.tensor(parents + [-1] * (features - len(parents)))


def firing(source: SourceConfig) -> Firing:
    """Return the probabilities and parents of a source; UserError if source.l0 needs a probability above 1."""
    none_G = torch.full((source.features,), -1)
    if source.kind == "three_features":
        made = Firing(torch.tensor([source.probability, source.probability, source.rare]), none_G.new_full((3,), -1))
    elif source.kind == "tms":
        made = Firing(torch.full((source.features,), source.probability * source.sets / source.features), none_G)
    elif source.kind in ("chanin", "tree"):
        made = _few_levels(source)
    elif source.kind == "hierarchical":
        made = _zipf_roots(source)
    elif source.kind == "synthbench":
        made = _zipf_everywhere(source)
    else:
        made = Firing(law(source, source.features), none_G)
    if source.l0:
        factor = source.l0 / float(made.marginal_G.sum())
        made.p_G = torch.where(made.parents_G < 0, made.p_G * factor, made.p_G)
        if made.p_G.max() > 1:
            raise UserError(
                f"source.l0={source.l0} needs a firing probability of {float(made.p_G.max()):.3g}: lower it, or "
                "flatten the law of probabilities (source.zipf, source.decay)"
            )
    made.p_G = made.p_G.float()
    return made


def _few_levels(source: SourceConfig) -> Firing:
    """Tree roots fire with `probability`, features without a tree with `rare`, children with `child_probability`."""
    parents_G = forest(source.features, source.trees, source.branching, source.depth)
    p_G = torch.full((source.features,), source.child_probability, dtype=torch.float64)
    roots = (parents_G < 0).nonzero().squeeze(1)
    p_G[roots] = source.rare
    p_G[roots[: source.trees]] = source.probability
    return Firing(p_G, parents_G)


def _zipf_roots(source: SourceConfig) -> Firing:
    """Roots follow the law, those of trees evenly spread over its ranks; children have `child_probability`."""
    parents_G = forest(source.features, source.trees, source.branching, source.depth)
    p_G = torch.full((source.features,), source.child_probability, dtype=torch.float64)
    roots = (parents_G < 0).nonzero().squeeze(1)
    of_trees = torch.arange(source.trees) * len(roots) // max(source.trees, 1)
    others = torch.ones(len(roots), dtype=torch.bool)
    others[of_trees] = False
    ranks = torch.cat([of_trees, others.nonzero().squeeze(1)])
    p_G[roots] = law(source, len(roots))[ranks]
    return Firing(p_G, parents_G)


def _zipf_everywhere(source: SourceConfig) -> Firing:
    """All features follow the law, by level from the roots down, then those without a tree; p of a child is
    its probability over its parent's, at most 1."""
    parents_G = forest(source.features, source.trees, source.branching, source.depth)
    level_G = torch.zeros(source.features, dtype=torch.int64)
    for child, parent in enumerate(parents_G.tolist()):
        if parent >= 0:
            level_G[child] = level_G[parent] + 1
    lone_G = (parents_G < 0) & ((parents_G < 0).cumsum(0) > source.trees)
    level_G[lone_G] = source.depth + 1
    marginal_G = torch.empty(source.features, dtype=torch.float64)
    marginal_G[torch.argsort(level_G, stable=True)] = law(source, source.features)
    above_G = marginal_G[parents_G.clamp(min=0)]
    return Firing(torch.where(parents_G < 0, marginal_G, (marginal_G / above_G).clamp(max=1)), parents_G)
