"""Draw two panels, L0 against FVU and against delta CE, as a PNG through Chromium.

python docs/results/frontier.py FOLDER OUT.png [KEY,...]    # one line per combination of the keys
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev

from plotly.subplots import make_subplots

from sae_cli.reporting.collect import collect

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
keys = (sys.argv[3] if len(sys.argv) > 3 else "sae.nonlinearity,sparsity.kind").split(",")
COLOURS = ["#2a78d6", "#1baf7a", "#eda100", "#e34948", "#7a5cd6", "#8a8a86", "#c24fa0", "#0f8b8d", "#b36a2e"]
PANELS = {"fvu": "FVU", "delta_ce": "delta CE (nats)"}

lines: dict[str, dict[float, list]] = {}
for point in (point for point in collect([folder]) if point.evaluation):
    name = " + ".join(str(point.config[key]) for key in keys if point.config[key] != "none")
    level = point.config["sparsity.target_l0"] or point.config["sae.k"] * (point.config["sparsity.weight"] == 0)
    lines.setdefault(name, {}).setdefault(level or point.config["sparsity.weight"], []).append(point.metrics)

figure = make_subplots(1, 2, horizontal_spacing=0.09)
for index, (name, levels) in enumerate(sorted(lines.items())):
    points = sorted(levels.values(), key=lambda group: group[0]["l0"])
    for column, metric in enumerate(PANELS, start=1):
        figure.add_scatter(
            x=[mean(m["l0"] for m in group) for group in points],
            y=[mean(m[metric] for m in group) for group in points],
            error_y={"array": [stdev([m[metric] for m in g]) if len(g) > 1 else 0 for g in points]},
            name=name,
            showlegend=column == 1,
            marker_color=COLOURS[index % len(COLOURS)],
            row=1,
            col=column,
        )
for column, title in enumerate(PANELS.values(), start=1):
    figure.update_xaxes(title="L0", type="log", tickvals=[8, 16, 32, 64, 128, 256], row=1, col=column)
    figure.update_yaxes(title=title, type="log", row=1, col=column)
figure.update_layout(template="plotly_white", width=1100, height=460, margin={"l": 60, "r": 10, "t": 20, "b": 50})
with tempfile.TemporaryDirectory() as temporary:
    page = Path(temporary) / "page.html"
    figure.write_html(page, config={"displayModeBar": False})
    shot = f"--screenshot={out.absolute()}"
    subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1116,476", shot, str(page)],
        check=True,
        capture_output=True,
    )
