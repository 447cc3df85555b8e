"""Print the table of three-features.md from runs/three_features."""

from pathlib import Path

from sae_cli.runs.directory import RunDirectory, find_runs


def point(run: RunDirectory) -> tuple[float, float, int]:
    return run.config.sparsity.weight, run.config.orthogonality.weight, run.config.seed


for run in sorted(find_runs(Path("runs/three_features")), key=point):
    evaluation = run.evaluation or {}
    cosines = evaluation["ground_truth"]["heatmap"]  # true features x latents
    composite = max((a + b) / 2**0.5 for a, b in zip(cosines[0], cosines[1], strict=True))
    quality = evaluation["reconstruction"]
    found = (f"{max(row):.3f}" for row in cosines)
    print(*point(run), *found, f"{composite:.3f}", f"{quality['l0']:.3f}", f"{quality['fvu']:.4f}", sep=" | ")
