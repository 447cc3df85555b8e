"""Feature splitting: which latents of a wide dictionary a latent of a narrower one became."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_cli.comparison.arithmetic import pursue
from sae_cli.comparison.similarity import nearest
from sae_cli.dictionary.artifact import SAE

COSINE = 0.5
"""Smallest cosine of a child with its parent."""
OVERLAP = 0.5
"""Smallest share of a child's rows on which its parent fires."""


def splitting(narrow: SAE, wide: SAE, alive_N: Tensor, alive_W: Tensor, rows: Iterable[Tensor]) -> dict[str, Any]:
    """Return the children of every alive narrow latent among the alive wide latents; alive_*: their ids.

    docs/compare-format.md defines children and the keys of `splitting`. rows: batches (B, D) in raw units.
    """
    unit_ND = normalize(narrow.W_dec_FD[alive_N].float(), dim=1)
    unit_WD = normalize(wide.W_dec_FD[alive_W].float(), dim=1)
    cosine_W, parent_W, *_ = nearest(unit_WD, unit_ND)
    close = cosine_W >= COSINE
    child_E, parent_E, cosine_E = close.nonzero()[:, 0], parent_W[close], cosine_W[close]
    counts_3E = _overlaps(narrow, wide, alive_N[parent_E], alive_W[child_E], rows)
    kept = counts_3E[0] >= OVERLAP * counts_3E[2]
    child_E, parent_E, cosine_E = child_E[kept], parent_E[kept], cosine_E[kept]
    both_E, rows_parent_E, rows_child_E = counts_3E[:, kept].unbind()
    fits = _sums(unit_WD[child_E], unit_ND, alive_N, parent_E)
    children_N = torch.bincount(parent_E, minlength=len(unit_ND))
    columns = {
        "parent": alive_N[parent_E],
        "child": alive_W[child_E],
        "cosine": cosine_E,
        "child_given_parent": both_E / rows_parent_E,
        "parent_given_child": both_E / rows_child_E,
    }
    lines = zip(*(column.tolist() for column in columns.values()), strict=True)
    return {
        "narrow_alive": len(unit_ND),
        "wide_alive": len(unit_WD),
        "close": len(close.nonzero()),
        "children": len(child_E),
        "childless": int((children_N == 0).sum()),
        "split": int((children_N > 1).sum()),
        "sums": sum(fit["sum"] for fit in fits),
        "edges": [dict(zip(columns, line, strict=True)) | fit for line, fit in zip(lines, fits, strict=True)],
    }


def _overlaps(narrow: SAE, wide: SAE, parent_E: Tensor, child_E: Tensor, rows: Iterable[Tensor]) -> Tensor:
    """Return the rows (3, E) on which both ends of each edge fire, the parent fires, the child fires."""
    counts_3E = torch.zeros(3, len(parent_E), dtype=torch.int64, device=parent_E.device)
    for x_BD in rows:
        parent_BE = narrow.encode(x_BD)[:, parent_E] != 0
        child_BE = wide.encode(x_BD)[:, child_E] != 0
        counts_3E += torch.stack([(parent_BE & child_BE).sum(0), parent_BE.sum(0), child_BE.sum(0)])
    return counts_3E


def _sums(child_ED: Tensor, unit_ND: Tensor, alive_N: Tensor, parent_E: Tensor) -> list[dict[str, Any]]:
    """Return for each child its fit on its parent and one other narrow direction; other: null if none helps."""
    if not len(child_ED):
        return []
    fit = pursue(child_ED, unit_ND, first_N=parent_E, terms=2)
    if fit.atoms_NT.shape[1] < 2:
        return [{"explained": explained, "sum": False, "other": None} for explained in fit.explained_NT.tolist()]
    columns = (fit.explained_NT, fit.composite_N, alive_N[fit.atoms_NT[:, 1]], fit.coefficients_NT)
    return [
        {"explained": explained, "sum": is_sum, "other": other if second > 0 else None}
        for explained, is_sum, other, (_, second) in zip(*(column.tolist() for column in columns), strict=True)
    ]
