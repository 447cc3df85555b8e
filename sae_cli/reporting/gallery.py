"""What a report shows, outside its page: its figures by name, its table and its best points, for other viewers."""

import re
from statistics import fmean
from typing import Any

import numpy as np
import plotly.graph_objects as go

from sae_cli.reporting import figures
from sae_cli.reporting.collect import LABELS, Point, frame
from sae_cli.reporting.groups import LADDER, Groups
from sae_cli.reporting.look import SCALE, theme
from sae_cli.reporting.report import HISTOGRAMS

MAPS = ("fvu", "l0", "delta_ce", "nearest_cosine", "mcc")
"""Metrics of which there is a map; the page draws one of any."""


def figures_of(points: list[Point]) -> dict[str, go.Figure]:
    """Return the report's figures, such as {"frontier/l0_fvu": ...}, in the light look with plain lists in them."""
    groups = Groups(points)
    found: dict[str, figures.Figure | None] = {}
    for name in figures.FRONTIERS:
        found[f"frontier/{name}"] = (figures.frontier(groups, name) or (None,))[0]
    for name in MAPS:
        found |= {f"map/{name} {family}": _map(groups, name, family) for family in groups.families}
    found |= {f"curve/{name}": figures.curves(groups, name) for name in figures.CURVES}
    found |= {f"histogram/{title}": figures.histogram(groups, *where) for title, *where in HISTOGRAMS}
    found |= {f"truth/{title}": one for title, one in figures.truth(groups).items()}
    look = {"template": theme(dark=False), "paper_bgcolor": "white"}
    return {
        re.sub(r"[^\w/.]+", "_", name): go.Figure(_plain(one)).update_layout(look) for name, one in found.items() if one
    }


def _map(groups: Groups, metric: str, family: str) -> figures.Figure | None:
    """A metric over lambda and penalty, mean over the points of a cell; None for fewer than two cells."""
    cells: dict[tuple[str, str], list[float]] = {}
    for one in groups.series:
        for point in one.done(metric) if one.family == family else ():
            step = ", ".join(f"{value:g}" for value in groups.step(point))
            cells.setdefault((one.setting, step), []).append(point.metrics[metric])
    if len(cells) < 2:
        return None
    rows, columns = (list(dict.fromkeys(keys)) for keys in zip(*cells, strict=True))
    columns.sort(key=lambda step: [float(value) for value in step.split(", ")])
    z = [[fmean(cells[row, column]) if (row, column) in cells else None for column in columns] for row in rows]
    titles = [
        {"title": {"text": text}, "type": "category"} for text in (", ".join(LADDER[key] for key in groups.ladder), "")
    ]
    trace = {"type": "heatmap", "x": columns, "y": rows, "z": z, "colorscale": SCALE, "texttemplate": "%{z:.3r}"}
    layout = {"title": {"text": LABELS[metric]}, "xaxis": titles[0], "yaxis": titles[1]}
    return {"data": [trace], "layout": layout}


def _plain(value: Any) -> Any:
    """The value with lists for arrays: other viewers need not know the binary form in which plotly writes those."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def table_of(points: list[Point]) -> list[dict[str, Any]]:
    """Return a row per point: run, state, the settings that vary, and the metrics that some point knows."""
    table = frame(points).rename(columns=lambda name: name.removeprefix("config.")).convert_dtypes()
    names = ["state", *Groups(points).keys, *(name for name in LABELS if table[name].notna().any())]
    shown = table.rename(columns={"run_id": "run"})[["run", *names]].astype(object)
    return shown.where(shown.notna(), None).to_dict("records")


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
