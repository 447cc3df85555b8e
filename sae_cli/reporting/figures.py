"""Plotly figures of a report: every function takes the groups and gives go.Figure objects that stand alone too.

Encoding, the same everywhere: colour is the nonlinearity, marker symbol and dash are the orthogonality penalty.
Colours are those of the light look; `DARK` names their partners in the dark one.
"""

from collections.abc import Iterable
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from sae_cli.reporting.collect import LABELS, METRICS, Point
from sae_cli.reporting.groups import KIND, LAMBDA, OFF, WEIGHT, Groups, Series, non_dominated

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#c2569b", "#8a6d00", "#5b4bb5", "#5f6670")
"""Okabe and Ito's colour-blind safe palette, darkened where it was too light for lines on white."""
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star", "triangle-down", "pentagon", "hexagon", "x")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
NEUTRAL, SHADE, LOW, MIDDLE, HIGH = "#6b7280", "#e7e5df", "#f4f1ea", "#8fb8d6", "#0b4f7d"
DARK = dict(zip(COLOURS, ("#5aaee8", "#ff9248", "#33cf9f", "#ee9bcb", "#e8c65a", "#ada2f7", "#aab2bd"), strict=True)) | {
    NEUTRAL: "#a3a9b5", SHADE: "#333842", LOW: "#1f242c", MIDDLE: "#2f6690", HIGH: "#9ed4ff"
}  # fmt: skip
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
CURVE_POINTS, ALL_POINTS = 200, 30_000
"""Most points of one curve, and of one figure's curves together (with a floor of 40 each)."""


def theme(dark: bool) -> go.layout.Template:
    """The plain look of all figures, transparent so that the page shows through."""
    ink, muted, grid, card = ("#e6e8eb", "#a3a9b5", "#2b3038", "#1d2127") if dark else (
        "#22262b", "#5d646e", "#eceae4", "#ffffff")  # fmt: skip
    axis = {"gridcolor": grid, "linecolor": grid, "zerolinecolor": grid, "tickcolor": grid, "automargin": True}
    axis |= {"tickfont": {"color": muted}, "title": {"font": {"color": muted, "size": 13}, "standoff": 10}}
    hover = {"bgcolor": card, "bordercolor": grid, "align": "left", "font": {"color": ink, "size": 12}}
    layout = {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "xaxis": axis, "yaxis": axis}
    font = {"family": "Inter, system-ui, -apple-system, 'Segoe UI', sans-serif", "size": 12, "color": ink}
    margin = {"l": 8, "r": 12, "t": 12, "b": 8}
    legend = {"bgcolor": "rgba(0,0,0,0)"}
    return go.layout.Template(layout=layout | {"font": font, "hoverlabel": hover, "margin": margin, "legend": legend})


def frontier(groups: Groups, name: str) -> tuple[go.Figure, list[Point]] | None:
    """Scatter of finished points for FRONTIERS[name], series joined along lambda, and the non-dominated points.

    Non-dominated points are filled, the others hollow. None if no finished point has both metrics.
    """
    x_name, y_name = FRONTIERS[name]
    series = [(one, _finished(one, x_name, y_name)) for one in groups.series]
    every = [point for _, points in series for point in points]
    if not every:
        return None
    up = y_name == "mcc"
    xs, ys = ([point.metrics[metric] for point in every] for metric in (x_name, y_name))
    mask = non_dominated(xs, ys, up)
    front = [point for point, kept in zip(every, mask, strict=True) if kept]
    best = {id(point) for point in front}
    figure = go.Figure()
    edge = sorted({(point.metrics[x_name], point.metrics[y_name]) for point in front})
    figure.add_scatter(
        x=[x for x, _ in edge], y=[y for _, y in edge], mode="lines", name="frontier", hoverinfo="skip",
        line={"color": SHADE, "width": 9, "shape": "hv"},
    )  # fmt: skip
    for one, points in series:
        if not points:
            continue
        colour, symbol, _ = _look(groups, one)
        shown = [id(point) in best for point in points]
        marker = {
            "color": colour, "line": {"width": 1.5, "color": colour},
            "symbol": [symbol if kept else f"{symbol}-open" for kept in shown],
            "size": [12 if kept else 9 for kept in shown],
        }  # fmt: skip
        figure.add_scatter(
            x=[point.metrics[x_name] for point in points], y=[point.metrics[y_name] for point in points],
            mode="lines+markers", line={"color": colour, "width": 1.4, "dash": "dot"}, marker=marker,
            text=[describe(groups, point) for point in points], hovertemplate="%{text}<extra></extra>",
            customdata=[point.run_id for point in points], **_named(groups, one, figure),
        )  # fmt: skip
    figure.update_layout(xaxis=_axis(LABELS[x_name], xs), yaxis=_axis(LABELS[y_name], ys), hovermode="closest")
    return figure, front


def heatmaps(groups: Groups, metric: str) -> dict[str, go.Figure]:
    """lambda x penalty for each nonlinearity, on one colour scale; several points in a cell are averaged.

    Empty unless lambda or the penalty varies and the metric is known.
    """
    cells: dict[str, dict[tuple[float, str], list[float]]] = {}
    for one in groups.series:
        for point in _finished(one, metric):
            cells.setdefault(one.family, {}).setdefault((point.config[LAMBDA], one.setting), []).append(
                point.metrics[metric]
            )
    means = {family: {key: float(np.mean(found)) for key, found in cell.items()} for family, cell in cells.items()}
    values = [value for cell in means.values() for value in cell.values()]
    lambdas = sorted({key[0] for cell in means.values() for key in cell})
    settings = [setting for setting in groups.settings if any((v, setting) in c for c in means.values() for v in lambdas)]
    if len(lambdas) * len(settings) < 2:
        return {}
    figures = {}
    for family, cell in means.items():
        z_rows = [[cell.get((value, setting)) for value in lambdas] for setting in settings]
        figure = go.Figure(
            go.Heatmap(
                z=z_rows, x=[f"{value:g}" for value in lambdas], y=[escape(setting) for setting in settings],
                zmin=min(values), zmax=max(values), showscale=False, xgap=3, ygap=3, hoverongaps=False,
                colorscale=[[0, LOW], [0.5, MIDDLE], [1, HIGH]], texttemplate="%{z:.3~g}", textfont={"size": 13},
                hovertemplate=f"lambda %{{x}}, %{{y}}<br>{LABELS[metric]} %{{z:.4~g}}<extra></extra>",
            )  # fmt: skip
        )
        figure.update_xaxes(type="category", title="lambda", showgrid=False)
        figure.update_yaxes(type="category", showgrid=False)
        figures[family] = figure
    return figures


def curves(groups: Groups, key: str) -> go.Figure | None:
    """One training metric over the rows seen, one line per run; a stronger lambda is a stronger line."""
    lambdas = sorted({point.config[LAMBDA] for one in groups.series for point in one.points})
    figure, values = go.Figure(), []
    most = max(40, min(CURVE_POINTS, ALL_POINTS // max(1, sum(len(one.points) for one in groups.series))))
    for one in groups.series:
        colour, _, dash = _look(groups, one)
        for point in one.points:
            lines = [(line["tokens"], line[key]) for line in point.curve if _number(line, "tokens", key)]
            if not lines:
                continue
            kept = np.unique(np.linspace(0, len(lines) - 1, most).round().astype(int))
            x, y = np.array(lines, dtype=np.float32)[kept].T
            values += y.tolist()
            rank = (lambdas.index(point.config[LAMBDA]) + 1) / len(lambdas)
            figure.add_scatter(
                x=x, y=y, mode="lines", opacity=0.35 + 0.65 * rank,
                line={"color": colour, "dash": dash, "width": 1.2 + rank}, **_named(groups, one, figure),
                hovertemplate=f"{escape(groups.label(point))}<br>%{{x:.3s}} rows: %{{y:.4~g}}<extra></extra>",
            )  # fmt: skip
    if not values:
        return None
    figure.update_layout(xaxis_title="rows seen in training", hovermode="closest", yaxis=_axis(CURVES[key], values))
    return figure


def histogram(groups: Groups, where: str, counts: str, title: str, random: str = "") -> go.Figure | None:
    """A histogram of eval.json as one line per run, in percent of its sum; `random` names a curve to hold it against."""
    figure, baselines, seen = go.Figure(), set(), []
    for one in groups.series:
        colour, _, dash = _look(groups, one)
        for point in one.points:
            found = point.section(where)
            if not isinstance(found, dict) or not found.get(counts):
                continue
            edges = np.array(found["edges"], dtype=float)
            centres = (edges[1:] + edges[:-1]) / 2
            for name in filter(None, (counts, random)):
                share = np.array(found[name], dtype=float)
                share = 100 * share / max(share.sum(), 1e-12)
                seen += centres[share > 0.02].tolist()
                key = share.round(2).tobytes()
                if name == counts:
                    look = {"line": {"color": colour, "dash": dash, "width": 1.6}, **_named(groups, one, figure)}
                    text = groups.label(point)
                elif key in baselines:
                    continue
                else:
                    baselines.add(key)
                    text = "random directions"
                    look = {"name": text, "fill": "tozeroy", "line": {"color": NEUTRAL, "width": 1.2}}
                figure.add_scatter(
                    x=centres.astype(np.float32), y=share.astype(np.float32), mode="lines", **look,
                    hovertemplate=f"{escape(text)}<br>%{{x:.3~g}}: %{{y:.3~g}} %<extra></extra>",
                )  # fmt: skip
    if not seen:
        return None
    figure.update_xaxes(title=title, range=[min(seen), max(seen)])
    figure.update_yaxes(title="share of latents (%)", rangemode="tozero")
    return figure.update_layout(hovermode="closest")


def truth(groups: Groups, most: int = 6) -> dict[str, go.Figure]:
    """Cosines of true features (rows) with latents (columns) for the highest MCC of each family and penalty."""
    best: dict[tuple[str, str], Point] = {}
    for one in groups.series:
        for point in _finished(one, "mcc"):
            held = best.get((one.family, one.setting))
            if point.section("ground_truth.heatmap") and (not held or held.metrics["mcc"] < point.metrics["mcc"]):
                best[(one.family, one.setting)] = point
    figures = {}
    for point in sorted(best.values(), key=lambda point: -point.metrics["mcc"])[:most]:
        figure = go.Figure(
            go.Heatmap(
                z=np.abs(np.array(point.section("ground_truth.heatmap"), dtype=np.float32)), zmin=0, zmax=1,
                colorscale=[[0, LOW], [0.5, MIDDLE], [1, HIGH]], showscale=False,
                hovertemplate="true feature %{y}, latent %{x}: |cos| %{z:.3f}<extra></extra>",
            )  # fmt: skip
        )
        figure.update_xaxes(title="latent, in matched order", showgrid=False, zeroline=False)
        figure.update_yaxes(title="true feature", showgrid=False, zeroline=False, autorange="reversed")
        figures[f"{groups.label(point)} · MCC {point.metrics['mcc']:.3f}"] = figure
    return figures


def describe(groups: Groups, point: Point) -> str:
    """Hover text: what the point is, then its numbers."""
    lines = [f"<b>{escape(groups.label(point))}</b>", f"run {escape(point.run_id)}"]
    plain = ("sae.nonlinearity", "sparsity.kind", LAMBDA, KIND, WEIGHT)
    lines += [f"{key} = {escape(str(point.config.get(key)))}" for key in groups.keys if key not in plain]
    known = [metric for metric in METRICS if metric.name in point.metrics]
    return "<br>".join([*lines, *(f"{metric.label.split(' (')[0]} {point.metrics[metric.name]:.4g}" for metric in known)])


def look_of(groups: Groups) -> dict[str, list[tuple[str, str]]]:
    """The legend: (family, colour) and (penalty, symbol) pairs."""
    return {
        "families": [(family, COLOURS[i % len(COLOURS)]) for i, family in enumerate(groups.families)],
        "settings": [(setting, SYMBOLS[i % len(SYMBOLS)]) for i, setting in enumerate(groups.settings)],
    }


def _finished(one: Series, *metrics: str) -> list[Point]:
    return [point for point in one.points if point.state == "done" and all(m in point.metrics for m in metrics)]


def _look(groups: Groups, one: Series) -> tuple[str, str, str]:
    """Colour, marker symbol and dash of a series."""
    colour, setting = groups.families.index(one.family), groups.settings.index(one.setting)
    return COLOURS[colour % len(COLOURS)], SYMBOLS[setting % len(SYMBOLS)], DASHES[setting % len(DASHES)]


def _named(groups: Groups, one: Series, figure: go.Figure) -> dict[str, Any]:
    """Name, legend (once per family and penalty) and the indices by which the page filters."""
    name = escape(one.family if groups.settings == [OFF] else f"{one.family} · {one.setting}")
    meta = {"family": groups.families.index(one.family), "setting": groups.settings.index(one.setting)}
    first = all(trace.legendgroup != name for trace in figure.data)
    return {"name": name, "legendgroup": name, "showlegend": first, "meta": meta}


def _axis(title: str, values: Iterable[float]) -> dict[str, Any]:
    """Logarithmic if the values are positive and span a factor of 6, with ticks that read as plain numbers."""
    low, high = min(values := list(values)), max(values)
    if low <= 0 or high < 6 * low:
        return {"title": title}
    steps = (1, 2, 5) if high < 300 * low else (1,)
    ticks = [step * 10.0**power for power in range(-12, 13) for step in steps]
    return {"title": title, "type": "log", "tickvals": ticks, "ticktext": [f"{tick:.7g}" for tick in ticks]}


def _number(line: dict[str, Any], *keys: str) -> bool:
    return all(isinstance(line.get(key), int | float) and np.isfinite(line[key]) for key in keys)
