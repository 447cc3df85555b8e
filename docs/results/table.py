"""Print a result page's table from evaluated runs.

python docs/results/table.py FOLDER [--by KEY,...] [--show METRIC,...]

One row per combination of the configuration keys `--by`; over other keys (seeds) it shows mean ± standard deviation.
Metrics are the report's (`sae_cli/reporting/collect.py`), places in eval.json, or names in the last training line.
"""

import argparse
from pathlib import Path
from statistics import mean, stdev

from sae_cli.reporting.collect import Point, at, collect

BY = "sae.nonlinearity,sparsity.weight,orthogonality.weight"
SHOW = (
    "l0,fvu,delta_ce,language_model.recovered_zero,recovered,nearest_cosine,nearest_p99,dead,negative_biases,shrinkage"
)

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path)
parser.add_argument("--by", default=BY)
parser.add_argument("--show", default=SHOW)
options = parser.parse_args()
keys, shown = options.by.split(","), options.show.split(",")


def value(point: Point, name: str) -> float | None:
    if name in point.metrics:
        return point.metrics[name]
    found = at(point.evaluation, name)
    return found if found is not None or name not in point.curve else float(point.curve[name].iloc[-1])


def cell(points: list[Point], name: str) -> str:
    values = [number for point in points if (number := value(point, name)) is not None]
    if not values:
        return ""
    spread = f" ± {stdev(values):.2g}" if len(values) > 1 else ""
    return f"{mean(values):.4g}{spread}"


groups: dict[tuple, list[Point]] = {}
for point in (point for point in collect([options.folder]) if point.state == "done"):
    groups.setdefault(tuple(str(point.config[key]) for key in keys), []).append(point)
print("|", " | ".join([*(key.rsplit(".", 1)[-1] for key in keys), "n", *shown]), "|")
for group, points in sorted(groups.items()):
    cells = [*group, str(len(points)), *(cell(points, name) for name in shown)]
    print("|", " | ".join(cells), "|")
