"""Draw prolu.svg and phi.svg of the concept pages from the functions that training uses.

python docs/concepts/figures.py [FOLDER]
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sae_cli.config.schema import OrthogonalityConfig, SAEConfig
from sae_cli.dictionary.nonlinearities import NONLINEARITIES
from sae_cli.losses.phi import PHI

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e")
DASHES = ("", "6 3", "2 2", "8 2 2 2", "1 3")
WIDTH, HEIGHT, LEFT, TOP = 260, 170, 40, 34
"""Of a panel's frame, and its distance from the panel's corner."""


def panel(index: int, title: str, axis: str, x: Tensor, curves: dict[str, Tensor], top: float) -> list[str]:
    """Return a panel's elements: curves over x, values from 0 to `top`; gaps where neighbours are far apart."""
    left = index * (WIDTH + LEFT + 20) + LEFT
    low, high = float(x[0]), float(x[-1])
    drawn = [f'<rect x="{left}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#888"/>']
    drawn.append(f'<text x="{left + WIDTH / 2}" y="20" text-anchor="middle" font-weight="bold">{title}</text>')
    drawn.append(f'<text x="{left + WIDTH / 2}" y="{TOP + HEIGHT + 30}" text-anchor="middle">{axis}</text>')
    for value in (low, (low + high) / 2, high):
        place = left + (value - low) / (high - low) * WIDTH
        drawn.append(f'<text x="{place:.0f}" y="{TOP + HEIGHT + 15}" text-anchor="middle">{value:g}</text>')
    for value in (0, top / 2, top):
        drawn.append(
            f'<text x="{left - 6}" y="{TOP + HEIGHT * (1 - value / top) + 4:.0f}" text-anchor="end">{value:g}</text>'
        )
    for number, (name, y) in enumerate(curves.items()):
        look = f'stroke="{COLOURS[number]}" stroke-width="2" stroke-dasharray="{DASHES[number]}" fill="none"'
        for part in pieces(x, y, top):
            points = " ".join(
                f"{left + (a - low) / (high - low) * WIDTH:.1f},{TOP + HEIGHT * (1 - b / top):.1f}" for a, b in part
            )
            drawn.append(f'<polyline points="{points}" {look}/>')
        row = TOP + 16 + 16 * number
        drawn.append(f'<line x1="{left + 8}" y1="{row - 4}" x2="{left + 36}" y2="{row - 4}" {look}/>')
        drawn.append(f'<text x="{left + 42}" y="{row}">{name}</text>')
    return drawn


def pieces(x: Tensor, y: Tensor, top: float) -> list[list[tuple[float, float]]]:
    """Cut a curve where it jumps and where it leaves the frame."""
    found: list[list[tuple[float, float]]] = [[]]
    for a, b in zip(x.tolist(), y.tolist(), strict=True):
        if b > top or (found[-1] and abs(b - found[-1][-1][1]) > top / 10):
            found.append([])
        if b <= top:
            found[-1].append((a, b))
    return [part for part in found if len(part) > 1]


def svg(panels: Sequence[list[str]]) -> str:
    """Return a figure of panels side by side."""
    width, height = len(panels) * (WIDTH + LEFT + 20), TOP + HEIGHT + 40
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">'
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="white"/>', *sum(panels, []), "</svg>\n"])


def prolu() -> str:
    """Latents over the pre-activation, and what reaches the bias, with the bias at -1."""
    values, slopes = {}, {}
    for name in ("relu", "prolu_relu", "prolu_ste"):
        m = torch.linspace(-1, 3, 101)
        b = torch.full((101, 1), -1.0, requires_grad=True)
        settings = [SAEConfig(nonlinearity=name)]
        f = torch.stack(
            [
                NONLINEARITIES[name].latents(m[i].view(1, 1, 1), {"b_enc": b[i].view(1, 1, 1)}, settings)
                for i in range(101)
            ]
        )
        f.sum().backward()
        shown = name if name == "relu" else "ProLU"
        values[shown], slopes[name] = f.detach().flatten(), b.grad.flatten()
    return svg(
        [panel(0, "latent f, bias -1", "m", m, values, 3), panel(1, "gradient of f for the bias", "m", m, slopes, 3)]
    )


def phi() -> str:
    """What a cosine costs, and how hard it is pushed."""
    kinds = {"abs": {}, "square": {}, "power": {"exponent": 4.0}, "hinge": {"threshold": 0.2}, "barrier": {}}
    values, slopes = {}, {}
    for name, settings in kinds.items():
        c = torch.linspace(0, 1, 101, requires_grad=True)
        value = PHI[name](c, OrthogonalityConfig(phi=name, **settings))
        value.sum().backward()
        label = name + "".join(f", {key} {number:g}" for key, number in settings.items())
        values[label], slopes[label] = value.detach(), c.grad
    x = c.detach()
    return svg([panel(0, "phi(c)", "cosine c", x, values, 2), panel(1, "its slope", "cosine c", x, slopes, 4)])


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    (folder / "prolu.svg").write_text(prolu())
    (folder / "phi.svg").write_text(phi())
