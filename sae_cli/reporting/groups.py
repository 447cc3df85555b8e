"""Points grouped into series (one nonlinearity, one penalty, one seed; lambda running), and the names they go by."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from sae_cli.reporting.collect import Point, varying
from sae_cli.reporting.replicates import SEEDS, replicates

OFF = "no penalty"
LAMBDA, KIND, WEIGHT = "sparsity.weight", "orthogonality.kind", "orthogonality.weight"
LADDER = {LAMBDA: "lambda", "sparsity.target_l0": "target L0", "sae.k": "k"}
"""Keys that trade sparsity against reconstruction, along which a series runs."""
NAMES = LADDER | {KIND: "penalty", WEIGHT: "gamma", "sparsity.kind": "sparsity"}
"""Names of configuration keys where the last component is not enough."""


@dataclass
class Series:
    """Points that differ in the LADDER only, in its order."""

    family: str
    setting: str
    rest: str
    seed: str
    points: list[Point]

    def done(self, *metrics: str) -> list[Point]:
        """Finished points that have all these metrics."""
        return finished(self.points, *metrics)


def _order(one: Series) -> tuple[Any, ...]:
    first = one.points[0]
    plain = first.config["sae.nonlinearity"] == "relu"
    return first.sweep, not plain, one.family, one.setting != OFF, one.setting, one.rest, one.seed


class Groups:
    """The series of a report, and the names by which its points go."""

    def __init__(self, points: list[Point]) -> None:
        self.index = {id(point): index for index, point in enumerate(points)}
        """Where a point stands among all points, the corrupt ones included."""
        points = [point for point in points if point.config]
        self.keys = varying(points)
        """Keys of the configuration that vary within the report."""
        self._penalised = varying([point for point in points if is_penalised(point)])
        self.ladder = [key for key in LADDER if key in self.keys] or [LAMBDA]
        found: dict[tuple[str, str, str, str], list[Point]] = {}
        for point in points:
            key = (self.family(point), self.setting(point), self.rest(point), self.seed(point))
            found.setdefault(key, []).append(point)
        self.series = [Series(*key, sorted(members, key=self.step)) for key, members in found.items()]
        self.series.sort(key=_order)
        self.families = list(dict.fromkeys(one.family for one in self.series))
        self.settings = list(dict.fromkeys(one.setting for one in self.series))
        self.points = [point for one in self.series for point in one.points]
        self.replicates = replicates(self.points)
        """Points that differ in their seeds only."""

    def family(self, point: Point) -> str:
        """Nonlinearity, with the sweep and the sparsity kind where the report has several."""
        kind = f" {point.config['sparsity.kind']}" if "sparsity.kind" in self.keys else ""
        return f"{point.sweep} · " * bool(point.sweep) + f"{point.config['sae.nonlinearity']}{kind}"

    def setting(self, point: Point) -> str:
        """The orthogonality penalty: kind, gamma, and what else of it varies between penalised points."""
        if not is_penalised(point):
            return OFF
        kind, *others = self.variant(point).split(", ")
        return ", ".join([f"{kind} {point.config[WEIGHT]:g}", *others])

    def variant(self, point: Point) -> str:
        """The orthogonality penalty without its gamma."""
        others = (k for k in self._penalised if k.startswith("orthogonality.") and k not in (KIND, WEIGHT))
        return ", ".join([point.config[KIND], *(f"{key.split('.')[1]} {point.config[key]}" for key in others)])

    def step(self, point: Point) -> tuple[float, ...]:
        """Where a point stands on its series."""
        return tuple(point.config[key] for key in self.ladder)

    def place(self, point: Point) -> tuple[Any, ...]:
        """What points are sorted by: family, penalty, what else differs, lambda, seed."""
        family, setting = self.families.index(self.family(point)), self.settings.index(self.setting(point))
        return family, setting, self.rest(point), self.step(point), self.seed(point)

    def rest(self, point: Point) -> str:
        """What else tells the point from others, its seeds apart."""
        named = {"sae.nonlinearity", "sparsity.kind", *LADDER, *SEEDS}
        return self._words(point, [k for k in self.keys if k not in named and not k.startswith("orthogonality.")])

    def seed(self, point: Point) -> str:
        """Its seeds, where they vary."""
        return self._words(point, [key for key in self.keys if key in SEEDS])

    def label(self, point: Point, seed: bool = True, brief: bool = False) -> str:
        """One line that names a point among the others; `brief`: among those of its family and setting."""
        steps = [f"{LADDER[key]} {point.config[key]:g}" for key in self.ladder]
        which = [] if brief else [self.family(point), self.setting(point)]
        parts = [*which, *steps, self.rest(point), self.seed(point) * seed]
        return " · ".join(part for part in parts if part)

    def _words(self, point: Point, keys: list[str]) -> str:
        return " · ".join(f"{key.rsplit('.', 1)[-1]} {_short(point.config.get(key))}" for key in keys)


def finished(points: Iterable[Point], *metrics: str) -> list[Point]:
    """Finished points that have all these metrics."""
    return [point for point in points if point.state == "done" and all(m in point.metrics for m in metrics)]


def is_penalised(point: Point) -> bool:
    """Whether an orthogonality penalty is on."""
    return point.config[KIND] != "none" and point.config[WEIGHT] != 0


def non_dominated(x: Iterable[float], y: Iterable[float], upwards: bool = False) -> list[bool]:
    """Whether each point is on the Pareto frontier of small x and small y (`upwards`: large y); equal points both are.

    A point is dominated if another is at least as good in both and better in one.
    """
    xs, ys = np.array(list(x), dtype=float), np.array(list(y), dtype=float) * (-1 if upwards else 1)
    better: np.ndarray = (xs[:, None] <= xs) & (ys[:, None] <= ys) & ((xs[:, None] < xs) | (ys[:, None] < ys))
    return [not column.any() for column in better.T]


def reference_l0(series: list[Series]) -> float:
    """The L0 that lies within the range of most series, the middle one on a log scale; NaN without two L0s."""
    ladders = [found for one in series if len(found := ladder(one, "l0")) > 1]
    ranges = [(found[0][0], found[-1][0]) for found in ladders]
    ends = sorted({end for pair in ranges for end in pair})
    cover: dict[float, int] = {}
    for middle in (math.sqrt(low * high) for low, high in pairwise(ends)):
        cover[middle] = sum(low <= middle <= high for low, high in ranges)
    best = [middle for middle, count in cover.items() if count == max(cover.values())]
    return best[len(best) // 2] if best else math.nan


def ladder(one: Series, name: str) -> list[tuple[float, float]]:
    """(L0, metric) of a series' finished points, in rising L0."""
    known = [point.metrics for point in one.done("l0", name)]
    return sorted((metrics["l0"], metrics[name]) for metrics in known if metrics["l0"] > 0)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
