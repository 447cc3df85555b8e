"""What a report shows, outside its page: its figures by name, its table and its best points, for other viewers."""

import json
import re
from typing import Any

import numpy as np
import plotly.graph_objects as go

from sae_cli.reporting import figures
from sae_cli.reporting.collect import Point
from sae_cli.reporting.groups import Groups
from sae_cli.reporting.look import theme
from sae_cli.reporting.report import HISTOGRAMS


def figures_of(points: list[Point]) -> dict[str, go.Figure]:
    """Return the report's figures, such as {"frontier/l0_fvu": ...}, in the light look with plain lists in them."""
    groups = Groups(points)
    found: dict[str, go.Figure | None] = {}
    for name in figures.FRONTIERS:
        found[f"frontier/{name}"] = (figures.frontier(groups, name) or (None,))[0]
    for name in figures.HEATMAPS:
        found |= {f"map/{name} {family}": one for family, one in figures.heatmaps(groups, name).items()}
    found |= {f"curve/{name}": figures.curves(groups, name) for name in figures.CURVES}
    found |= {f"histogram/{title}": figures.histogram(groups, *where) for title, *where in HISTOGRAMS}
    found |= {f"truth/{title}": one for title, one in figures.truth(groups).items()}
    known = {re.sub(r"[^\w/.]+", "_", name): one for name, one in found.items() if one}
    for one in known.values():
        one.update_layout(template=theme(dark=False), paper_bgcolor="white")
        for trace in one.data:
            for name in ("x", "y", "z"):
                # Other viewers need not know the binary form in which plotly writes arrays; equal values it keeps.
                if isinstance(array := getattr(trace, name, None), np.ndarray):
                    trace[name] = None
                    trace[name] = array.tolist()
    return known


def table_of(points: list[Point]) -> list[dict[str, Any]]:
    """Return a row per point: run, state, the settings that vary, and the metrics that some point knows."""
    keys = Groups(points).keys
    names = dict.fromkeys(name for point in points for name in point.metrics)
    rows = []
    for point in points:
        settings = {key: point.config.get(key) for key in keys}
        settings = {key: json.dumps(value) if isinstance(value, list) else value for key, value in settings.items()}
        metrics = {name: point.metrics.get(name) for name in names}
        rows.append({"run": point.run_id, "state": point.state, **settings, **metrics})
    return rows


def summary_of(points: list[Point]) -> dict[str, Any]:
    """Return the number of points, and of each frontier its runs and the point that is best on the second axis."""
    groups = Groups(points)
    summary: dict[str, Any] = {"points": len(points), "done": sum(point.state == "done" for point in points)}
    for name, (x, y) in figures.FRONTIERS.items():
        if found := figures.frontier(groups, name):
            best = (max if y == "mcc" else min)(found[1], key=lambda point: point.metrics[y])
            summary[f"best/{name}"] = {x: best.metrics[x], y: best.metrics[y], "run": best.run_id}
            summary[f"frontier_runs/{name}"] = [point.run_id for point in found[1]]
    return summary
