"""Pictures made of characters, in Unicode or plain ASCII: sparklines, scatter plots, and lines that fit a terminal."""

import math
import textwrap
from collections.abc import Sequence

import numpy as np

BARS = ("▁▂▃▄▅▆▇█", "_.-:=+*#")
FULL, HOLLOW = ("●■▲◆▼★", "ABCDEF"), ("○□△◇▽☆", "abcdef")
"""Symbols of a scatter plot's series: points that stand out, and the others."""
FRAME = ("│└─┬", "|+-+")
ASCII = str.maketrans({"±": "+-", "·": "-", "…": "~", "→": "->", "’": "'", "−": "-"})


def clean(text: object, ascii_only: bool = False) -> str:
    """Text for one line of a terminal: no control characters; in ASCII what has no likeness is a question mark."""
    line = "".join(letter if letter.isprintable() else " " for letter in str(text))
    return line.translate(ASCII).encode("ascii", "replace").decode() if ascii_only else line


def clip(text: str, width: int, ascii_only: bool = False) -> str:
    """Cut a line to `width` letters."""
    line = clean(text, ascii_only).rstrip()
    return line if len(line) <= width else line[: width - 1] + clean("…", ascii_only)


def sparkline(values: Sequence[float | None], width: int, ascii_only: bool = False, zero: bool = False) -> str:
    """Up to `width` bars from the smallest value (or `zero`) to the largest, each the mean of its share of values.

    Logarithmic where that suits, but never from zero; a share without a finite number is a gap.
    """
    numbers = np.array([math.nan if value is None else value for value in values], dtype=float)
    known = numbers[np.isfinite(numbers)]
    if not known.size:
        return ""
    if not zero and _logarithmic(known.tolist()):
        numbers = np.log(numbers)
    shares = [part[np.isfinite(part)] for part in np.array_split(numbers, min(width, len(numbers)))]
    heights = [float(part.mean()) if part.size else math.nan for part in shares]
    low = 0.0 if zero else np.nanmin(heights)
    step = (np.nanmax(heights) - low) / 7 or 1.0
    return "".join(" " if math.isnan(h) else BARS[ascii_only][round((h - low) / step)] for h in heights)


def scatter(
    series: dict[str, list[tuple[float, float, bool]]],
    labels: tuple[str, str],
    width: int,
    height: int = 15,
    ascii_only: bool = False,
) -> list[str]:
    """Lines of a plot of (x, y, stands out) points with labelled axes and a legend, `width` columns wide at most.

    Points that stand out are full symbols (capitals in ASCII) and are drawn over the others.
    """
    points = sorted((best, i, x, y) for i, members in enumerate(series.values()) for x, y, best in members)
    (x_kind, x_N, x_ticks), (y_kind, y_N, y_ticks) = map(_axis, list(zip(*points, strict=True))[2:])
    margin = max(map(len, y_ticks))
    across = max(24, width - margin - 2)
    grid = [[" "] * across for _ in range(height)]
    for (best, index, *_), x, y in zip(points, x_N, y_N, strict=True):
        symbol = (FULL if best else HOLLOW)[ascii_only][index % 6]
        grid[round((1 - y) * (height - 1))][round(x * (across - 1))] = symbol
    bar, corner, line, tick = [*FRAME[ascii_only]]
    names = dict(zip((height - 1, height // 2, 0), y_ticks, strict=True))
    low, middle, high = x_ticks
    legend = [f"{FULL[ascii_only][index % 6]} {name}" for index, name in enumerate(series)]
    legend += [f"{'capitals' if ascii_only else 'full'}: on the frontier"]
    lines = [
        labels[1] + y_kind,
        *(f"{names.get(number, ''):>{margin}} {bar}{''.join(row)}" for number, row in enumerate(grid)),
        f"{'':{margin}} {corner}{line * (across // 2)}{tick}{line * (across - across // 2 - 1)}",
        f"{'':{margin}}  {low:{across // 2 - len(middle) // 2}}{middle:{(across - 1) // 2 + len(middle) // 2}}"[
            : margin + 2 + across - len(high)
        ]
        + high,
        f"{labels[0] + x_kind:^{width}}",
        *textwrap.wrap("   ".join(entry.replace(" ", "\xa0") for entry in legend), width),
    ]
    return [clip(one.replace("\xa0", " "), width, ascii_only) for one in lines]


def _axis(values: Sequence[float]) -> tuple[str, list[float], list[str]]:
    """Kind of an axis, where its values stand (0..1; the middle if all are one), ticks at its ends and its middle."""
    low, high, log = min(values), max(values), _logarithmic(values)
    scaled = np.log(values) if log else np.array(values, dtype=float)
    size = float(np.ptp(scaled))
    places = (scaled - scaled.min()) / size if size else np.full(len(scaled), 0.5)
    ticks = (low, math.sqrt(low * high) if log else (low + high) / 2, high)
    return " (log)" * log, places.tolist(), [f"{tick:.3g}" for tick in ticks]


def _logarithmic(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) >= 6 * min(values)
