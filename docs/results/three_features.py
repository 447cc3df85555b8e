"""Print the table of three-features.md from runs/three_features."""

import pathlib
from sae_cli.runs.directory import find_runs

key = lambda r: (r.config.sparsity.weight, r.config.orthogonality.weight, r.config.seed)
for run in sorted(find_runs(pathlib.Path("runs/three_features")), key=key):
    cosines = run.evaluation["ground_truth"]["heatmap"]  # true features x latents
    composite = max((a + b) / 2**0.5 for a, b in zip(cosines[0], cosines[1]))
    r = run.evaluation["reconstruction"]
    print(
        *key(run),
        *(f"{max(row):.3f}" for row in cosines),
        f"{composite:.3f}",
        f"{r['l0']:.3f}",
        f"{r['fvu']:.4f}",
        sep=" | ",
    )
