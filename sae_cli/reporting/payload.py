"""What the report's script works on: points and their replicates in columns, figures with their numbers packed."""

import base64
import json
import math
import os
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sae_cli.reporting.collect import LABELS, SHORT, Point
from sae_cli.reporting.dashboard import PAGE
from sae_cli.reporting.groups import LADDER, NAMES, OFF, WEIGHT, Groups, finished, is_penalised
from sae_cli.reporting.replicates import interval
from sae_cli.reporting.tables import decimals

HOVERED = 10
"""Most metrics that a figure says of a point; the table has all."""


def columns(points: list[Point], groups: Groups, frontiers: dict[str, list[Point]], folder: Path) -> dict[str, Any]:
    """Everything by point, in the order of `points`; links are relative to `folder`, where the page will lie.

    table: the columns of the page's table. groups: points that differ in seeds only, and what figures say of them.
    axes, gamma, variant: where a point stands in the heatmaps; null without configuration.
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
            "hover": [_hover(groups, group) for group in groups.replicates],
        },
        "axes": {LADDER[key]: setting(key) for key in groups.ladder},
        "gamma": each(lambda point: _plain(point.config[WEIGHT]) if is_penalised(point) else 0),
        "variant": each(lambda point: groups.variant(point) if is_penalised(point) else OFF),
    }


def _hover(groups: Groups, group: list[Point]) -> str:
    """What a figure says of replicates under the pointer; nothing of unfinished ones, which are in none."""
    done = finished(group)
    if not done:
        return ""
    which = f"n = {len(done)} seeds, mean ± 95 % interval" if len(done) > 1 else f"run {escape(done[0].run_id)}"
    known = [f"{SHORT[name]} {value}" for name in LABELS if (value := interval(done, name))]
    page = ["<i>has a feature page: click</i>"] * any(Path(point.folder, PAGE).is_file() for point in done)
    label = escape(groups.label(group[0], seed=len(group) == 1))
    return "<br>".join([f"<b>{label}</b>", which, *known[:HOVERED], *page])


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
