"""HTML tables of a report; everything that comes from a run is escaped."""

import math
from collections.abc import Callable, Iterable
from html import escape
from typing import Any

import numpy as np

from sae_cli.reporting.collect import LABELS, SHORT, Point
from sae_cli.reporting.groups import COMPARED, KIND, LAMBDA, WEIGHT, Groups, at_reference, penalty_effect, reference_l0

NAMES = {LAMBDA: "lambda", KIND: "penalty", WEIGHT: "gamma", "sparsity.kind": "sparsity"}
"""Names of configuration keys in the table where the last component is not enough."""
MOST_ROWS = 24
"""Rows of a comparison table; a larger report is read in its figures."""


def problems_table(points: list[Point]) -> str:
    """Points that are not done, with the reason; empty if there are none."""
    rows = [[escape(text) for text in (p.state, p.run_id, p.error, p.folder)] for p in points if p.state != "done"]
    return plain_table(["state", "run", "error", "folder"], rows) if rows else ""


def reference_table(groups: Groups) -> tuple[str, str]:
    """Explanation and table of every family and penalty at the L0 that most reach; empty if fewer than two do."""
    reference = reference_l0(groups.series)
    rows = [] if math.isnan(reference) else at_reference(groups, reference)
    if sum("series" in row for row in rows) < 2:
        return "", ""
    rows.sort(key=lambda row: row.get("fvu", math.inf))
    best = {n: (max if n == "mcc" else min)((row[n] for row in rows if n in row), default=None) for n in COMPARED}

    def show(row: dict[str, Any], name: str, digits: int) -> str:
        return f"<b>{row[name]:.{digits}f}</b>" if row[name] == best[name] else f"{row[name]:.{digits}f}"

    note = (
        f"Every nonlinearity and penalty read at L0 = {reference:.3g}, the value that most of them reach: interpolated "
        "between neighbouring lambdas (linear in log L0), mean over seeds. Best of each column in bold."
    )
    return note, _comparison(rows, "points", show)


def effect_table(groups: Groups) -> str:
    """Metrics without → with each penalty, means over matched points; empty if no point has its partner."""

    def show(row: dict[str, Any], name: str, digits: int) -> str:
        before, after = row[name]
        change = f"<small>{(after - before) / before:+.0%}</small>" if before > 0 else ""
        return f"{before:.{digits}f} → {after:.{digits}f} {change}"

    return _comparison(penalty_effect(groups), "pairs", show)


def _comparison(rows: list[dict[str, Any]], count: str, show: Callable[[dict[str, Any], str, int], str]) -> str:
    """A table of the COMPARED metrics that some row has; empty if there are none."""
    names = [name for name in COMPARED if any(name in row for row in rows)]
    digits = {name: _decimals(np.ravel([row[name] for row in rows if name in row])) for name in names}
    cells = []
    for row in rows[:MOST_ROWS]:
        values = [show(row, name, digits[name]) if name in row else "<i>not reached</i>" for name in names]
        cells.append([escape(row["family"]), escape(row["setting"]), *values, str(row[count])])
    heads = ["nonlinearity", "penalty", *(f"<abbr title='{LABELS[n]}'>{SHORT[n]}</abbr>" for n in names), count]
    return plain_table(heads, cells, numeric=2) if names else ""


def points_table(points: list[Point], groups: Groups, frontiers: dict[str, list[Point]]) -> str:
    """The sortable, filterable table of every point; cells carry exact values for sorting."""
    values = {name: [point.metrics[name] for point in points if name in point.metrics] for name in LABELS}
    decimals = {name: _decimals(known) for name, known in values.items() if known}
    heads = [("run", "run id"), ("state", "state of the run")]
    heads += [(NAMES.get(key, key.rsplit(".", 1)[-1]), key) for key in groups.keys]
    heads += [(SHORT[name], LABELS[name]) for name in decimals] + [("frontier", "frontiers it lies on")]
    numeric = {key for key in groups.keys if type(groups.series[0].points[0].config[key]) in (int, float)}
    numeric |= {LABELS[name] for name in decimals}
    body = []
    for point in points:
        on = [name.removeprefix("l0_").replace("_", " ") for name, front in frontiers.items() if point in front]
        settings = (point.config.get(key, "") for key in groups.keys)
        cells = [_cell(value) for value in (point.run_id, point.state, *settings)]
        cells += [_cell(point.metrics.get(name, ""), digits) for name, digits in decimals.items()]
        cells.append(_cell(", ".join(on)))
        place = ""
        if point.config:
            place = f" data-family='{groups.families.index(groups.family(point))}'"
            place += f" data-setting='{groups.settings.index(groups.setting(point))}'"
        body.append(f"<tr data-run='{escape(point.run_id)}'{place}>{''.join(cells)}</tr>")
    head = "".join(
        f"<th scope='col' aria-sort='none'{' class=number' * (long in numeric)}>"
        f"<button title='{escape(long)}'>{escape(short)}</button></th>"
        for short, long in heads
    )
    return (
        "<div class='find'><input type='search' placeholder='Filter, such as prolu 0.25' aria-label='Filter points'>"
        f"<span role='status'></span></div><div class='wide'><table class='points'><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _cell(value: object, decimals: int = -1) -> str:
    if isinstance(value, float) and decimals >= 0:
        return f"<td class='number' data-value='{value!r}'>{value:.{decimals}f}</td>"
    if type(value) in (int, float):
        return f"<td class='number' data-value='{value!r}'>{value:{',' if isinstance(value, int) else 'g'}}</td>"
    return f"<td>{escape(str(value))}</td>"


def _decimals(values: Iterable[float]) -> int:
    """Decimals that give the largest value four digits, three if it is small."""
    largest = max((abs(value) for value in values), default=0)
    digits = 3 - math.floor(math.log10(largest)) if largest else 1
    return max(0, min(digits, max(4, digits - 1)))


def plain_table(heads: list[str], rows: list[list[str]], numeric: int = 99) -> str:
    """A plain table of ready HTML cells; columns from `numeric` on hold numbers."""

    def line(tag: str, cells: list[str]) -> str:
        return "".join(f"<{tag}{' class=number' * (i >= numeric)}>{cell}</{tag}>" for i, cell in enumerate(cells))

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return f"<div class='wide'><table><thead><tr>{line('th', heads)}</tr></thead><tbody>{body}</tbody></table></div>"
