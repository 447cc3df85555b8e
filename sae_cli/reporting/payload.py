"""What the report's script works on: points and their replicates in columns, figures with their numbers packed."""

import base64
import json
import math
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sae_cli.reporting.collect import LABELS, METRICS, SHORT, Point
from sae_cli.reporting.groups import LADDER, NAMES, OFF, WEIGHT, Groups, is_penalised
from sae_cli.reporting.replicates import interval
from sae_cli.reporting.tables import decimals

FEATURES = "dashboard.html"
"""Name of the feature page in a run's folder."""


def columns(points: list[Point], groups: Groups, frontiers: dict[str, list[Point]], folder: Path) -> dict[str, Any]:
    """Everything by point, in the order of `points`; links are relative to `folder`, where the page will lie.

    table: the columns of the page's table. groups: points that differ in seeds only, with half the width of each
    metric's interval. axes, gamma, variant: where a point stands in the heatmaps; null without configuration.
    """
    configured = [point if point.config else None for point in points]
    config = {key: [p and p.config.get(key) for p in configured] for key in groups.keys}
    metrics = {m.name: [_short(p.metrics.get(m.name)) for p in points] for m in METRICS}
    table = [{"head": "state", "title": "state of the run", "values": [p.state for p in points]}]
    if any(point.sweep for point in points):
        table.append({"head": "sweep", "title": "folder of the run", "values": [p.sweep for p in points]})
    for key, values in config.items():
        head = NAMES.get(key, key.rsplit(".", 1)[-1])
        number = all(type(value) in (int, float) for value in values if value is not None)
        table.append({"head": head, "title": key, "values": list(map(_plain, values)), "number": number})
    for name, values in metrics.items():
        known = [value for value in values if value is not None]
        if known:
            look = {"digits": decimals(known), "number": True, "metric": name}
            table.append({"head": SHORT[name], "title": LABELS[name], "values": values} | look)
    on = {
        id(p): [name.removeprefix("l0_").replace("_", " ") for name, f in frontiers.items() if p in f] for p in points
    }
    table.append(
        {"head": "frontier", "title": "frontiers it lies on", "values": [", ".join(on[id(p)]) for p in points]}
    )
    several = [group for group in groups.replicates if len(group) > 1]
    halves = {m.name: [getattr(interval(g, m.name), "half", None) for g in several] for m in METRICS}
    return {
        "run": [point.run_id for point in points],
        "link": [_link(Path(point.folder), folder) for point in points],
        "label": [p.run_id if q is None else groups.label(q) for p, q in zip(points, configured, strict=True)],
        "family": [q and groups.families.index(groups.family(q)) for q in configured],
        "setting": [q and groups.settings.index(groups.setting(q)) for q in configured],
        "table": table,
        "families": groups.families,
        "settings": groups.settings,
        "groups": {
            "members": [[groups.index[id(point)] for point in group] for group in groups.replicates],
            "label": [groups.label(group[0], seed=len(group) == 1) for group in groups.replicates],
            "several": [index for index, group in enumerate(groups.replicates) if len(group) > 1],
            "half": {name: list(map(_short, values)) for name, values in halves.items() if any(values)},
        },
        "axes": {LADDER[key]: [q and _plain(q.config[key]) for q in configured] for key in groups.ladder},
        "gamma": [q and (_plain(q.config[WEIGHT]) if is_penalised(q) else 0) for q in configured],
        "variant": [q and (groups.variant(q) if is_penalised(q) else OFF) for q in configured],
    }


def pack(data: dict[str, Any]) -> str:
    """JSON without any "<", its arrays replaced by places in a list `arrays` of "type:base64", equal ones by one."""
    places: dict[str, int] = {}

    def place(value: Any) -> dict[str, int]:
        kind = ("u2" if value.max(initial=0) < 2**16 else "u4") if value.dtype.kind in "iu" else "f4"
        text = f"{kind}:{base64.b64encode(value.astype(f'<{kind}').tobytes()).decode()}"
        return {"$": places.setdefault(text, len(places))}

    body = json.dumps(data, default=place, allow_nan=False, separators=(",", ":"))
    return f'{body[:-1]},"arrays":{json.dumps(list(places))}}}'.replace("<", "\\u003c")


def _link(run: Path, folder: Path) -> str | None:
    page = run / FEATURES
    return quote(os.path.relpath(page.resolve(), folder.resolve())) if page.is_file() else None


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _plain(value: Any) -> Any:
    """A configuration's value as JSON has it: numbers and text, all else as text."""
    if value is None or isinstance(value, str) or (type(value) in (int, float) and math.isfinite(value)):
        return value
    return json.dumps(value) if isinstance(value, list | bool) else str(value)
