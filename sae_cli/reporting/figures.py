"""Figures of a report as plain plotly dictionaries: `plotly.graph_objects.Figure(figure)` makes an object of one.

`customdata` holds indices: of points, or of replicate groups where a trace's `meta` says so. `layout.meta` names the
columns of the figure's data, and may end with words about it.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from sae_cli.reporting.collect import HEATMAP, HEATMAP_BIAS, LABELS, SHORT, Point, at
from sae_cli.reporting.groups import Groups, finished, non_dominated
from sae_cli.reporting.look import FAINT, NEUTRAL, SCALE, SHADE, marks, named
from sae_cli.reporting.replicates import interval

Figure = dict[str, Any]
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
    "bias_p05": "encoder bias below which 5 % lie (scaled units)",
    "bias_p50": "median encoder bias (scaled units)",
    "bias_p95": "encoder bias above which 5 % lie (scaled units)",
    "neighbour_recall": "share of true nearest that the penalty sees",
    "neighbour_gap": "cosine of the true nearest above the nearest seen",
    "step_seconds": "seconds per step of all that trained together",
}
"""Training curves: key of a metrics.jsonl line -> axis title."""
TRUTHS = 6
"""Most heatmaps of true features."""
CROWD = 60
"""Points of a figure above which markers are smaller and lines thinner."""
CURVE_POINTS, ALL_POINTS = 200, 20_000
"""Most points of one curve, and of one figure's curves together (with a floor of 40 each)."""


def frontier(groups: Groups, name: str) -> tuple[Figure, list[Point]] | None:
    """Scatter of finished points for FRONTIERS[name], and the non-dominated points; None if no point has both metrics.

    Points that differ in their seeds only are one mean with 95 % t intervals, the single ones faint dots beside it;
    the frontier is that of the means. Markers on it are filled, dominated ones hollow and faded; lines run along
    lambda.
    """
    names = FRONTIERS[name]
    clusters = [(index, found) for index, one in enumerate(groups.replicates) if (found := finished(one, *names))]
    if not clusters:
        return None
    rests = [groups.rest(found[0]) for _, found in clusters]
    # The last row is a gap in a line.
    halves, means = np.full((2, len(clusters) + 1, 2), np.nan)
    for row, (_, found) in enumerate(clusters):
        for column, metric in enumerate(names):
            one = interval(found, metric)
            assert one is not None  # finished() kept points that have the metric
            means[row, column], halves[row, column] = one.mean, np.nan if one.half is None else one.half
    best = np.array([*non_dominated(means[:-1, 0], means[:-1, 1], names[1] == "mcc"), False])
    steps = {"color": SHADE, "width": 8, "shape": "hv"}
    data = [_line(*np.unique(means[best], axis=0).T, name="frontier", hoverinfo="skip", line=steps)]
    large, small = (12, 9) if len(clusters) <= CROWD else (9, 6)
    looks: dict[tuple[str, str], list[int]] = {}
    for row, (_, found) in enumerate(clusters):
        looks.setdefault((groups.family(found[0]), groups.setting(found[0])), []).append(row)
    for look, rows in looks.items():
        colour, symbol, dash = marks(groups, *look)
        rows.sort(key=lambda row: (rests[row], groups.step(clusters[row][1][0])))
        singles = [p for row in rows if len(clusters[row][1]) > 1 for p in clusters[row][1]]
        if singles:
            dots = _line(*np.array([[p.metrics[metric] for metric in names] for p in singles]).T)
            dots |= {"mode": "markers", "customdata": np.array([groups.index[id(p)] for p in singles])}
            data.append(dots | {"opacity": 0.4, "marker": {"color": colour, "size": 4}} | named(groups, *look))
        # A gap in the line wherever something else than lambda changes.
        parts = [list(part) for _, part in groupby(rows, key=rests.__getitem__)]
        kept = [row for part in parts for row in [*part, -1]][:-1]
        (x, y), (half_x, half_y), on = means[kept].T, halves[kept].T, best[kept]
        bars = {"type": "data", "color": colour + FAINT, "thickness": 1, "width": 0}
        line = {
            "mode": "lines+markers",
            "line": {"color": colour + FAINT, "width": 1.3, "dash": dash},
            "marker": {
                "color": colour,
                "line": {"width": 1.5, "color": colour},
                "symbol": np.where(on, symbol, f"{symbol}-open").tolist(),
                "size": np.where(on, large, small).tolist(),
                "opacity": np.where(on, 1, 0.5).tolist(),
            },
            "customdata": np.array([clusters[row][0] for row in kept]),
            "hovertemplate": "%{x:.4~g}, %{y:.4~g}",
        }
        if singles:
            line |= {"error_x": bars | {"array": half_x}, "error_y": bars | {"array": half_y}}
        data.append(_line(x, y, **line, **named(groups, *look, data, of="groups")))
    front = [point for (_, found), keep in zip(clusters, best[:-1], strict=True) if keep for point in found]
    every = np.array([[p.metrics[metric] for metric in names] for _, found in clusters for p in found])
    titles = [LABELS[metric] if len(LABELS[metric]) < 40 else SHORT[metric] for metric in names]
    x_axis, y_axis = (_axis(title, values, True) for title, values in zip(titles, every.T, strict=True))
    return _figure(data, x_axis, y_axis, names), front


def curves(groups: Groups, key: str) -> Figure | None:
    """One training metric over the rows seen, one line per run; a stronger lambda is a stronger line."""
    members = [(one, point) for one in groups.series for point in one.points if {"tokens", key} <= set(point.curve)]
    most = max(40, min(CURVE_POINTS, ALL_POINTS // max(1, len(members))))
    steps = sorted({groups.step(point) for _, point in members})
    lines: dict[tuple[Any, ...], list[tuple[int, np.ndarray]]] = {}
    for one, point in members:
        known = np.stack([point.curve[name].astype(np.float32) for name in ("tokens", key)], axis=1)
        known = known[np.isfinite(known).all(axis=1)]
        if len(known):
            known = known[np.unique(np.linspace(0, len(known) - 1, min(most, len(known))).round().astype(int))]
            look = one.family, one.setting, (steps.index(groups.step(point)) + 1) / len(steps)
            lines.setdefault(look, []).append((groups.index[id(point)], known))
    data: list[Figure] = []
    for (family, setting, rank), found in lines.items():
        colour, _, dash = marks(groups, family, setting)
        shape = {"opacity": 0.35 + 0.65 * rank, "line": {"color": colour, "dash": dash, "width": 1.2 + rank}}
        about = named(groups, family, setting, data) | {"hovertemplate": "%{x:.3s} rows: %{y:.4~g}"}
        data.append(_joined(found) | shape | about)
    values = np.concatenate([trace["y"] for trace in data]) if data else np.empty(0)
    axes = {"title": {"text": "rows seen in training"}}, _axis(CURVES[key], values[np.isfinite(values)])
    return _figure(data, *axes, ("rows", key)) if data else None


def histogram(groups: Groups, where: str, counts: str, title: str, random: str = "") -> Figure | None:
    """A histogram of eval.json as one line of unit area per run; `random` names a curve to hold the lines against."""
    lines: dict[tuple[str, str], list[tuple[int, np.ndarray]]] = {}
    baselines: dict[bytes, Figure] = {}
    for one in groups.series:
        for point in one.points:
            found = at(point.evaluation, where) or {}
            if counts not in found or not found[counts].sum() or not np.diff(found["edges"]).all():
                continue
            line = groups.index[id(point)], _density(found["edges"], found[counts])
            lines.setdefault((one.family, one.setting), []).append(line)
            if random in found:
                x, y = _density(found["edges"], found[random]).T
                area = {"name": "random directions", "fill": "tozeroy", "fillcolor": SHADE}
                baselines[y.round(2).tobytes()] = _line(x, y, line={"color": NEUTRAL, "width": 1}, **area)
    data = list(baselines.values())
    width = 1.6 if sum(map(len, lines.values())) <= CROWD else 1
    for (family, setting), members in lines.items():
        colour, _, dash = marks(groups, family, setting)
        shape = {"opacity": 0.8, "line": {"color": colour, "dash": dash, "width": width}}
        about = named(groups, family, setting, data) | {"hovertemplate": "at %{x:.3~g}: %{y:.3~g}"}
        data.append(_joined(members) | shape | about)
    if not data:
        return None
    seen = np.concatenate([trace["x"][trace["y"] > 0.002 * np.nanmax(trace["y"])] for trace in data])
    x_axis = {"title": {"text": title}, "range": [float(seen.min()), float(seen.max())]}
    y_axis = {"title": {"text": "density of latents (area 1)"}, "rangemode": "tozero"}
    return _figure(data, x_axis, y_axis, columns=(where.split(".")[0], "density"))


def truth(groups: Groups) -> dict[str, Figure]:
    """|cos| of latents (rows), then of the decoder bias, with true features (columns), for the highest MCC of each
    nonlinearity and penalty."""
    known = [(one, p) for one in groups.series for p in one.done("mcc") if at(p.evaluation, HEATMAP) is not None]
    known.sort(key=lambda pair: -pair[1].metrics["mcc"])
    best: dict[tuple[str, str], Point] = {}
    for one, point in known:
        best.setdefault((one.family, one.setting), point)
    figures = {}
    for point in list(best.values())[:TRUTHS]:
        size = np.abs(at(point.evaluation, HEATMAP)).T
        rows = [f"latent {row}" for row in range(len(size))]
        ticks = rows[:: max(1, len(rows) // 6)]
        bias = at(point.evaluation, HEATMAP_BIAS)
        if bias is not None and len(bias) == size.shape[1]:
            size, rows, ticks = np.vstack([size, np.abs(bias)]), [*rows, "b_dec"], [*ticks, "b_dec"]
        trace = {
            "type": "heatmap",
            "z": size.round(3).tolist(),
            "y": rows,
            "zmin": 0,
            "zmax": 1,
            "colorscale": SCALE,
            "showscale": False,
            "hovertemplate": "%{y}, true feature %{x}: |cos| %{z:.3f}<extra></extra>",
        }
        plain = {"showgrid": False, "zeroline": False}
        x = {"title": {"text": "true feature"}, "tick0": 0, "dtick": max(1, size.shape[1] // 6)}
        y = {"title": {"text": "latent, in matched order"}, "autorange": "reversed", "type": "category"}
        title, about = f"{groups.family(point)} · {groups.setting(point)}", groups.label(point, brief=True)
        about = f"{about} · MCC {point.metrics['mcc']:.3f}"
        axes = plain | x, plain | y | {"tickvals": ticks}
        figures[title] = _figure([trace], *axes, columns=("true_feature", "latent", "abs_cos", about))
    return figures


def _figure(data: list[Figure], x: Figure, y: Figure, columns: Sequence[str]) -> Figure:
    return {"data": data, "layout": {"xaxis": x, "yaxis": y, "hovermode": "closest", "meta": list(columns)}}


def _line(x: np.ndarray, y: np.ndarray, **look: Any) -> Figure:
    return {"type": "scatter", "mode": "lines", "x": x, "y": y} | look


def _joined(lines: Iterable[tuple[int, np.ndarray]]) -> Figure:
    """One trace of many runs' lines with gaps between them: a browser draws few traces faster than many."""
    gap = np.full((1, 2), np.nan, dtype=np.float32)
    parts = [(np.full(len(line) + 1, index), np.vstack([line, gap])) for index, line in lines]
    x, y = np.vstack([line for _, line in parts])[:-1].T
    return _line(x, y, customdata=np.concatenate([index for index, _ in parts])[:-1])


def _density(edges: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(bins, 2): the middles of the bins, and a density whose area is 1."""
    density = counts / counts.sum() / np.diff(edges)
    return np.stack([(edges[1:] + edges[:-1]) / 2, density], axis=1).astype(np.float32)


def _axis(title: str, values: np.ndarray, held: bool = False) -> Figure:
    """Logarithmic if the values are positive and span a factor of 6, with ticks that read as plain numbers.

    `held`: the range is that of the values, so that wide intervals do not shrink everything else.
    """
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    log = low > 0 and high >= 6 * low
    ends = np.log10([low, high]) if log else np.array([low, high])
    margin = 0.07 * float(ends[1] - ends[0]) or abs(float(ends[1])) * 0.1 or 1.0
    axis: Figure = {"title": {"text": title}}
    axis |= {"range": [float(ends[0]) - margin, float(ends[1]) + margin]} if held else {}
    if not log:
        return axis
    steps = (1, 2, 5) if high < 300 * low else (1,)
    ticks = [step * 10.0**power for power in range(-12, 13) for step in steps]
    return axis | {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:.7g}" for tick in ticks]}
