"""One self-contained HTML page about a set of runs, with the same numbers as parquet and JSON beside it."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from markupsafe import Markup

from sae_cli.errors import UserError
from sae_cli.files import replace_atomically, write_json
from sae_cli.reporting import figures
from sae_cli.reporting.collect import NOT_SHOWN, SHORT, Point, collect, frame
from sae_cli.reporting.composites import composites
from sae_cli.reporting.groups import Groups, reference_l0
from sae_cli.reporting.look import COLOURS, DARK, SCALE, SYMBOLS, theme
from sae_cli.reporting.pages import render
from sae_cli.reporting.payload import columns, pack
from sae_cli.reporting.tables import cost_table, effect_table, reference_table

HEADINGS = {
    "l0_delta_ce": ("L0 against CE loss", "What the language model loses when the SAE's reconstruction is spliced in."),
    "l0_fvu": ("L0 against FVU", "How much of the activations' variance is left out at a given sparsity."),
    "l0_l1": ("L0 against L1", "How strong the active latents are: shrinkage pulls L1 down at equal L0."),
    "l1_mse": ("L1 against MSE", "What the sparsity penalty itself trades; MSE is summed over the width."),
    "l0_mcc": ("L0 against MCC", "How well latents recover the true features; here high is good."),
}
HISTOGRAMS = (
    ("Nearest cosine", "geometry.histogram", "alive", "cosine of a direction with its nearest", "random"),
    ("Density", "latents.density_histogram", "counts", "log10 of the share of rows on which a latent fires"),
    ("Biases", "biases.histogram", "counts", "encoder bias (units of the scaled input)"),
)
"""Heading, place in eval.json, its counts, axis title, and the curve to hold it against."""
TABS = {
    "bias_p05": "bias, 5 %",
    "bias_p50": "bias, median",
    "bias_p95": "bias, 95 %",
    "neighbour_recall": "neighbours seen",
}


class Card(NamedTuple):
    """A figure of the page."""

    key: str
    title: str
    text: str
    figure: figures.Figure


def write_report(folders: Sequence[Path], out: Path | None = None) -> dict[str, Any]:
    """Write report.html, and .parquet and .json of the same stem; `out` defaults to report.html in the first folder.

    Returns what was written, the number of points, those that are not done with their errors, and the run ids on each
    frontier. Raises UserError if a folder is missing or holds no run.
    """
    points = collect(folders)
    out = out or folders[0] / "report.html"
    if out.suffix != ".html":
        raise UserError(f"--out {out}: give a file name that ends in .html")
    name = " + ".join(dict.fromkeys(point.sweep for point in points)) or folders[0].resolve().name
    page, frontiers = _page(points, name, out.parent)
    replace_atomically(out, page.encode())
    table = frame(points)
    replace_atomically(out.with_suffix(".parquet"), table.to_parquet(index=False))
    unfinished = [point for point in points if point.state != "done"]
    result = {
        "report": str(out),
        "parquet": str(out.with_suffix(".parquet")),
        "json": str(out.with_suffix(".json")),
        "points": len(points),
        "done": len(points) - len(unfinished),
        "failed": [{name: getattr(p, name) for name in ("run_id", "folder", "state", "error")} for p in unfinished],
        "frontiers": {name: [point.run_id for point in front] for name, front in frontiers.items()},
    }
    finite = table.astype(object).where(table.notna() & ~table.isin([math.inf, -math.inf]), None)
    write_json(out.with_suffix(".json"), result | {"table": finite.to_dict("records")})
    return result


def _page(points: list[Point], name: str, folder: Path) -> tuple[str, dict[str, list[Point]]]:
    """Return the page and the points on each frontier; links are relative to `folder`."""
    groups = Groups(points)
    found = {key: one for key in HEADINGS if (one := figures.frontier(groups, key))}
    fronts = {key: front for key, (_, front) in found.items()}
    curves = {TABS.get(key, SHORT.get(key, key)): figures.curves(groups, key) for key in figures.CURVES}
    cards = {
        "frontiers": [Card(key, *HEADINGS[key], figure) for key, (figure, _) in found.items()],
        "training": _cards("training", curves),
        "latents": _cards("latents", {title: figures.histogram(groups, *where) for title, *where in HISTOGRAMS}),
        "truth": _cards("truth", figures.truth(groups)),
    }
    random = [point.metrics["nearest_random"] for point in points if "nearest_random" in point.metrics]
    reference = reference_l0(groups.series)
    configs = [point.config for point in points if point.config]
    shared = {k: v for k, v in (configs or [{}])[0].items() if k not in groups.keys and not k.startswith(NOT_SHOWN)}
    data = {
        "name": _words(name),
        "templates": {"light": theme(False), "dark": theme(True)},
        "dark": DARK,
        "scale": SCALE,
        "points": columns(points, groups, fronts, folder),
        "figures": {card.key: card.figure for several in cards.values() for card in several},
    }
    page = render(
        "report.html",
        title=name,
        total=len(points),
        states={"done": 0} | dict(Counter(point.state for point in points).most_common()),
        facts=_facts(points),
        groups=groups,
        colours=COLOURS,
        symbols=list(SYMBOLS.values()),
        **cards,
        seeds=any(len(group) > 1 for group in groups.replicates),
        effect=effect_table(groups),
        random=median(random) if random else None,
        cost=cost_table(groups),
        equal=reference_table(groups, reference),
        reference=reference,
        maps=len({(groups.step(p), groups.setting(p)) for p in groups.points if p.state == "done"}) > 1,
        composites=composites(points),
        unfinished=[(p.state, p.run_id, p.error, p.folder) for p in points if p.state != "done"],
        unread=sum(not point.evaluation for point in points),
        settings=shared,
        now=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        plotly=Markup((resources.files("plotly") / "package_data" / "plotly.min.js").read_text()),
        data=Markup(pack(data)),
    )
    return page, fronts


def _cards(prefix: str, named: Mapping[str, figures.Figure | None]) -> list[Card]:
    """Return the figures there are as cards; words about one end its `meta`."""
    return [
        Card(_words(f"{prefix} {title}"), title, "".join(one["layout"]["meta"][3:]), one)
        for title, one in named.items()
        if one
    ]


def _words(text: str) -> str:
    return "-".join(re.findall(r"[\w.]+", text))


def _facts(points: list[Point]) -> dict[str, str]:
    """What was trained on what, and the range of the main metrics."""
    configs = [point.config for point in points if point.config]

    def seen(key: str) -> str:
        values = sorted({config[key] for config in configs if config.get(key) not in (None, "")})
        words = [f"{value:,}" if isinstance(value, int) else str(value) for value in values]
        return ", ".join(words) if len(words) < 4 else f"{words[0]} to {words[-1]}"

    language = {config["source.kind"] for config in configs} == {"language_model"}
    source = f"{seen('model.name')} · {seen('model.hook')}" if language else seen("source.kind")
    facts = {"activations": source, "latents F": seen("sae.latents"), "rows per point": seen("train.tokens")}
    for name in ("l0", "fvu", "delta_ce", "mcc"):
        if values := [point.metrics[name] for point in points if point.state == "done" and name in point.metrics]:
            facts[SHORT[name]] = f"{min(values):.3g} to {max(values):.3g}"
    return facts
