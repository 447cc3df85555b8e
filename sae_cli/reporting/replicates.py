"""Points that differ in their seeds only, and the interval that their spread gives."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev

from scipy.special import stdtrit

from sae_cli.reporting.collect import NOT_SHOWN, Point

SEEDS = ("seed", "train.data_seed", "source.seed", "cache.seed")
"""Keys that make a replicate, not another point."""
LEVEL = 0.95
"""Coverage of the intervals."""


@dataclass(frozen=True)
class Interval:
    """Mean over `count` replicates; `half` is half the width of its confidence interval, None for a single one."""

    mean: float
    half: float | None
    count: int

    def __str__(self) -> str:
        half = "" if self.half is None else f" ± {self.half:.2g}"
        return f"{self.mean:.4g}{half}"


def replicates(points: Sequence[Point]) -> list[list[Point]]:
    """Group points of a sweep whose configurations differ in SEEDS only, in the order of the first of each.

    Settings of a penalty of weight 0 do not count. Corrupt points stand alone.
    """
    groups: dict[str, list[Point]] = {}
    for point in points:
        idle = () if point.config.get("orthogonality.weight") else ("orthogonality.",)
        rest = [
            (key, v) for key, v in point.config.items() if key not in SEEDS and not key.startswith(NOT_SHOWN + idle)
        ]
        groups.setdefault(repr((point.sweep, rest)) if rest else point.folder, []).append(point)
    return list(groups.values())


def interval(points: Sequence[Point], metric: str) -> Interval | None:
    """Return `over` the values of a metric of finished points; None if no point has it."""
    values = [point.metrics[metric] for point in points if point.state == "done" and metric in point.metrics]
    return over(values) if values else None


def over(values: Sequence[float]) -> Interval:
    """Return the mean of replicates' values with Student's t interval of LEVEL."""
    count = len(values)
    half = _quantile(count - 1) * stdev(values) / math.sqrt(count) if count > 1 else None
    return Interval(fmean(values), half, count)


@cache
def _quantile(freedom: int) -> float:
    return float(stdtrit(freedom, (1 + LEVEL) / 2))
