"""The model card of an exported run: what made it, how good it is, how to load it, and its training as a figure."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

LOADING = {
    "saelens": 'from sae_lens import SAE\nsae = SAE.load_from_disk("FOLDER")',
    "dictionary_learning": "from dictionary_learning.utils import load_dictionary\n"
    'sae, config = load_dictionary("FOLDER", device="cpu")',
    "sparsify": 'from sparsify import SparseCoder\nsae = SparseCoder.load_from_disk("FOLDER")',
}
"""Python that opens a folder of each library."""
SECTIONS = ("reconstruction", "language_model", "latents", "ground_truth")
"""Sections of eval.json whose numbers a card shows."""
CURVES = (("fvu", "FVU", "#2a78d6"), ("l0", "L0", "#d6682a"))
WIDTH, HEIGHT, EDGE = 640, 220, 40


def model_card(
    title: str, library: str, command: str, config_yaml: str, evaluation: Mapping[str, Any] | None, figure: str
) -> str:
    """Return a card as Markdown with the metadata block that the Hugging Face hub reads; `figure` is a file's name."""
    numbers = [
        (f"{section}.{name}", value)
        for section in SECTIONS
        for name, value in ((evaluation or {}).get(section) or {}).items()
        if isinstance(value, int | float)
    ]
    rows = "\n".join(f"| {name} | {value:.6g} |" for name, value in numbers)
    measured = f"| metric | value |\n|---|---|\n{rows}" if numbers else "Not evaluated (`sae eval`)."
    picture = f"\n![FVU and L0 in training]({figure})\n" if figure else ""
    return (
        f"---\ntags:\n- sparse-autoencoder\n- {library}\n- sae-cli\n---\n# {escape(' '.join(title.split()))}\n\n"
        f"A sparse autoencoder trained with `sae`:\n\n{_fenced(command)}{picture}\n"
        f"## Loading\n{_fenced(LOADING[library], 'python')}\n## Metrics\n{measured}\n\n"
        f"## Configuration\n{_fenced(config_yaml.rstrip(), 'yaml')}"
    )


def _fenced(text: str, kind: str = "") -> str:
    """Return a block of code whose fence is longer than any in it."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks}{kind}\n{text}\n{ticks}\n"


def training_figure(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return FVU and L0 over training steps, each on its own scale, as an SVG; empty without two lines of both."""
    drawn = []
    for key, name, colour in CURVES:
        pairs = [(line.get("step"), line.get(key)) for line in lines]
        points = [pair for pair in pairs if all(isinstance(one, int | float) and abs(one) < 1e300 for one in pair)]
        if len(points) < 2:
            return ""
        steps, values = zip(*points, strict=True)
        low, high = min(values), max(values)
        across = [EDGE + (WIDTH - 2 * EDGE) * (step - steps[0]) / ((steps[-1] - steps[0]) or 1) for step in steps]
        up = [HEIGHT - EDGE - (HEIGHT - 2 * EDGE) * (value - low) / ((high - low) or 1) for value in values]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, up, strict=True))
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        label = f"{name} {low:.3g} to {high:.3g}, last {values[-1]:.3g}"
        drawn.append(f'<text x="{EDGE}" y="{14 + 16 * (len(drawn) // 2)}" fill="{colour}">{label}</text>')
    drawn.append(f'<text x="{EDGE}" y="{HEIGHT - 12}" fill="#666">step {steps[0]} to {steps[-1]}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
    return f'{head} font-size="12"><rect width="100%" height="100%" fill="white"/>{"".join(drawn)}</svg>\n'
