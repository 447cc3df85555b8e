"""How well a dictionary recovers the true features of a synthetic source: their directions, and when they fire."""

import math

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

FOUND = {"found": 0.95, "found_80": 0.8}
"""A true feature counts as found above this cosine with some direction."""
HEATMAP = 64
"""Largest number of rows and of columns of the heatmap."""


class GroundTruth:
    """The `ground_truth` section of one SAE: directions are compared at once, firings are counted over batches.

    Every latent that the best one-to-one assignment by |cos| gives a true feature is that feature's matched latent;
    there are min(F, G) pairs. A latent fires where it is not zero, a true feature where its strength is above zero.
    """

    def __init__(self, W_dec_FD: Tensor, b_dec_D: Tensor, true_GD: Tensor, parents_G: Tensor | None = None) -> None:
        unit_GD = normalize(true_GD.float(), dim=1)
        cosine_GF = (unit_GD @ normalize(W_dec_FD.float(), dim=1).T).cpu().clamp(-1, 1)
        self._directions, feature_P, latent_P = directions(cosine_GF)
        self._directions["heatmap_bias"] = _rounded(unit_GD[:HEATMAP] @ normalize(b_dec_D.float(), dim=0))
        # The second largest |cos| of each latent with the true features; NaN where there is one true feature.
        missing_F = torch.full((len(W_dec_FD),), math.nan)
        self.second_F = cosine_GF.abs().topk(2, dim=0).values[1] if len(true_GD) > 1 else missing_F
        device = W_dec_FD.device
        self.feature_P, self.latent_P = feature_P.to(device), latent_P.to(device)
        self.norm_P = W_dec_FD.float().norm(dim=1)[self.latent_P]
        self.fired_F = torch.zeros(len(W_dec_FD), dtype=torch.bool, device=device)
        self._pairs_5P = torch.zeros(5, len(self.feature_P), dtype=torch.float64, device=device)
        edges = _edges(parents_G, feature_P, latent_P)
        self.parent_C, self.child_C, self.latent_C = (part.to(device) for part in edges)
        self._edges_2C = torch.zeros(2, len(self.child_C), dtype=torch.float64, device=device)
        # Each parent once: its index, its latent, and where among them the parent of each edge stands.
        self.parent_Q, self.place_C = torch.unique(self.parent_C, return_inverse=True)
        self.latent_Q = torch.zeros_like(self.parent_Q).scatter_(0, self.place_C, self.latent_C)
        self._alone_2Q = torch.zeros(2, len(self.parent_Q), dtype=torch.float64, device=device)

    def add(self, acts_BF: Tensor, strengths_BG: Tensor) -> None:
        """Count a batch: latents as the SAE gives them, true strengths of the same rows in raw units."""
        fires_BF, present_BG = acts_BF != 0, strengths_BG > 0
        self.fired_F |= fires_BF.any(0)
        fires_BP, present_BP = fires_BF[:, self.latent_P], present_BG[:, self.feature_P]
        both_BP = fires_BP & present_BP
        size_BP = acts_BF[:, self.latent_P].float() * self.norm_P
        counts = [both_BP.sum(0), fires_BP.sum(0), present_BP.sum(0)]
        sizes = [(size_BP * both_BP).sum(0), (strengths_BG[:, self.feature_P] * both_BP).sum(0)]
        self._pairs_5P += torch.stack([part.double() for part in counts + sizes])
        child_BC = present_BG[:, self.child_C]
        with_BC = child_BC & present_BG[:, self.parent_C]
        absorbed_BC = with_BC & ~fires_BF[:, self.latent_C]
        self._edges_2C += torch.stack([with_BC.sum(0).double(), absorbed_BC.sum(0).double()])
        children_BQ = torch.zeros(len(acts_BF), len(self.parent_Q), device=acts_BF.device)
        children_BQ.index_add_(1, self.place_C, child_BC.float())
        alone_BQ = present_BG[:, self.parent_Q] & (children_BQ == 0)
        silent_BQ = alone_BQ & ~fires_BF[:, self.latent_Q]
        self._alone_2Q += torch.stack([alone_BQ.sum(0).double(), silent_BQ.sum(0).double()])

    def section(self) -> dict[str, object]:
        """Return the section (docs/eval-format.md); a mean of nothing is NaN."""
        hits_P, fires_P, present_P, size_P, strength_P = self._pairs_5P.cpu()
        scores = {
            "precision": hits_P / fires_P.clamp(min=1),
            "recall": hits_P / present_P.clamp(min=1),
            "f1": 2 * hits_P / (fires_P + present_P).clamp(min=1),
        }
        with_C, absorbed_C = self._edges_2C.cpu()
        alone_Q, silent_Q = self._alone_2Q.cpu()
        return {
            **self._directions,
            "pairs": len(self.feature_P),
            **{name: _mean(score_P) for name, score_P in scores.items()},
            **{f"{name}_present": _mean(score_P[present_P > 0]) for name, score_P in scores.items()},
            "shrinkage": _mean((size_P / strength_P)[hits_P > 0]),
            "absorption": _mean((absorbed_C / with_C)[with_C > 0]),
            "absorption_pairs": int((with_C > 0).sum()),
            "silent_alone": _mean((silent_Q / alone_Q)[alone_Q > 0]),
            "composition": _mean(self.second_F[self.fired_F.cpu()]),
        }


def directions(cosine_GF: Tensor) -> tuple[dict[str, object], Tensor, Tensor]:
    """Return what signed cosines tell, and the matched pairs: true features (P,), ascending, and their latents (P,).

    The first are the keys mcc to found_80, heatmap and heatmap_latents of docs/eval-format.md.
    """
    size_GF = cosine_GF.abs()
    best_G, latent_G = size_GF.max(dim=1)
    rows, columns = linear_sum_assignment(size_GF.numpy(), maximize=True)
    shown = _shown(size_GF[:HEATMAP].numpy(), rows, columns)
    nearest_G = cosine_GF.amax(dim=1)
    section: dict[str, object] = {
        "mcc": _mean(size_GF[rows, columns]),
        "mmcs": _mean(best_G),
        "unique": len(torch.unique(latent_G)) / len(cosine_GF),
        **{name: _mean(nearest_G > cosine) for name, cosine in FOUND.items()},
        "heatmap": _rounded(cosine_GF[:HEATMAP][:, shown]),
        "heatmap_latents": shown,
    }
    return section, torch.from_numpy(rows), torch.from_numpy(columns)


def _edges(parents_G: Tensor | None, feature_P: Tensor, latent_P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return parent, child and the parent's matched latent of every edge whose parent has one."""
    if parents_G is None:
        return (torch.zeros(0, dtype=torch.int64),) * 3
    latent_G = torch.full(parents_G.shape, -1)
    latent_G[feature_P] = latent_P
    parents_G = parents_G.cpu()
    matched_G = (parents_G >= 0) & (latent_G[parents_G.clamp(min=0)] >= 0)
    child_C = matched_G.nonzero().squeeze(1)
    parent_C = parents_G[child_C]
    return parent_C, child_C, latent_G[parent_C]


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


def _rounded(values: Tensor) -> list:
    return values.double().cpu().numpy().round(4).tolist()


def _shown(size_GF: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> list[int]:
    """Return the latents of the heatmap's columns; `rows` is sorted, as the assignment gives it."""
    matched = columns[rows < len(size_GF)].tolist()
    taken = set(matched)
    by_size = np.argsort(-size_GF.max(axis=0), kind="stable").tolist()
    return (matched + [latent for latent in by_size if latent not in taken])[:HEATMAP]
