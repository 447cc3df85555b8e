"""What follows from comparing series: metrics at one L0, the effect of a penalty, and what the penalty costs."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from sae_cli.reporting.collect import Point
from sae_cli.reporting.groups import OFF, Groups, is_penalised, ladder
from sae_cli.reporting.replicates import Interval, over

COMPARED = ("l0", "fvu", "delta_ce", "nearest_cosine", "mcc")
"""Metrics of the comparison tables."""


@dataclass
class Row:
    """One line of a comparison: its names, and what was found for each metric."""

    family: str
    setting: str
    rest: str
    count: int
    values: dict[str, Any] = field(default_factory=dict)


def at_reference(groups: Groups, reference: float) -> list[Row]:
    """Each family and penalty at one L0: {metric: Interval over seeds}, interpolated along lambda (linear in log L0).

    A metric is missing where no seed reaches the reference from both sides; `count` is that of finished points.
    """
    rows = []
    for family, setting, rest in dict.fromkeys((one.family, one.setting, one.rest) for one in groups.series):
        members = [s for s in groups.series if (s.family, s.setting, s.rest) == (family, setting, rest)]
        row = Row(family, setting, rest, sum(len(one.done()) for one in members))
        for name in COMPARED[1:]:
            if values := [v for one in members if (v := _interpolate(ladder(one, name), reference)) is not None]:
                row.values[name] = over(values)
        rows.append(row)
    return rows


@dataclass
class Change:
    """A metric without and with a penalty, means over pairs; `relative` is the change over seeds, if it is defined."""

    before: float
    after: float
    relative: Interval | None


def penalty_effect(groups: Groups) -> list[Row]:
    """Each family and penalty against the same points without it: {metric: Change}; `count` is that of pairs.

    Where there are several seeds only lambdas that all of them have count, so that seeds differ in the seed alone.
    """
    rows = []
    for (family, setting, rest), pairs in _pairs(groups).items():
        row = Row(family, setting, rest, len(pairs))
        for name in COMPARED:
            known = [pair for pair in pairs if all(name in point.metrics for point in pair[2:])]
            if known:
                row.values[name] = _change(known, name)
        rows.append(row)
    return rows


Pair = tuple[str, tuple[float, ...], Point, Point]
"""Seed, place on the ladder, the point without the penalty, the point with it."""


def _pairs(groups: Groups) -> dict[tuple[str, str, str], list[Pair]]:
    done = [(one, point) for one in groups.series for point in one.done()]
    plain = {(s.family, s.rest, s.seed, groups.step(p)): p for s, p in done if s.setting == OFF}
    pairs: dict[tuple[str, str, str], list[Pair]] = {}
    for one, point in done:
        partner = plain.get((one.family, one.rest, one.seed, groups.step(point)))
        if partner and one.setting != OFF:
            key = (one.family, one.setting, one.rest)
            pairs.setdefault(key, []).append((one.seed, groups.step(point), partner, point))
    return pairs


def _change(pairs: list[Pair], name: str) -> Change:
    steps = {seed: {pair[1] for pair in pairs if pair[0] == seed} for seed, *_ in pairs}
    shared = set.intersection(*steps.values())
    kept = [pair for pair in pairs if pair[1] in shared] or pairs
    values = {seed: [(a.metrics[name], b.metrics[name]) for s, _, a, b in kept if s == seed] for seed in steps}
    if not shared:
        values = {"": [both for found in values.values() for both in found]}
    means = np.array([np.mean(found, axis=0) for found in values.values()])
    relative = over((means[:, 1] / means[:, 0] - 1).tolist()) if (means[:, 0] > 0).all() else None
    return Change(float(means[:, 0].mean()), float(means[:, 1].mean()), relative)


def penalty_cost(groups: Groups) -> list[Row]:
    """What each penalty sees and costs: `neighbour_recall`, `neighbour_gap` (Interval) and `overhead` (Change, words).

    Points of one stack share a clock, by which stacks are told. A stack's step is held against that of a stack of as
    many points without any penalty that are otherwise the same, on the same kind of device.
    """
    clocks: dict[Any, list[Point]] = {}
    for point in groups.points:
        if "seconds" in point.curve:
            clocks.setdefault((point.sweep, point.device, point.curve["seconds"].tobytes()), []).append(point)
    stacks = {id(point): members for members in clocks.values() for point in members}
    pairs = _pairs(groups)
    rows = []
    for key in dict.fromkeys((one.family, one.setting, one.rest) for one in groups.series if one.setting != OFF):
        members = [point for s in groups.series if (s.family, s.setting, s.rest) == key for point in s.done()]
        row = Row(*key, len(members))
        for name in ("neighbour_recall", "neighbour_gap"):
            seeds: dict[str, list[float]] = {}
            for point in members:
                if name in point.metrics:
                    seeds.setdefault(groups.seed(point), []).append(point.metrics[name])
            if seeds:
                row.values[name] = over([fmean(values) for values in seeds.values()])
        row.values |= _overhead(pairs.get(key, []), stacks, groups.variant)
        rows.append(row)
    return [row for row in rows if row.values]


def _overhead(pairs: list[Pair], stacks: dict[int, list[Point]], variant: Callable[[Point], str]) -> dict[str, Any]:
    """`overhead` and where it was `measured`, over the matching stacks, each once; nothing if none match."""
    found: dict[str, set[tuple[float, float]]] = {}
    for _, _, plain, point in pairs:
        with_it, without = stacks.get(id(point), []), stacks.get(id(plain), [])
        pure = len({variant(one) if is_penalised(one) else OFF for one in with_it}) == 1
        equal = len(with_it) == len(without) > 0 and point.device == plain.device
        both = [one.metrics.get("step_seconds", math.nan) for one in (plain, point)]
        if pure and equal and not any(map(is_penalised, without)) and all(value > 0 for value in both):
            where = f"{point.device or 'unknown device'}, {len(without)} point{'s at once' * (len(without) > 1)}"
            found.setdefault(where, set()).add((both[0], both[1]))
    if not found:
        return {}
    where, values = max(found.items(), key=lambda item: len(item[1]))
    before, after = np.mean(list(values), axis=0).tolist()
    return {"overhead": Change(before, after, over([b / a - 1 for a, b in values])), "measured": where}


def _interpolate(known: list[tuple[float, float]], reference: float) -> float | None:
    if len(known) < 2 or not known[0][0] <= reference <= known[-1][0]:
        return None
    return float(np.interp(math.log(reference), [math.log(l0) for l0, _ in known], [value for _, value in known]))


def best_of(rows: Iterable[Row], name: str) -> float | None:
    """The best mean of a metric: the largest MCC, the smallest of all others."""
    return (max if name == "mcc" else min)((row.values[name].mean for row in rows if name in row.values), default=None)
