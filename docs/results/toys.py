"""Draw toys.svg, the figure of toys.md: latents x true features of SAEs from runs/chanin_hierarchical.

python docs/results/toys.py
"""

from pathlib import Path

from sae_cli.runs.directory import RunDirectory, find_runs

SHOWN = {"L1 alone": (0.0, 0), "nearest, gamma 0.05": (0.05, 0), "nearest, gamma 0.25": (0.25, 0)}
"""Panel: gamma and seed, on the first draw of the true directions."""
TRUE = ["parent", "child", "third", "fourth"]
CELL, LEFT, TOP = 46, 90, 44


def point(run: RunDirectory) -> tuple[float, int]:
    return run.config.orthogonality.weight, run.config.seed


def colour(cosine: float) -> str:
    """White at 0, red at 1, blue at -1."""
    fade = round(255 * (1 - min(abs(cosine), 1) * 0.75))
    return f"rgb(255,{fade},{fade})" if cosine > 0 else f"rgb({fade},{fade},255)"


def panel(run: RunDirectory, title: str, left: int, named: bool) -> list[str]:
    truth = (run.evaluation or {})["ground_truth"]
    cosines = [*map(list, zip(*truth["heatmap"], strict=True)), truth["heatmap_bias"]]  # latents and the bias x true
    drawn = [f'<text x="{left + 2 * CELL}" y="14" font-weight="bold">{title}</text>']
    drawn += [f'<text x="{left + (k + 0.5) * CELL}" y="34">{name}</text>' for k, name in enumerate(TRUE)]
    for row, values in enumerate(cosines):
        y, name = TOP + row * CELL // 2, "bias" if row == len(TRUE) else f"latent {row + 1}"
        if named:
            drawn.append(f'<text x="{left - 34}" y="{y + 16}">{name}</text>')
        for column, value in enumerate(values):
            x = left + column * CELL
            drawn.append(f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL // 2}" fill="{colour(value)}"/>')
            drawn.append(f'<text x="{x + CELL / 2}" y="{y + 16}">{value:.2f}</text>')
    return drawn


runs = {
    point(run): run
    for run in find_runs(Path("runs/chanin_hierarchical"))
    if run.config.source.seed == 0 and run.config.orthogonality.kind == "nearest" and not run.config.sae.prefixes
}
step = 4 * CELL + 30
width, height = LEFT + step * len(SHOWN), TOP + 5 * CELL // 2 + 8
lines = [
    f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
    'font-size="12" text-anchor="middle">',
    f'<rect width="{width}" height="{height}" fill="white"/>',
]
for number, (title, key) in enumerate(SHOWN.items()):
    lines += panel(runs[key], title, LEFT + number * step, number == 0)
Path("docs/results/toys.svg").write_text("\n".join([*lines, "</svg>"]) + "\n")
