"""What follows from comparing series: metrics at one L0, the effect of a penalty, and what the penalty costs."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from sae_cli.reporting.collect import Point
from sae_cli.reporting.groups import OFF, Groups, is_penalised, ladder
from sae_cli.reporting.replicates import Interval, over

COMPARED = ("l0", "fvu", "delta_ce", "nearest_cosine", "mcc")
"""Metrics of the comparison tables."""
KEY = ["family", "setting", "rest"]


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
    for (family, setting, rest), pairs in _pairs(_finished(groups)):
        known = {name: pairs.dropna(subset=[name, f"{name}_off"]) for name in COMPARED if name in pairs}
        values = {name: _change(found, name) for name, found in known.items() if len(found)}
        rows.append(Row(family, setting, rest, len(pairs), values))
    return rows


def _finished(groups: Groups) -> pd.DataFrame:
    """Finished points in the order of the series: KEY, seed, step (place on the ladder), point, and the metrics."""
    columns = [*KEY, "seed", "step", "point"]
    found = ((one, point) for one in groups.series for point in one.done())
    rows = [
        dict(zip(columns, (one.family, one.setting, one.rest, one.seed, groups.step(point), point), strict=True))
        | point.metrics
        for one, point in found
    ]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=columns)


def _pairs(done: pd.DataFrame) -> Iterable[tuple[Any, pd.DataFrame]]:
    """Points with a penalty by KEY, each beside the columns of the same point without it, named *_off."""
    same = ["family", "rest", "seed", "step"]
    off = done[done.setting == OFF].drop_duplicates(same, keep="last")
    return done[done.setting != OFF].merge(off, on=same, suffixes=("", "_off")).groupby(KEY, sort=False)


def _change(pairs: pd.DataFrame, name: str) -> Change:
    shared = pairs[pairs.groupby("step").seed.transform("nunique") == pairs.seed.nunique()]
    seeds = pairs.assign(seed="") if shared.empty else shared
    before, after = seeds.groupby("seed")[[f"{name}_off", name]].mean().to_numpy().T
    relative = over((after / before - 1).tolist()) if (before > 0).all() else None
    return Change(float(before.mean()), float(after.mean()), relative)


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
    done = _finished(groups)
    pairs = dict(iter(_pairs(done)))
    rows = []
    for key, members in done[done.setting != OFF].groupby(KEY, sort=False):
        logged = [name for name in ("neighbour_recall", "neighbour_gap") if name in members]
        seeds = {name: members.groupby("seed")[name].mean().dropna() for name in logged}
        values: dict[str, Any] = {name: over(found.tolist()) for name, found in seeds.items() if len(found)}
        if key in pairs:
            values |= _overhead(pairs[key], stacks, groups.variant)
        if values:
            family, setting, rest = key
            rows.append(Row(family, setting, rest, len(members), values))
    return rows


def _overhead(pairs: pd.DataFrame, stacks: dict[int, list[Point]], variant: Callable[[Point], str]) -> dict[str, Any]:
    """`overhead` and where it was `measured`, over the matching stacks, each once; nothing if none match."""
    found: dict[str, set[tuple[float, float]]] = {}
    for plain, point in zip(pairs.point_off, pairs.point, strict=True):
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
