"""How a report looks: colour is the nonlinearity, marker symbol and dash are the orthogonality penalty, everywhere.

Colours are those of the light look; `DARK` names each one's partner in the dark look.
"""

from collections.abc import Sequence
from html import escape
from typing import Any

from sae_cli.reporting.groups import OFF, Groups

_HUES = {
    "#0072b2": "#5aaee8",
    "#d55e00": "#ff9248",
    "#009e73": "#33cf9f",
    "#c2569b": "#ee9bcb",
    "#8a6d00": "#e8c65a",
    "#5b4bb5": "#ada2f7",
    "#5f6670": "#aab2bd",
}
"""Okabe and Ito's colour-blind safe palette, darkened where it was too light for lines on white, and for the dark."""


def _tint(colour: str, other: str, share: float) -> str:
    parts = zip(bytes.fromhex(colour[1:]), bytes.fromhex(other[1:]), strict=True)
    return "#" + bytes(round(a + share * (b - a)) for a, b in parts).hex()


# A second and a third shade of each hue for reports of many nonlinearities and sweeps.
_PAIRS = _HUES | {
    _tint(light, towards, 0.45): _tint(dark, towards, 0.45)
    for towards in ("#ffffff", "#000000")
    for light, dark in _HUES.items()
}
COLOURS = tuple(_PAIRS)
FAINT = "99"
"""Alpha that makes a colour a faint one."""
NEUTRAL, SHADE, LOW, MIDDLE, HIGH = "#6b7280", "#e3e1da", "#f3f1ec", "#8fb8d6", "#0b4f7d"
"""Grey lines, grey areas, and the scale of heatmaps."""
SCALE = [[0, LOW], [0.5, MIDDLE], [1, HIGH]]
DARK = {**_PAIRS, NEUTRAL: "#a3a9b5", SHADE: "#363c46", LOW: "#20262e", MIDDLE: "#2f6690", HIGH: "#9ed4ff"}
SYMBOLS = {
    "circle": "M6 0A6 6 0 1 1-6 0A6 6 0 1 1 6 0Z",
    "diamond": "M0-7.5 7.5 0 0 7.5-7.5 0Z",
    "square": "M-5.5-5.5H5.5V5.5H-5.5Z",
    "triangle-up": "M0-7 6.5 5H-6.5Z",
    "cross": "M-2.2-6.5H2.2V-2.2H6.5V2.2H2.2V6.5H-2.2V2.2H-6.5V-2.2H-2.2Z",
    "triangle-down": "M0 7 6.5-5H-6.5Z",
    "triangle-left": "M-7 0 5-6.5V6.5Z",
    "triangle-right": "M7 0-5-6.5V6.5Z",
    "hourglass": "M-6-6.5H6L-6 6.5H6Z",
    "bowtie": "M-6.5-6V6L6.5-6V6Z",
}
"""The plotting library's marker symbols, with SVG paths of the same shapes for the page's legend."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


def theme(dark: bool) -> dict[str, Any]:
    """The plain look of all figures, transparent so that the page shows through."""
    ink, muted, grid, card = ("#22262b", "#5d646e", "#eceae4", "#ffffff")
    if dark:
        ink, muted, grid, card = ("#e6e8eb", "#a3a9b5", "#2b3038", "#1d2127")
    axis = {"gridcolor": grid, "linecolor": grid, "zerolinecolor": grid, "tickcolor": grid, "automargin": True}
    axis |= {"tickfont": {"color": muted}, "title": {"font": {"color": muted, "size": 13}, "standoff": 10}}
    font = {"family": "Inter, system-ui, -apple-system, 'Segoe UI', sans-serif", "size": 12, "color": ink}
    layout = {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": axis,
        "yaxis": axis,
        "font": font,
        "margin": {"l": 8, "r": 12, "t": 12, "b": 8},
        "hoverlabel": {"bgcolor": card, "bordercolor": grid, "align": "left", "font": font},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": muted, "activecolor": ink},
        "legend": {"bgcolor": "rgba(0,0,0,0)"},
    }
    return {"layout": layout}


def marks(groups: Groups, family: str, setting: str) -> tuple[str, str, str]:
    """Colour of a nonlinearity; marker symbol and dash of a penalty."""
    which = groups.settings.index(setting)
    colour = COLOURS[groups.families.index(family) % len(COLOURS)]
    return colour, list(SYMBOLS)[which % len(SYMBOLS)], DASHES[which % len(DASHES)]


def named(
    groups: Groups, family: str, setting: str, earlier: Sequence[dict[str, Any]] | None = None, of: str = "points"
) -> dict[str, Any]:
    """Name and legend of a trace (one entry per nonlinearity and penalty), and what a page filters it by.

    `of`: what its `customdata` are indices of. Without `earlier` traces it has no entry in the legend.
    """
    name = escape(family if groups.settings == [OFF] else f"{family} · {setting}")
    meta = {"family": groups.families.index(family), "setting": groups.settings.index(setting), "of": of}
    taken = {trace["name"] for trace in earlier or () if trace.get("showlegend")}
    return {"name": name, "legendgroup": name, "showlegend": earlier is not None and name not in taken, "meta": meta}
