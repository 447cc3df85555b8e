"""Points grouped into series (one nonlinearity, one penalty, lambda running) and what follows from comparing them."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

import numpy as np

from sae_cli.reporting.collect import Point, varying

OFF = "no penalty"
LAMBDA, KIND, WEIGHT = "sparsity.weight", "orthogonality.kind", "orthogonality.weight"
COMPARED = ("l0", "fvu", "delta_ce", "nearest_cosine", "mcc")
"""Metrics of the comparison tables."""


@dataclass
class Series:
    """Points that differ in lambda only, in the order of lambda."""

    family: str
    setting: str
    rest: str
    points: list[Point]

    def done(self, *metrics: str) -> list[Point]:
        """Finished points that have all these metrics."""
        return [point for point in self.points if point.state == "done" and all(m in point.metrics for m in metrics)]


class Groups:
    """The series of a report, and the names by which its points go."""

    def __init__(self, points: list[Point]) -> None:
        points = [point for point in points if point.config]
        self.keys = varying(points)
        """Keys of the configuration that vary within the report."""
        self._penalised = varying([point for point in points if _penalised(point)])
        found: dict[tuple[str, str, str], list[Point]] = {}
        for point in points:
            found.setdefault((self.family(point), self.setting(point), self._rest(point)), []).append(point)
        self.series = [
            Series(*key, sorted(members, key=lambda point: point.config[LAMBDA])) for key, members in found.items()
        ]
        self.series.sort(key=lambda s: (s.family != "relu", s.family, s.setting != OFF, s.setting, s.rest))
        self.families = list(dict.fromkeys(one.family for one in self.series))
        self.settings = list(dict.fromkeys(one.setting for one in self.series))

    def family(self, point: Point) -> str:
        """Nonlinearity, with the sparsity kind where the report has several."""
        kind = f" {point.config['sparsity.kind']}" if "sparsity.kind" in self.keys else ""
        return f"{point.config['sae.nonlinearity']}{kind}"

    def setting(self, point: Point) -> str:
        """The orthogonality penalty: kind, gamma, and what else of it varies between penalised points."""
        if not _penalised(point):
            return OFF
        others = (k for k in self._penalised if k.startswith("orthogonality.") and k not in (KIND, WEIGHT))
        extra = "".join(f", {key.split('.')[1]} {point.config[key]}" for key in others)
        return f"{point.config[KIND]} {point.config[WEIGHT]:g}{extra}"

    def label(self, point: Point) -> str:
        """One line that names a point among the others."""
        parts = [self.family(point), self.setting(point), f"lambda {point.config[LAMBDA]:g}", self._rest(point)]
        return " · ".join(part for part in parts if part)

    def _rest(self, point: Point) -> str:
        named = ("sae.nonlinearity", "sparsity.kind", LAMBDA)
        keys = [key for key in self.keys if key not in named and not key.startswith("orthogonality.")]
        return " · ".join(f"{key.rsplit('.', 1)[-1]} {_short(point.config.get(key))}" for key in keys)


def non_dominated(x: Iterable[float], y: Iterable[float], upwards: bool = False) -> list[bool]:
    """Whether each point is on the Pareto frontier of small x and small y (`upwards`: large y); equal points both are.

    A point is dominated if another is at least as good in both and better in one.
    """
    xs, ys = np.array(list(x), dtype=float), np.array(list(y), dtype=float) * (-1 if upwards else 1)
    better: np.ndarray = (xs[:, None] <= xs) & (ys[:, None] <= ys) & ((xs[:, None] < xs) | (ys[:, None] < ys))
    return [not column.any() for column in better.T]


def reference_l0(series: list[Series]) -> float:
    """The L0 that lies within the range of most series, the middle one on a log scale; NaN without two L0s."""
    ladders = [ladder for one in series if len(ladder := _ladder(one, "l0")) > 1]
    ranges = [(ladder[0][0], ladder[-1][0]) for ladder in ladders]
    ends = sorted({end for pair in ranges for end in pair})
    cover: dict[float, int] = {}
    for middle in (math.sqrt(low * high) for low, high in pairwise(ends)):
        cover[middle] = sum(low <= middle <= high for low, high in ranges)
    best = [middle for middle, count in cover.items() if count == max(cover.values())]
    return best[len(best) // 2] if best else math.nan


def at_reference(groups: Groups, reference: float) -> list[dict[str, Any]]:
    """Each family and penalty at one L0: metrics interpolated along lambda (linear in log L0), mean over its series.

    A metric is missing where no series of the pair reaches the reference from both sides.
    """
    rows = []
    for family, setting in dict.fromkeys((one.family, one.setting) for one in groups.series):
        row: dict[str, Any] = {"family": family, "setting": setting}
        members = [one for one in groups.series if (one.family, one.setting) == (family, setting)]
        for name in COMPARED[1:]:
            values = [v for one in members if (v := _interpolate(_ladder(one, name), reference)) is not None]
            row |= {name: fmean(values), "series": len(values)} if values else {}
        rows.append(row | {"points": sum(len(one.done()) for one in members)})
    return rows


def penalty_effect(groups: Groups) -> list[dict[str, Any]]:
    """Each family and penalty against the same points without it: {metric: (without, with)}, means over the pairs."""
    done = [(one, point) for one in groups.series for point in one.done()]
    plain = {(s.family, s.rest, p.config[LAMBDA]): p for s, p in done if s.setting == OFF}
    pairs: dict[tuple[str, str], list[tuple[Point, Point]]] = {}
    for one, point in done:
        partner = plain.get((one.family, one.rest, point.config[LAMBDA]))
        if partner and one.setting != OFF:
            pairs.setdefault((one.family, one.setting), []).append((partner, point))
    rows = []
    for (family, setting), matched in pairs.items():
        row: dict[str, Any] = {"family": family, "setting": setting, "pairs": len(matched)}
        for name in COMPARED:
            both = [(a.metrics[name], b.metrics[name]) for a, b in matched if name in a.metrics and name in b.metrics]
            row |= {name: tuple(fmean(side) for side in zip(*both, strict=True))} if both else {}
        rows.append(row)
    return rows


def _ladder(one: Series, name: str) -> list[tuple[float, float]]:
    """(L0, metric) of a series' finished points, in rising L0."""
    known = [point.metrics for point in one.done("l0", name)]
    return sorted((metrics["l0"], metrics[name]) for metrics in known if metrics["l0"] > 0)


def _interpolate(ladder: list[tuple[float, float]], reference: float) -> float | None:
    if len(ladder) < 2 or not ladder[0][0] <= reference <= ladder[-1][0]:
        return None
    return float(np.interp(math.log(reference), [math.log(l0) for l0, _ in ladder], [value for _, value in ladder]))


def _penalised(point: Point) -> bool:
    return point.config[KIND] != "none" and point.config[WEIGHT] != 0


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
