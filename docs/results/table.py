"""Print the rows of the result pages' tables from evaluated runs. Usage: python docs/results/table.py FOLDER"""

import sys
from pathlib import Path

from sae_cli.runs.directory import RunDirectory, find_runs


def point(run: RunDirectory) -> tuple[str, float, float]:
    config = run.config
    return config.sae.nonlinearity, config.sparsity.weight, config.orthogonality.weight


for run in sorted(find_runs(Path(sys.argv[1])), key=point):
    evaluation = run.evaluation or {}
    quality, model = evaluation["reconstruction"], evaluation["language_model"]
    alive = evaluation["geometry"]["alive"]
    columns = [
        *point(run),
        f"{quality['l0']:.1f}",
        f"{quality['fvu']:.4f}",
        f"{model['delta_nats']:.3f}",
        f"{model['recovered_zero']:.3f}",
        f"{model['recovered_mean']:.3f}",
        f"{alive['nearest_median']:.3f}",
        f"{alive['nearest_p99']:.2f}",
        f"{100 * evaluation['latents']['dead']:.0f}",
        f"{100 * evaluation['biases']['negative']:.0f}",
        f"{quality['shrinkage']:.3f}",
    ]
    if run.config.orthogonality.phi != "square":
        columns.insert(0, run.config.orthogonality.phi)
    print("|", " | ".join(map(str, columns)), "|")
