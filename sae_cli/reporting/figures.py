"""Plotly figures of a report: each function takes the groups and gives go.Figure objects that stand alone too."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from sae_cli.reporting.collect import HEATMAP, HEATMAP_BIAS, LABELS, SHORT, Point, at
from sae_cli.reporting.groups import KIND, LAMBDA, WEIGHT, Groups, non_dominated
from sae_cli.reporting.look import NEUTRAL, SCALE, SHADE, marks, named

FRONTIERS = {
    "l0_delta_ce": ("l0", "delta_ce"),
    "l0_fvu": ("l0", "fvu"),
    "l0_l1": ("l0", "l1"),
    "l1_mse": ("l1", "mse"),
    "l0_mcc": ("l0", "mcc"),
}
"""Frontier figures: name -> (x, y); small is good, but for MCC."""
CURVES = {
    "fvu": "FVU of the batch",
    "l0": "L0 (active latents per row)",
    "loss": "loss (summed over D, scaled units)",
    "dead": "dead latents (share)",
    "nearest_cosine": "mean nearest cosine of directions",
    "negative_biases": "negative biases (share)",
}
"""Training curves: key of a metrics.jsonl line -> axis title."""
HEATMAPS = ("fvu", "l0", "delta_ce", "nearest_cosine", "mcc")
TRUTHS = 6
"""Most heatmaps of true features."""
CROWD = 60
"""Points of a frontier figure above which markers are smaller."""
CURVE_POINTS, ALL_POINTS = 200, 30_000
"""Most points of one curve, and of one figure's curves together (with a floor of 40 each)."""


def frontier(groups: Groups, name: str) -> tuple[go.Figure, list[Point]] | None:
    """Scatter of finished points for FRONTIERS[name], series joined along lambda, and the non-dominated points.

    Non-dominated points are filled, the others hollow. None if no finished point has both metrics.
    """
    names = x_name, y_name = FRONTIERS[name]
    every = [point for one in groups.series for point in one.done(*names)]
    if not every:
        return None
    xs, ys = ([point.metrics[metric] for point in every] for metric in names)
    kept = non_dominated(xs, ys, upwards=y_name == "mcc")
    front = [point for point, keep in zip(every, kept, strict=True) if keep]
    best = {id(point) for point in front}
    large, small = (12, 9) if len(every) <= CROWD else (8, 5)
    edge = sorted({(point.metrics[x_name], point.metrics[y_name]) for point in front})
    steps = {"color": SHADE, "width": 8, "shape": "hv"}
    data = [_line([x for x, _ in edge], [y for _, y in edge], name="frontier", hoverinfo="skip", line=steps)]
    for one in groups.series:
        if not (points := one.done(*names)):
            continue
        colour, symbol, dash = marks(groups, one)
        x, y = ([point.metrics[metric] for point in points] for metric in names)
        trace = _line(
            x,
            y,
            line={"color": colour, "width": 1.3, "dash": dash},
            marker={
                "color": colour,
                "line": {"width": 1.5, "color": colour},
                "symbol": [symbol if id(point) in best else f"{symbol}-open" for point in points],
                "size": [large if id(point) in best else small for point in points],
            },
            text=[describe(groups, point) for point in points],
            hovertemplate="%{text}<extra></extra>",
            customdata=[point.run_id for point in points],
            **named(groups, one, data),
        )
        data.append(trace | {"mode": "lines+markers"})
    return _figure(data, _axis(LABELS[x_name], xs), _axis(LABELS[y_name], ys)), front


def heatmaps(groups: Groups, metric: str) -> dict[str, go.Figure]:
    """lambda x penalty for each nonlinearity, on one colour scale; several points in a cell are averaged.

    Empty unless lambda or the penalty varies and the metric is known.
    """
    cells: dict[str, dict[tuple[float, str], list[float]]] = {}
    for one in groups.series:
        for point in one.done(metric):
            cell = cells.setdefault(one.family, {})
            cell.setdefault((point.config[LAMBDA], one.setting), []).append(point.metrics[metric])
    means = {family: {key: float(np.mean(found)) for key, found in cell.items()} for family, cell in cells.items()}
    keys = {key for cell in means.values() for key in cell}
    if len(keys) < 2:
        return {}
    lambdas = sorted({value for value, _ in keys})
    settings = [setting for setting in groups.settings if any(setting == name for _, name in keys)]
    values = [value for cell in means.values() for value in cell.values()]
    crowded = len(lambdas) > 6
    figures = {}
    for family, mean in means.items():
        trace = _heatmap(
            [[mean.get((value, setting)) for value in lambdas] for setting in settings],
            min(values),
            max(values),
            f"lambda %{{x}}, %{{y}}<br>{LABELS[metric]} %{{z:.4~g}}<extra></extra>",
            x=[f"{value:g}" for value in lambdas],
            y=[escape(setting) for setting in settings],
            hoverongaps=False,
            xgap=3,
            ygap=3,
            # Numbers where they fit into the cells, else a colour bar.
            texttemplate="" if crowded else "%{z:.3r}",
            textfont={"size": 13},
            showscale=crowded,
        )
        plain = {"type": "category", "showgrid": False}
        figures[family] = _figure([trace], plain | {"title": "lambda"}, plain, height=74 + 52 * max(2, len(settings)))
    return figures


def curves(groups: Groups, key: str) -> go.Figure | None:
    """One training metric over the rows seen, one line per run; a stronger lambda is a stronger line."""
    members = [(one, point) for one in groups.series for point in one.points]
    lambdas = sorted({point.config[LAMBDA] for _, point in members})
    most = max(40, min(CURVE_POINTS, ALL_POINTS // max(1, len(members))))
    data: list[dict[str, Any]] = []
    for one, point in members:
        if not {"tokens", key} <= set(point.curve):
            continue
        known = np.stack([point.curve[name].to_numpy(np.float32) for name in ("tokens", key)], axis=1)
        known = known[np.isfinite(known).all(axis=1)]
        x, y = known[np.unique(np.linspace(0, max(0, len(known) - 1), min(most, len(known))).round().astype(int))].T
        rank = (lambdas.index(point.config[LAMBDA]) + 1) / len(lambdas)
        colour, _, dash = marks(groups, one)
        trace = _line(
            x,
            y,
            opacity=0.35 + 0.65 * rank,
            line={"color": colour, "dash": dash, "width": 1.2 + rank},
            hovertemplate=f"{escape(groups.label(point))}<br>%{{x:.3s}} rows: %{{y:.4~g}}<extra></extra>",
            **named(groups, one, data),
        )
        data.append(trace)
    values = [float(value) for trace in data for value in trace["y"]]
    return _figure(data, {"title": "rows seen in training"}, _axis(CURVES[key], values)) if data else None


def histogram(groups: Groups, where: str, counts: str, title: str, random: str = "") -> go.Figure | None:
    """A histogram of eval.json as one line of unit area per run; `random` names a curve to hold the lines against."""
    data: list[dict[str, Any]] = []
    baselines: dict[bytes, dict[str, Any]] = {}
    for one in groups.series:
        colour, _, dash = marks(groups, one)
        for point in one.points:
            found = at(point.evaluation, where) or {}
            if not sum(found.get(counts) or []):
                continue
            line = _density(found["edges"], found[counts], groups.label(point))
            data.append(line | {"line": {"color": colour, "dash": dash, "width": 1.6}} | named(groups, one, data))
            if random in found:
                curve = _density(found["edges"], found[random], "random directions")
                look = {"name": "random directions", "fill": "tozeroy", "fillcolor": SHADE}
                baselines[curve["y"].round(2).tobytes()] = curve | look | {"line": {"color": NEUTRAL, "width": 1}}
    if not data:
        return None
    data = [*baselines.values(), *data]
    seen = np.concatenate([trace["x"][trace["y"] > 0.002 * trace["y"].max()] for trace in data])
    x_axis = {"title": title, "range": [float(seen.min()), float(seen.max())]}
    return _figure(data, x_axis, {"title": "density of latents (area 1)", "rangemode": "tozero"})


def truth(groups: Groups) -> dict[str, go.Figure]:
    """|cos| of latents (rows), then of the decoder bias, with true features (columns), for the highest MCC of each
    nonlinearity and penalty."""
    known = [(one, p) for one in groups.series for p in one.done("mcc") if at(p.evaluation, HEATMAP)]
    known.sort(key=lambda pair: -pair[1].metrics["mcc"])
    best: dict[tuple[str, str], Point] = {}
    for one, point in known:
        best.setdefault((one.family, one.setting), point)
    figures = {}
    for point in list(best.values())[:TRUTHS]:
        size = np.abs(np.array(at(point.evaluation, HEATMAP), dtype=np.float32)).T
        rows = [f"latent {row}" for row in range(len(size))]
        ticks = rows[:: max(1, len(rows) // 6)]
        if bias := at(point.evaluation, HEATMAP_BIAS):
            size = np.vstack([size, np.abs(np.array(bias, dtype=np.float32))])
            rows, ticks = [*rows, "b_dec"], [*ticks, "b_dec"]
        trace = _heatmap(size, 0, 1, "%{y}, true feature %{x}: |cos| %{z:.3f}<extra></extra>", y=rows)
        plain = {"showgrid": False, "zeroline": False}
        x = {"title": "true feature", "tick0": 0, "dtick": max(1, size.shape[1] // 6)}
        y = {"title": "latent, in matched order", "autorange": "reversed", "type": "category", "tickvals": ticks}
        title = f"{groups.label(point)} · MCC {point.metrics['mcc']:.3f}"
        figures[title] = _figure([trace], plain | x, plain | y)
    return figures


def describe(groups: Groups, point: Point) -> str:
    """Hover text: what the point is, then its numbers."""
    lines = [f"<b>{escape(groups.label(point))}</b>", f"run {escape(point.run_id)}"]
    plain = ("sae.nonlinearity", "sparsity.kind", LAMBDA, KIND, WEIGHT)
    lines += [f"{key} = {escape(str(point.config.get(key)))}" for key in groups.keys if key not in plain]
    return "<br>".join(lines + [f"{SHORT[name]} {value:.4g}" for name, value in point.metrics.items()])


def _figure(data: list[dict[str, Any]], x: dict[str, Any], y: dict[str, Any], height: int | None = None) -> go.Figure:
    return go.Figure({"data": data, "layout": {"xaxis": x, "yaxis": y, "hovermode": "closest", "height": height}})


def _line(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray, **look: Any) -> dict[str, Any]:
    return {"type": "scatter", "mode": "lines", "x": x, "y": y} | look


def _heatmap(z: Any, low: float, high: float, hover: str, **look: Any) -> dict[str, Any]:
    scale = {"zmin": low, "zmax": high, "colorscale": SCALE, "showscale": False}
    return {"type": "heatmap", "z": z, "hovertemplate": hover} | scale | look


def _density(edges: list[float], counts: list[float], label: str) -> dict[str, Any]:
    """A line through the middles of the bins whose area is 1."""
    edge, count = np.array(edges, dtype=float), np.array(counts, dtype=float)
    density = count / count.sum() / np.diff(edge)
    hover = f"{escape(label)}<br>at %{{x:.3~g}}: %{{y:.3~g}}<extra></extra>"
    middle = (edge[1:] + edge[:-1]) / 2
    return _line(middle.astype(np.float32), density.astype(np.float32), hovertemplate=hover)


def _axis(title: str, values: Sequence[float]) -> dict[str, Any]:
    """Logarithmic if the values are positive and span a factor of 6, with ticks that read as plain numbers."""
    low, high = min(values, default=0), max(values, default=0)
    if low <= 0 or high < 6 * low:
        return {"title": title}
    steps = (1, 2, 5) if high < 300 * low else (1,)
    ticks = [step * 10.0**power for power in range(-12, 13) for step in steps]
    return {"title": title, "type": "log", "tickvals": ticks, "ticktext": [f"{tick:.7g}" for tick in ticks]}
