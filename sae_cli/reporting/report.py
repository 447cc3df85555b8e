"""One self-contained HTML page about a set of runs, with the same numbers as parquet and JSON beside it."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from importlib import resources
from pathlib import Path
from statistics import median
from string import Template
from typing import Any

from sae_cli import __version__
from sae_cli.errors import UserError
from sae_cli.files import replace_atomically, write_json
from sae_cli.reporting import figures
from sae_cli.reporting.collect import NOT_SHOWN, SHORT, Point, collect, frame
from sae_cli.reporting.composites import NOTE, composites
from sae_cli.reporting.groups import Groups
from sae_cli.reporting.look import DARK, SCALE, legend, theme
from sae_cli.reporting.payload import columns, pack
from sae_cli.reporting.tables import cost_table, effect_table, problems_table, reference_table

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
SCRIPTS = ("report_figures", "report_saving", "report_heatmaps", "report_tables", "report")
"""Templates of the page's script, in order."""
TABS = {
    "bias_p05": "bias, 5 %",
    "bias_p50": "bias, median",
    "bias_p95": "bias, 95 %",
    "neighbour_recall": "neighbours seen",
    "neighbour_gap": "neighbour gap",
    "step_seconds": "step time",
}
SEEDS = (
    "; points that differ in their seeds only share one at their mean with its 95\u00a0% interval (Student's t), the "
    "single runs are faint dots"
)
COSTS = (
    "Penalties that look for neighbours approximately: the share of directions that are held against their true "
    "nearest one, and how much larger the cosine of the true nearest is than that of the nearest that is seen. "
    "Time: seconds per training step, without → with, of everything that trained together; only where as many points "
    "without any penalty trained together on the same kind of device."
)


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
    shown: dict[str, figures.Figure] = {}
    frontiers: dict[str, list[Point]] = {}
    for key in HEADINGS:
        if found := figures.frontier(groups, key):
            shown[key], frontiers[key] = found
    cards = "".join(_card(key, *HEADINGS[key]) for key in shown)

    def grids(prefix: str, named: dict[str, figures.Figure]) -> list[str]:
        keys = {title: "-".join(re.findall(r"[\w.]+", f"{prefix} {title}")) for title in named}
        shown.update({keys[title]: one for title, one in named.items()})
        return [_card(keys[title], title, *one["layout"]["meta"][3:]) for title, one in named.items()]

    curves = {TABS.get(key, SHORT.get(key, key)): figures.curves(groups, key) for key in figures.CURVES}
    trained = {title: one for title, one in curves.items() if one}
    latents = {title: one for title, *where in HISTOGRAMS if (one := figures.histogram(groups, *where))}
    random = [point.metrics["nearest_random"] for point in points if "nearest_random" in point.metrics]
    would = f"; random directions would have {median(random):.3g}" if random else ""
    count = sum(not point.evaluation for point in points)
    rest = f"Not evaluated: {count}; what is shown of these comes from their last training line." if count else ""
    seeds = any(len(group) > 1 for group in groups.replicates)
    placed = [(groups.step(p), groups.setting(p)) for p in groups.points if p.state == "done"]
    sections = [
        _section(
            "Frontiers",
            f"One marker is one point{SEEDS * seeds}. A line joins points that differ in lambda only. Filled markers "
            "are on the frontier (grey steps): no other is at least as good on both axes; dominated ones are hollow. "
            "Hover for settings and numbers, click to find it in the table.",
            _grid(cards),
        ),
        _section(
            "What the penalty does",
            "Each point against the same point without the penalty: same lambda, same everything else. Means over "
            "the pairs, without → with, and the change"
            + (" with its 95\u00a0% interval over seeds" * seeds)
            + f". The nearest cosine is the median over alive latents{would}.",
            effect_table(groups),
        ),
        _section("What the penalty costs", COSTS, cost_table(groups)),
        _section("At equal L0", *reference_table(groups)),
        _section(
            "lambda × orthogonality",
            "Any metric, one heatmap per nonlinearity on one colour scale; no penalty is gamma 0, points of one cell "
            "are averaged.",
            "<div class=maps></div>" if len(set(placed)) > 1 else "",
        ),
        _section(
            "Latents",
            "One line is one run. Nearest cosine: how close each alive direction's nearest neighbour lies; in grey, "
            "what random directions of the same number and width would give.",
            _grid("".join(grids("latents", latents))),
        ),
        _section(
            "True features",
            "|cos| of true features with latents, for the highest MCC of each nonlinearity and penalty. A clean "
            "diagonal is full recovery; two strong cells in a column are a composite latent.",
            _grid("".join(grids("truth", figures.truth(groups)))),
        ),
        _section("Composite features", NOTE, composites(points)),
        _section(
            "Training",
            "One line is one run; the stronger lambda is the stronger line.",
            _panes(list(trained), grids("training", trained)),
        ),
        _section("Not finished", "These points are on no frontier.", problems_table(points)),
        _section("All points", rest, "<div class='wide every'></div>"),
    ]
    data = {
        "name": "-".join(re.findall(r"[\w.]+", name)),
        "templates": {"light": theme(False), "dark": theme(True)},
        "dark": DARK,
        "scale": SCALE,
        "points": columns(points, groups, frontiers, folder),
        "figures": shown,
    }
    files = resources.files("sae_cli.reporting") / "templates"
    page = Template((files / "report.html").read_text()).substitute(
        title=escape(name),
        lede=_lede(points),
        facts=_facts(points),
        legend=legend(groups),
        sections="".join(sections),
        settings=_shared_settings(points, groups),
        made=f"sae {__version__}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        style=(files / "report.css").read_text(),
        script="\n".join((files / f"{part}.js").read_text() for part in SCRIPTS),
        plotly=(resources.files("plotly") / "package_data" / "plotly.min.js").read_text(),
        data=pack(data),
    )
    return page, frontiers


def _lede(points: list[Point]) -> str:
    counts = Counter(point.state for point in points)
    done = counts.pop("done", 0)
    total = f"{done} of {len(points)}" if counts else str(done)
    rest = ", ".join(f"{count} {escape(state)}" for state, count in counts.most_common())
    link = f", <a href='#not-finished'>{rest}</a>" if rest else ""
    return f"{total} point{'s'[: len(points) != 1]} done{link}."


def _facts(points: list[Point]) -> str:
    """Cards: what was trained on what, and the range of the main metrics."""
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
    return _terms(facts)


def _shared_settings(points: list[Point], groups: Groups) -> str:
    configs = [point.config for point in points if point.config]
    first = configs[0].items() if configs else ()
    return _terms({k: v for k, v in first if k not in groups.keys and not k.startswith(NOT_SHOWN)})


def _terms(items: dict[str, Any]) -> str:
    """Entries of a <dl>; empty values are left out."""
    known = {key: str(value) for key, value in items.items() if value not in ("", [], None)}
    return "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in known.items())


def _section(title: str, text: str, body: str) -> str:
    if not body:
        return ""
    anchor = "-".join(re.findall(r"\w+", title.lower()))
    return f"<section id='{anchor}'><h2>{title}</h2><p class='note'>{text}</p>{body}</section>"


def _grid(cards: str, hidden: bool = False) -> str:
    return f"<div class='grid'{' hidden' * hidden}>{cards}</div>" * bool(cards)


def _panes(titles: list[str], cards: list[str]) -> str:
    """Cards of which one is seen at a time, and the buttons that choose it."""
    pressed = [str(not index).lower() for index in range(len(titles))]
    tabs = [f"<button aria-pressed='{on}'>{escape(title)}</button>" for on, title in zip(pressed, titles, strict=True)]
    grids = "".join(_grid(card, hidden=index > 0) for index, card in enumerate(cards))
    return f"<div class='panes'><div class=tabs>{''.join(tabs)}</div>{grids}</div>" * bool(titles)


def _card(key: str, title: str, text: str = "") -> str:
    caption = f"<figcaption><h3>{escape(title)}</h3>{f'<p>{escape(text)}</p>' * bool(text)}</figcaption>"
    return f"<figure>{caption}<div class='plot' data-figure='{escape(key)}'></div></figure>"
