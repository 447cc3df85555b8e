"""HTML tables of a report, everything that comes from a run escaped; the page's script makes them sort and filter."""

import math
from collections.abc import Callable, Iterable
from html import escape

import numpy as np

from sae_cli.reporting.collect import LABELS, SHORT, Point
from sae_cli.reporting.comparisons import (
    COMPARED,
    Change,
    Row,
    at_reference,
    best_of,
    penalty_cost,
    penalty_effect,
)
from sae_cli.reporting.groups import Groups, reference_l0
from sae_cli.reporting.replicates import Interval

SEEDS = ", mean ±\u00a095\u00a0% interval over seeds"


def problems_table(points: list[Point]) -> str:
    """Points that are not done, with the reason; empty if there are none."""
    rows = [[escape(text) for text in (p.state, p.run_id, p.error, p.folder)] for p in points if p.state != "done"]
    return plain_table(["state", "run", "error", "folder"], rows) if rows else ""


def reference_table(groups: Groups) -> tuple[str, str]:
    """Explanation and table of every family and penalty at the L0 that most reach; empty if fewer than two do."""
    reference = reference_l0(groups.series)
    rows = [] if math.isnan(reference) else at_reference(groups, reference)
    if sum(bool(row.values) for row in rows) < 2:
        return "", ""
    rows.sort(key=lambda row: row.values["fvu"].mean if "fvu" in row.values else math.inf)
    digits = {n: decimals(row.values[n].mean for row in rows if n in row.values) for n in COMPARED}

    def show(name: str, value: Interval) -> str:
        text = f"{value.mean:.{digits[name]}f}"
        text = f"<b>{text}</b>" if value.mean == best_of(rows, name) else text
        return text if value.half is None else f"{text} <small>± {value.half:.{digits[name]}f}</small>"

    several = any(value.half is not None for row in rows for value in row.values.values())
    note = (
        f"Every nonlinearity and penalty read at L0 = {reference:.3g}, the value that most of them reach: interpolated "
        f"between neighbouring lambdas (linear in log L0){SEEDS * several}. Best of each column in bold."
    )
    return note, _comparison(rows, COMPARED[1:], "points", show)


def effect_table(groups: Groups) -> str:
    """Metrics without → with each penalty, means over matched points; empty if no point has its partner."""
    rows = penalty_effect(groups)
    sides = {
        n: [side for r in rows if n in r.values for side in (r.values[n].before, r.values[n].after)] for n in COMPARED
    }
    digits = {name: decimals(known) for name, known in sides.items()}
    return _comparison(rows, COMPARED, "pairs", lambda name, value: _change(value, digits[name]), missing="<i>–</i>")


def cost_table(groups: Groups) -> str:
    """What each penalty sees of true neighbours and costs in time; empty if no run logged either."""
    heads = {
        "neighbour_recall": "true nearest seen",
        "neighbour_gap": "missed by (cosine)",
        "overhead": "seconds per step",
        "measured": "measured on",
    }

    def show(name: str, value: Interval | Change | str) -> str:
        if isinstance(value, Change):
            return _change(value, decimals([value.before, value.after]))
        if isinstance(value, Interval):
            form = ".1%" if name == "neighbour_recall" else ".4f"
            return f"{value.mean:{form}}" + ("" if value.half is None else f" <small>± {value.half:{form}}</small>")
        return escape(value)

    return _comparison(penalty_cost(groups), heads, "points", show, heads, "<i>–</i>")


def _change(change: Change, digits: int) -> str:
    relative = ""
    if change.relative is not None:
        half = "" if change.relative.half is None else f" ± {100 * change.relative.half:.1f}"
        relative = f"{100 * change.relative.mean:+.1f}{half} %".replace("-", "\u2212")
    return f"{change.before:.{digits}f} → {change.after:.{digits}f} <small class=below>{relative}</small>"


def _comparison(
    rows: list[Row],
    names: Iterable[str],
    count: str,
    show: Callable[..., str],
    heads: dict[str, str] | None = None,
    missing: str = "<i>not reached</i>",
) -> str:
    """A table of those metrics that some row has; empty if there are none."""
    names = [name for name in names if any(name in row.values for row in rows)]
    rest = any(row.rest for row in rows)
    cells = []
    for row in rows:
        values = [show(name, row.values[name]) if name in row.values else missing for name in names]
        about = [row.family, row.setting, *[row.rest] * rest]
        cells.append([*map(escape, about), *values, str(row.count)])
    titles = [heads[n] if heads else f"<abbr title='{LABELS[n]}'>{SHORT[n]}</abbr>" for n in names]
    first = ["nonlinearity", "penalty", *["also"] * rest]
    return plain_table([*first, *titles, count], cells, numeric=len(first)) if names else ""


def decimals(values: Iterable[float]) -> int:
    """Decimals that give the largest value four digits, three if it is small."""
    largest = np.abs(list(values)).max(initial=0)
    digits = 3 - math.floor(math.log10(largest)) if largest else 1
    return max(0, min(digits, max(4, digits - 1)))


def plain_table(heads: list[str], rows: list[list[str]], numeric: int = 99) -> str:
    """A plain table of ready HTML cells; columns from `numeric` on hold numbers."""

    def line(tag: str, cells: list[str]) -> str:
        return "".join(f"<{tag}{' class=number' * (i >= numeric)}>{cell}</{tag}>" for i, cell in enumerate(cells))

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return f"<div class='wide'><table><thead><tr>{line('th', heads)}</tr></thead><tbody>{body}</tbody></table></div>"
