"""Tables of a report that compare series: cells of text, in which everything that comes from a run gets escaped."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from markupsafe import Markup

from sae_cli.reporting.collect import LABELS, SHORT
from sae_cli.reporting.comparisons import COMPARED, Change, Row, at_reference, best_of, penalty_cost, penalty_effect
from sae_cli.reporting.groups import Groups
from sae_cli.reporting.replicates import Interval

Table = dict[str, Any]
"""What the page's macro `table` takes: heads, rows of cells, and `numeric`, the first column of numbers."""
HEADS = {name: Markup("<abbr title='{}'>{}</abbr>").format(LABELS[name], SHORT[name]) for name in COMPARED}
COSTS = {
    "neighbour_recall": "true nearest seen",
    "neighbour_gap": "missed by (cosine)",
    "overhead": "seconds per step",
    "measured": "measured on",
}
NONE = Markup("<i>–</i>")


def reference_table(groups: Groups, reference: float) -> Table | None:
    """Every family and penalty at the L0 `reference`, the best of a column in bold; None if fewer than two reach it."""
    rows = [] if math.isnan(reference) else at_reference(groups, reference)
    if sum(bool(row.values) for row in rows) < 2:
        return None
    rows.sort(key=lambda row: row.values["fvu"].mean if "fvu" in row.values else math.inf)
    digits = {n: decimals(row.values[n].mean for row in rows if n in row.values) for n in COMPARED}

    def show(name: str, value: Interval) -> Markup:
        return _interval(value, f".{digits[name]}f", best=value.mean == best_of(rows, name))

    return _comparison(rows, HEADS, "points", show, Markup("<i>not reached</i>"))


def effect_table(groups: Groups) -> Table | None:
    """Metrics without → with each penalty, means over matched points; None if no point has its partner."""
    rows = penalty_effect(groups)
    known = {name: [row.values[name] for row in rows if name in row.values] for name in COMPARED}
    digits = {name: decimals(side for one in ones for side in (one.before, one.after)) for name, ones in known.items()}
    return _comparison(rows, HEADS, "pairs", lambda name, value: _change(value, digits[name]))


def cost_table(groups: Groups) -> Table | None:
    """What each penalty sees of true neighbours and costs in time; None if no run logged either."""

    def show(name: str, value: Interval | Change | str) -> str:
        if isinstance(value, Change):
            return _change(value, decimals([value.before, value.after]))
        if isinstance(value, Interval):
            return _interval(value, ".1%" if name == "neighbour_recall" else ".4f")
        return value

    return _comparison(penalty_cost(groups), COSTS, "points", show)


def _interval(value: Interval, form: str, best: bool = False) -> Markup:
    half = "" if value.half is None else Markup(" <small>± {}</small>").format(f"{value.half:{form}}")
    return Markup("<b>{}</b>" if best else "{}").format(f"{value.mean:{form}}") + half


def _change(change: Change, digits: int) -> Markup:
    relative = ""
    if change.relative is not None:
        half = "" if change.relative.half is None else f" ± {100 * change.relative.half:.1f}"
        relative = f"{100 * change.relative.mean:+.1f}{half} %".replace("-", "\u2212")
    sides = f"{change.before:.{digits}f} → {change.after:.{digits}f}"
    return Markup("{} <small class=below>{}</small>").format(sides, relative)


def _comparison(
    rows: list[Row], heads: dict[str, Any], count: str, show: Callable[..., str], missing: Markup = NONE
) -> Table | None:
    """A table of those metrics that some row has; None if there are none."""
    heads = {name: head for name, head in heads.items() if any(name in row.values for row in rows)}
    rest = any(row.rest for row in rows)
    cells = []
    for row in rows:
        values = [show(name, row.values[name]) if name in row.values else missing for name in heads]
        cells.append([row.family, row.setting, *[row.rest] * rest, *values, row.count])
    first = ["nonlinearity", "penalty", *["also"] * rest]
    return {"heads": [*first, *heads.values(), count], "rows": cells, "numeric": len(first)} if heads else None


def decimals(values: Iterable[float]) -> int:
    """Decimals that give the largest value four digits, three if it is small."""
    largest = np.abs(list(values)).max(initial=0)
    digits = 3 - math.floor(math.log10(largest)) if largest else 1
    return max(0, min(digits, max(4, digits - 1)))
