"""How close directions lie to each other, beside what random directions would give.

Cosines are signed: latents are non-negative, so antipodes share nothing.
"""

from functools import lru_cache

import numpy as np
import torch
from scipy.integrate import trapezoid
from scipy.special import betainc, gammaln
from scipy.stats import binom
from torch import Tensor
from torch.nn.functional import normalize

from sae_cli.losses.baseline import random_nearest

HUBS = 10
"""Hubs (directions that are the nearest of most others) that are counted together."""
WIDE = 24
"""Width D from which random in-degrees are near their limit of many dimensions."""
TOP = (1, 10, 100)
"""Ranks k of the k-th largest cosine of a direction with the others."""
EDGES = np.linspace(-1.0, 1.0, 201)
"""Bin edges of the nearest-cosine histograms."""
GRID = np.linspace(-1.0, 1.0, 20_001)
"""Cosines at which distributions are integrated; far finer than any of them is wide."""


def nearest_cosines(
    W_FD: Tensor, tile: int = 1024, alive_F: Tensor | None = None
) -> tuple[dict[str, float | None], Tensor]:
    """Return statistics of the cosines between directions, and each direction's nearest cosine (N,).

    The statistics are S of docs/eval-format.md. W_FD may have any row norms; zero rows are no directions and are left
    out, like those not in the bool mask alive_F. At most tile x F cosines exist at a time.
    """
    norm_F = W_FD.norm(dim=1)
    valid_F = (norm_F > 0) & norm_F.isfinite()
    id_N = (valid_F if alive_F is None else valid_F & alive_F).nonzero().squeeze(1)
    unit_ND = normalize(W_FD[id_N].float(), dim=1)
    count = len(unit_ND)
    if count < 2:
        return _empty(count), unit_ND.new_zeros(0)
    ranks = [k for k in TOP if k < count]
    top_sum = torch.zeros(len(ranks), dtype=torch.float64, device=W_FD.device)
    abs_sum = torch.zeros((), dtype=torch.float64, device=W_FD.device)
    nearest = []
    in_degree_N = np.zeros(count, dtype=np.int64)
    for start in range(0, count, tile):
        cosine_BN = unit_ND[start : start + tile] @ unit_ND.T
        own = torch.arange(len(cosine_BN), device=W_FD.device)
        cosine_BN[own, own + start] = 0
        abs_sum += cosine_BN.abs().sum(dtype=torch.float64)
        cosine_BN[own, own + start] = -2
        top_BK, other_BK = cosine_BN.topk(ranks[-1], dim=1)
        in_degree_N += np.bincount(other_BK[:, 0].cpu(), minlength=count)
        top_BK = top_BK.clamp(-1, 1)
        top_sum += top_BK[:, [k - 1 for k in ranks]].sum(0, dtype=torch.float64)
        nearest.append(top_BK[:, 0])
    nearest_N = torch.cat(nearest)
    values = nearest_N.double().cpu().numpy()
    hubs = np.argsort(-in_degree_N, kind="stable")[:HUBS]
    statistics = _empty(count) | {
        "nearest_mean": float(values.mean()),
        "nearest_median": float(np.median(values)),
        "nearest_p99": float(np.quantile(values, 0.99)),
        "mean_abs": float(abs_sum) / (count * (count - 1)),
        "hub": int(id_N[int(hubs[0])]),
        "hub_in_degree": int(in_degree_N[hubs[0]]),
        "hub10_share": float(in_degree_N[hubs].sum()) / count,
    }
    return statistics | {f"top{k}": total / count for k, total in zip(ranks, top_sum.tolist(), strict=True)}, nearest_N


@lru_cache(maxsize=64)
def random_cosines(count: int, width: int) -> dict[str, float | None]:
    """Return what `nearest_cosines` is expected to give for `count` random directions in R^width.

    One cosine c has (1+c)/2 ~ Beta((width-1)/2, (width-1)/2). With F_k the distribution function of the k-th largest
    of count-1 such cosines, topK = 1 - integral of F_K over [-1, 1]; the nearest cosine is the largest, so F_1 gives
    its mean and quantiles. E|c| = G(width/2) / (sqrt(pi) G((width+1)/2)) with the gamma function G, about
    sqrt(2 / (pi width)). In many dimensions an in-degree tends to Binomial(count-1, 1/(count-1)) and in-degrees to
    independence, which gives the expected largest ones; None below 24 dimensions.
    """
    if count < 2 or width < 2:
        return _empty(count)
    median, p99 = random_nearest(count, width, (0.5, 0.99))
    tops = {f"top{k}": float(1 - trapezoid(_largest_cdf(k, GRID, count, width), GRID)) for k in TOP if k < count}
    absolute = float(np.exp(gammaln(width / 2) - gammaln((width + 1) / 2)) / np.sqrt(np.pi))
    nearest = {"nearest_mean": tops["top1"], "nearest_median": median, "nearest_p99": p99, "mean_abs": absolute}
    return _empty(count) | nearest | tops | (_random_hubs(count) if width >= WIDE else {})


def _random_hubs(count: int) -> dict[str, float | None]:
    """Return the expected hub_in_degree and hub10_share: sums over d of P(more than j of `count` degrees exceed d)."""
    above = binom.sf(np.arange(min(count, 50)), count - 1, 1 / (count - 1))
    ranks = [float(binom.sf(rank, count, above).sum()) for rank in range(min(HUBS, count))]
    return {"hub_in_degree": ranks[0], "hub10_share": sum(ranks) / count}


def random_histogram(count: int, width: int) -> list[float]:
    """Return the expected share of `count` random directions whose nearest cosine lies in each bin of EDGES."""
    if count < 2 or width < 2:
        return [0.0] * (len(EDGES) - 1)
    return np.diff(_largest_cdf(1, EDGES, count, width)).tolist()


def geometry(W_dec_FD: Tensor, alive_F: Tensor, memory_bytes: int = 2**30) -> dict[str, object]:
    """Return the `geometry` section (docs/eval-format.md); alive_F is a bool mask.

    Cosines that exist at a time take at most memory_bytes.
    """
    tile = max(1, min(1024, memory_bytes // (12 * len(W_dec_FD))))
    every, nearest_F = nearest_cosines(W_dec_FD, tile)
    alive, nearest_N = (every, nearest_F) if bool(alive_F.all()) else nearest_cosines(W_dec_FD, tile, alive_F)
    width = W_dec_FD.shape[1]
    return {
        "all": every,
        "alive": alive,
        "random": random_cosines(len(W_dec_FD), width),
        "random_alive": random_cosines(int(alive["count"] or 0), width),
        "histogram": {
            "edges": EDGES.round(6).tolist(),
            "all": _shares(nearest_F),
            "alive": _shares(nearest_N),
            "random": random_histogram(len(W_dec_FD), width),
        },
        "self_mmcs": alive["nearest_mean"],
    }


def _largest_cdf(rank: int, cosine: np.ndarray, count: int, width: int) -> np.ndarray:
    """Return, for each value, the probability that the rank-th largest of count-1 random cosines is at most it.

    That is: fewer than `rank` of them lie above. The tail is used so that values near 1 keep their precision.
    """
    half = (width - 1) / 2
    tail = betainc(half, half, (1 - cosine) / 2)
    return 1 - betainc(rank, count - rank, tail)


def _shares(values_N: Tensor) -> list[float]:
    counts, _ = np.histogram(values_N.cpu().numpy(), bins=EDGES)
    return (counts / max(len(values_N), 1)).tolist()


def _empty(count: int) -> dict[str, float | None]:
    hubs = ("hub", "hub_in_degree", "hub10_share")
    names = ("nearest_mean", "nearest_median", "nearest_p99", "mean_abs", *(f"top{k}" for k in TOP))
    return {"count": count, **dict.fromkeys((*names, *hubs))}
