"""Several runs as text for a terminal: a table with intervals over seeds, and the frontier."""

import math
import shlex
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from sae_cli.console import number
from sae_cli.errors import UserError, suggest
from sae_cli.reporting.characters import clean, clip, scatter, sparkline
from sae_cli.reporting.collect import LABELS, SHORT, Point, varying
from sae_cli.reporting.groups import NAMES, Groups, non_dominated
from sae_cli.reporting.replicates import SEEDS, Interval, interval, replicates

DEFAULT = ("l0", "fvu", "delta_ce", "nearest_cosine", "mcc", "dead")
"""Metrics of the table where none are chosen; those that no point knows are left out."""
MAIN = {"source.kind": "source", "sae.nonlinearity": "sae", "sae.latents": "latents"} | NAMES
"""Settings that stay when the terminal is too narrow for all that vary, and how they are called."""
HEADS = SHORT | MAIN | {"delta_ce": "dCE", "nearest_cosine": "nearest", "dead": "dead"}
CURVE = 8
"""Width of the table's sparklines."""
MOST = 12
"""Lines about unfinished points, unless all are asked for."""
BUSY = ("new", "running")
AGES = {"days": 86_400, "h": 3600, "min": 60, "s": 1}

Draw = Callable[[int, bool], list[str]]
"""Gives the lines for a width, in ASCII alone or not."""


@dataclass
class Row:
    """One line of the table: a point or its replicates."""

    points: list[Point]
    done: int
    """How many of the points are finished."""
    metrics: dict[str, Interval]
    """Means over the finished points; of a row without one, over the last training lines."""
    frontier: bool = False


class Overview:
    """What the table, the plot and the JSON object of several points show. UserError for a metric that is none."""

    def __init__(self, points: Sequence[Point], metrics: str = "", sort: str = "", ungrouped: bool = False) -> None:
        known = [point for point in points if point.config]
        self.unfinished = [point for point in points if point.state != "done"]
        self.keys = [key for key in varying(known) if ungrouped or key not in SEEDS]
        self.rows = [_row(group) for group in ([[point] for point in known] if ungrouped else replicates(known))]
        names = [_checked(name) for name in metrics.split(",")] if metrics else DEFAULT
        self.metrics = [name for name in names if any(name in row.metrics for row in self.rows)]
        finished = [row for row in self.rows if row.done and "l0" in row.metrics]
        self.axes = ("l0", "delta_ce" if any("delta_ce" in row.metrics for row in finished) else "fvu")
        self.plotted = [row for row in finished if self.axes[1] in row.metrics]
        x, y = ([row.metrics[axis].mean for row in self.plotted] for axis in self.axes)
        for row, best in zip(self.plotted, non_dominated(x, y), strict=True):
            row.frontier = best
        self.groups = Groups(known)
        self.rows.sort(key=lambda row: self.groups.place(row.points[0]))
        if sort:
            name, sign = _checked(sort.removeprefix("-")), -1 if sort.startswith("-") else 1
            self.rows.sort(key=lambda row: sign * row.metrics[name].mean if name in row.metrics else math.inf)

    def data(self) -> dict[str, Any]:
        """Return what is shown as JSON values."""
        rows = [
            {
                "runs": [point.run_id for point in row.points],
                "done": row.done,
                "settings": {key: row.points[0].config[key] for key in self.keys},
                "metrics": {name: asdict(value) for name, value in row.metrics.items()},
                "frontier": row.frontier,
            }
            for row in self.rows
        ]
        return {"axes": self.axes, "rows": rows, "unfinished": [progress(point) for point in self.unfinished]}

    def table(self, width: int, ascii_only: bool = False) -> list[str]:
        """Return the table with as many columns as fit: run ids, later metrics, sparklines, then settings give way."""
        groups = any(len(row.points) > 1 for row in self.rows)
        columns: dict[str, list[Any]] = {"": ["*" * row.frontier for row in self.rows]}
        if not groups:
            columns["run"] = [row.points[0].run_id[:10] for row in self.rows]
        short = {key: HEADS.get(key, key.rsplit(".", 1)[-1]) for key in self.keys}
        heads = {key: name if list(short.values()).count(name) == 1 else key for key, name in short.items()}
        for key, head in heads.items():
            columns[head] = [number(row.points[0].config[key]) for row in self.rows]
        if groups:
            columns["n"] = [f"{row.done}" + f"/{len(row.points)}" * (row.done < len(row.points)) for row in self.rows]
        for name in self.metrics:
            columns[HEADS[name]] = [_cell(row, name) for row in self.rows]
        columns["curve"] = [sparkline(curve(row.points[0], "fvu"), CURVE, ascii_only) for row in self.rows]
        columns["state"] = ["" if row.done else _state(row.points[0]) for row in self.rows]
        cells = {name: [clean(text, ascii_only) for text in texts] for name, texts in columns.items() if any(texts)}
        room = {name: max(map(len, [name, *texts])) for name, texts in cells.items()}
        metrics = [HEADS[name] for name in self.metrics]
        gone = []
        minor = [head for key, head in heads.items() if key not in MAIN]
        for name in ["run", *metrics[:2:-1], "curve", *minor, *metrics[2:0:-1]]:
            if name in room and sum(room.values()) + 2 * len(room) - 2 > width:
                gone.append(name)
                del room[name]
        aligned = {name: str.rjust if name in metrics else str.ljust for name in room}
        texts = zip(
            *([align(cell, room[name]) for cell in [name, *cells[name]]] for name, align in aligned.items()),
            strict=True,
        )
        text = ["  ".join(line) for line in texts]
        values = [value for row in self.rows for value in row.metrics.values()]
        notes = {
            f"* on the frontier of {SHORT[self.axes[0]]} and {SHORT[self.axes[1]]}": self.plotted,
            "curve: FVU over training": "curve" in room,
            "± 95 % interval over seeds": any(value.half is not None for value in values),
            "~ from the last training line": any(row.metrics and not row.done for row in self.rows),
            f"left out for want of width: {', '.join(gone[:6])}{' ...'[: 4 * (len(gone) > 6)]}": gone,
        }
        text += textwrap.wrap("; ".join(note for note, wanted in notes.items() if wanted), width)
        return [clip(line, width, ascii_only) for line in text] if self.rows else []

    def plot(self, width: int, ascii_only: bool = False) -> list[str]:
        """Return the frontier as a scatter plot: a symbol per family, or per penalty if there is one family."""
        name = self.groups.family if len(self.groups.families) > 1 else self.groups.setting
        series: dict[str, list[tuple[float, float, bool]]] = {}
        for row in self.plotted:
            x, y = (row.metrics[axis].mean for axis in self.axes)
            series.setdefault(name(row.points[0]), []).append((x, y, row.frontier))
        labels = LABELS[self.axes[0]], LABELS[self.axes[1]]
        return scatter(series, labels, min(width, 100), ascii_only=ascii_only) if len(self.plotted) > 1 else []

    def problems(self, most: int) -> list[str]:
        """Return a line for each point that is not done: how far it is, when it last wrote, its error."""
        lines = []
        for point in self.unfinished[:most]:
            label = self.groups.label(point) if point.config else ""
            what = point.error.replace(f"{point.folder}/", "") or reached(point)
            words = (f"{point.state:11}", point.run_id, what, label)
            lines.append("  ".join(word for word in words if word))
        rest = len(self.unfinished) - most
        return [*lines, f"and {rest} more, see --all"] if rest > 0 else lines


def table(points: Sequence[Point], width: int = 80, ascii_only: bool = False) -> str:
    """Return the table of points with the default columns, one row per group of replicates."""
    return "\n".join(Overview(points).table(width, ascii_only))


def show_sweep(
    points: Sequence[Point], folders: Sequence[Path], metrics: str = "", sort: str = "", everything: bool = False
) -> tuple[dict[str, Any], Draw]:
    """Return the JSON object of several runs, and what draws them."""
    overview = Overview(points, metrics, sort, everything)
    states = Counter(point.state for point in points)
    if any(point.state in BUSY for point in points):
        command = ["sae", "show", "--watch", "10"]
    else:
        command = ["sae", "report" if all(point.evaluation for point in points if point.state == "done") else "eval"]
    following = shlex.join([*command, *map(str, folders)])
    total = f"{len(points)} point{'s'[: len(points) != 1]}: "
    total += ", ".join(f"{count} {state}" for state, count in states.most_common())

    def draw(width: int, ascii_only: bool) -> list[str]:
        problems = overview.problems(len(points) if everything else MOST)
        parts = [
            [clip(total, width, ascii_only)],
            overview.table(width, ascii_only),
            overview.plot(width, ascii_only),
            [clip(line, width, ascii_only) for line in problems],
            [f"next  {clean(following, ascii_only)}"],
        ]
        return [line for part in parts if part for line in [*part, ""]][:-1]

    return {"points": len(points), "states": states, **overview.data(), "next": following}, draw


def curve(point: Point, name: str) -> list[float | None]:
    """Return a logged metric over training; None where a line has no finite number."""
    values = [line.get(name) for line in point.lines if name in line]
    return [v if isinstance(v, int | float) and math.isfinite(v) else None for v in values]


def progress(point: Point) -> dict[str, Any]:
    """Return how far a point is: state, step of steps, seconds since its files last changed, error."""
    last = point.lines[-1] if point.lines else {}
    said = (last.get("step"), point.status.get("step"), point.status.get("steps"))
    logged, saved, steps = (value if isinstance(value, int) and abs(value) < 1e15 else 0 for value in said)
    files = [Path(point.folder, name) for name in ("metrics.jsonl", "status.json")]
    changed = [file.stat().st_mtime for file in files if file.exists()]
    return {
        "run": point.run_id,
        "folder": point.folder,
        "state": point.state,
        "step": max(logged, saved),
        "steps": steps,
        "age": time.time() - max(changed) if changed else None,
        "error": point.error,
    }


def reached(point: Point) -> str:
    """Return step, share and age in words; empty before the first step."""
    at = progress(point)
    if not at["step"] or not at["steps"]:
        return ""
    age = next((f"{at['age'] / size:.0f} {unit}" for unit, size in AGES.items() if at["age"] >= 2 * size), "0 s")
    return f"step {at['step']} of {at['steps']} ({at['step'] / at['steps']:.0%}), {age} ago"


def _cell(row: Row, name: str) -> str:
    """A mean with three digits and half its interval to the same place; ~ before what training said last."""
    if not (value := row.metrics.get(name)):
        return "-"
    mean = f"{value.mean:#.3g}".rstrip(".") if abs(value.mean) < 1000 else f"{value.mean:.0f}"
    half = "" if value.half is None else f"±{value.half:.{len(mean.partition('.')[2])}f}"
    return "~" * (not row.done) + mean + half


def _state(point: Point) -> str:
    at = progress(point)
    return f"{at['step'] / at['steps']:.0%}" if point.state in BUSY and at["steps"] else point.state


def _row(group: list[Point]) -> Row:
    done = sum(point.state == "done" for point in group)
    metrics = {}
    for name in LABELS:
        known = [point.metrics[name] for point in group if name in point.metrics]
        if value := interval(group, name) or (Interval(fmean(known), None, 0) if known and not done else None):
            metrics[name] = value
    return Row(group, done, metrics)


def _checked(name: str) -> str:
    if name not in LABELS:
        raise UserError(f"{name!r} is no metric.{suggest(name, LABELS)} There are: {', '.join(LABELS)}")
    return name
