"""How well directions recover the true features of a synthetic source."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

FOUND = 0.95
"""A true feature counts as found above this cosine with some direction."""
HEATMAP = 64
"""Largest number of rows and of columns of the heatmap."""


def ground_truth(W_dec_FD: Tensor, true_GD: Tensor) -> dict[str, object]:
    """Return the `ground_truth` section; row norms do not matter.

    mcc: mean |cos| over the pairs of the best one-to-one assignment of latents to true features (min(F, G) pairs).
    mmcs: mean over true features of the largest |cos| with a direction. unique: number of distinct latents that are
    some true feature's largest |cos|, over G. found: share of true features with a (signed) cosine above 0.95.
    heatmap: signed cosines, true features (the first 64) x latents (64 of them: those matched to these features, in
    their order, then the others by their largest |cos|); heatmap_latents: the latents' indices.
    """
    cosine_GF = (normalize(true_GD.float(), dim=1) @ normalize(W_dec_FD.float(), dim=1).T).cpu().clamp(-1, 1)
    size_GF = cosine_GF.abs()
    best_G, latent_G = size_GF.max(dim=1)
    rows, columns = linear_sum_assignment(size_GF.numpy(), maximize=True)
    shown = _shown(size_GF[:HEATMAP].numpy(), rows, columns)
    return {
        "mcc": float(size_GF[rows, columns].double().mean()),
        "mmcs": float(best_G.double().mean()),
        "unique": len(torch.unique(latent_G)) / len(true_GD),
        "found": float((cosine_GF.amax(dim=1) > FOUND).double().mean()),
        "heatmap": cosine_GF[:HEATMAP][:, shown].double().numpy().round(4).tolist(),
        "heatmap_latents": shown,
    }


def _shown(size_GF: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> list[int]:
    """Return the latents of the heatmap's columns; `rows` is sorted, as the assignment gives it."""
    matched = columns[rows < len(size_GF)].tolist()
    taken = set(matched)
    by_size = np.argsort(-size_GF.max(axis=0), kind="stable").tolist()
    return (matched + [latent for latent in by_size if latent not in taken])[:HEATMAP]
