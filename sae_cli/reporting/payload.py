"""What the report's script works on: points and their replicates in columns, figures with their numbers packed."""

import base64
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sae_cli.reporting.collect import LABELS, SHORT, Point
from sae_cli.reporting.dashboard import PAGE
from sae_cli.reporting.groups import LADDER, NAMES, OFF, WEIGHT, Groups, is_penalised
from sae_cli.reporting.replicates import interval
from sae_cli.reporting.tables import decimals


def columns(points: list[Point], groups: Groups, frontiers: dict[str, list[Point]], folder: Path) -> dict[str, Any]:
    """Everything by point, in the order of `points`; links are relative to `folder`, where the page will lie.

    table: the columns of the page's table. groups: points that differ in seeds only, with half the width of each
    metric's interval. axes, gamma, variant: where a point stands in the heatmaps; null without configuration.
    """

    def each(value: Callable[[Point], Any]) -> list[Any]:
        return [value(point) if point.config else None for point in points]

    def setting(key: str) -> list[Any]:
        return each(lambda point: _plain(point.config.get(key)))

    table: list[dict[str, Any]] = [_column("state", "state of the run", [p.state for p in points])]
    if any(point.sweep for point in points):
        table.append(_column("sweep", "folder of the run", [p.sweep for p in points]))
    for key in groups.keys:
        settings = setting(key)
        number = all(type(value) in (int, float) for value in settings if value is not None)
        table.append(_column(NAMES.get(key, key.rsplit(".", 1)[-1]), key, settings, number=number))
    for name in LABELS:
        if known := [point.metrics[name] for point in points if name in point.metrics]:
            values = [_short(point.metrics.get(name)) for point in points]
            look = {"number": True, "metric": name, "digits": decimals(known)}
            table.append(_column(SHORT[name], LABELS[name], values, **look))
    fronts = {name.removeprefix("l0_").replace("_", " "): set(map(id, front)) for name, front in frontiers.items()}
    on = [", ".join(name for name, front in fronts.items() if id(point) in front) for point in points]
    table.append(_column("frontier", "frontiers it lies on", on))
    several = [index for index, group in enumerate(groups.replicates) if len(group) > 1]
    half = {name: [getattr(interval(groups.replicates[i], name), "half", None) for i in several] for name in LABELS}
    return {
        "run": [point.run_id for point in points],
        "link": [_link(Path(point.folder), folder) for point in points],
        "label": [groups.label(point) if point.config else point.run_id for point in points],
        "family": each(lambda point: groups.families.index(groups.family(point))),
        "setting": each(lambda point: groups.settings.index(groups.setting(point))),
        "table": table,
        "families": groups.families,
        "settings": groups.settings,
        "groups": {
            "members": [[groups.index[id(point)] for point in group] for group in groups.replicates],
            "label": [groups.label(group[0], seed=len(group) == 1) for group in groups.replicates],
            "several": several,
            "half": {name: list(map(_short, values)) for name, values in half.items() if any(values)},
        },
        "axes": {LADDER[key]: setting(key) for key in groups.ladder},
        "gamma": each(lambda point: _plain(point.config[WEIGHT]) if is_penalised(point) else 0),
        "variant": each(lambda point: groups.variant(point) if is_penalised(point) else OFF),
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


def _column(head: str, title: str, values: list[Any], **look: Any) -> dict[str, Any]:
    return {"head": head, "title": title, "values": values} | look


def _link(run: Path, folder: Path) -> str | None:
    page = run / PAGE
    return quote(os.path.relpath(page.resolve(), folder.resolve())) if page.is_file() else None


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _plain(value: Any) -> Any:
    """A configuration's value as JSON has it: numbers and text, all else as text."""
    if value is None or isinstance(value, str) or (type(value) in (int, float) and math.isfinite(value)):
        return value
    return json.dumps(value) if isinstance(value, list | bool) else str(value)
