"""One run as text for a terminal: what it is, its numbers, its curves and histograms."""

import shlex
from pathlib import Path
from textwrap import TextWrapper
from typing import Any

from sae_cli.console import number
from sae_cli.files import read_json
from sae_cli.reporting.characters import clean, sparkline
from sae_cli.reporting.collect import LABELS, Point, at
from sae_cli.reporting.terminal import BUSY, Draw, curve, progress, reached

SETTINGS = (
    *("model.name", "model.hook", "text.name", "source.kind", "sae.nonlinearity", "sae.latents", "sparsity.kind"),
    *("sparsity.weight", "orthogonality.kind", "orthogonality.weight", "train.tokens", "train.lr", "seed"),
)
STAMP = ("device", "host", "source_fingerprint", "git")
NO_CURVE = ("step", "tokens", "seconds")
HISTOGRAMS = {
    "log10 density": ("latents.density_histogram", "counts"),
    "nearest cosine": ("geometry.histogram", "alive"),
    "random directions": ("geometry.histogram", "random"),
}
"""Name -> place in eval.json, and counts there."""


def show_run(point: Point) -> tuple[dict[str, Any], Draw]:
    """Return the JSON object of one run, and what draws it."""
    logged = dict.fromkeys(name for line in point.lines for name in line if name not in NO_CURVE)
    found = {name: curve(point, name) for name in sorted(logged, key=lambda name: [*LABELS, name].index(name))}
    known = {name: [value for value in values if value is not None] for name, values in found.items()}
    known = {name: values for name, values in known.items() if len(set(values)) > (name not in LABELS)}
    histograms = {name: shares for name, place in HISTOGRAMS.items() if (shares := _shares(point, *place))}
    hidden = () if point.config.get("source.kind") == "language_model" else ("model.", "text.")
    data = {
        **progress(point),
        "settings": {key: point.config[key] for key in SETTINGS if key in point.config and not key.startswith(hidden)},
        "stamp": _stamp(point),
        "evaluated": bool(point.evaluation),
        "metrics": point.metrics,
        "curves": {name: {"first": values[0], "last": values[-1]} for name, values in known.items()},
        "histograms": {name: {"edges": edges, "shares": shares} for name, (edges, shares) in histograms.items()},
        "next": _following(point),
    }

    def draw(width: int, ascii_only: bool) -> list[str]:
        bars = max(8, min(48, width - 46))
        facts = {"run": point.folder, "state": f"{point.state}  {reached(point)}"}
        facts |= {"error": point.error} if point.error else {}
        numbers = {LABELS[name]: number(value) for name, value in point.metrics.items()}
        trained = {"evaluation": "none; this is the last training line"}
        lines = {
            name: f"{sparkline(found[name], bars, ascii_only):{bars}}  {values[0]:.4g} → {values[-1]:.4g}"
            for name, values in known.items()
        }
        shapes = {
            name: f"{sparkline(shares, bars, ascii_only, zero=True):{bars}}  {edges[0]:.3g} to {edges[-1]:.3g}"
            for name, (edges, shares) in histograms.items()
        }
        parts = [
            facts | data["settings"] | data["stamp"],
            numbers | (trained if numbers and not point.evaluation else {}),
            lines,
            shapes,
        ]
        text = []
        for part in (part for part in parts if part):
            room = max(map(len, part))
            wide = TextWrapper(width, subsequent_indent=" " * (room + 2), break_on_hyphens=False)
            for name, value in part.items():
                line = clean(f"{name:{room}}  {value}", ascii_only)
                text += wide.wrap(line) if part is parts[0] else [line[:width]]
            text.append("")
        return [*text, f"next  {data['next']}"] if data["next"] else text[:-1]

    return data, draw


def _shares(point: Point, place: str, counts: str) -> tuple[list[float], list[float]] | None:
    """Edges and shares of a histogram of eval.json, cut to where some histogram there is not flat; None without it."""
    histogram = at(point.evaluation, place) or {}
    columns = [histogram[name] for _, name in HISTOGRAMS.values() if name in histogram]
    heights = zip(*([share / max(column) for share in column] for column in columns if any(column)), strict=True)
    filled = [index for index, shares in enumerate(heights) if max(shares) > 0.005]
    if counts not in histogram or not filled:
        return None
    first, last = filled[0], filled[-1] + 1
    return histogram["edges"][first : last + 1].tolist(), histogram[counts][first:last].tolist()


def _stamp(point: Point) -> dict[str, str]:
    """Where the run came from, as far as stamp.json can be read."""
    try:
        stamp = dict(read_json(Path(point.folder, "stamp.json")))
        commit = dict(stamp.pop("git", {}))
        stamp["git"] = commit.get("commit", "")[:12] + " (changed)" * bool(commit.get("dirty"))
    except (OSError, ValueError, TypeError):
        return {}
    return {name: str(stamp[name]) for name in STAMP if stamp.get(name)}


def _following(point: Point) -> str:
    """The command that comes next: for a run that stopped early, the one that goes on."""
    if point.state in BUSY:
        return shlex.join(["sae", "show", "--watch", "10", point.folder])
    if point.state == "done":
        return shlex.join(["sae", "report" if point.evaluation else "eval", point.folder])
    words = Path(point.folder, "overrides.txt")
    return shlex.join(["sae", "train", *words.read_text().splitlines()]) if words.exists() else ""
