"""Commands that compute on finished runs: eval and compare."""

import shlex
import shutil
from pathlib import Path
from typing import Annotated

import typer

from sae_cli.commands_run import Json
from sae_cli.config.complete import complete
from sae_cli.console import emit, facts, number, table
from sae_cli.errors import UserError

COLUMNS = {
    "L0": "reconstruction.l0",
    "FVU": "reconstruction.fvu",
    "CE recovered": "language_model.recovered_zero",
    "dCE nats": "language_model.delta_nats",
    "dead": "latents.dead",
    "nearest cos": "geometry.alive.nearest_mean",
    "random": "geometry.random.nearest_mean",
    "MCC": "ground_truth.mcc",
}
"""Columns of `sae eval` and where eval.json holds them."""

Subjects = Annotated[
    list[str],
    typer.Argument(
        metavar="PATH... [KEY=VALUE]...", help="Runs, folders of runs, folders of SAEs.", autocompletion=complete
    ),
]


def folders_and_words(arguments: list[str]) -> tuple[list[Path], list[str]]:
    """Tell folders from overrides; UserError if there is no folder."""
    words = [word for word in arguments if "=" in word and not Path(word).exists()]
    folders = [Path(word) for word in arguments if word not in words]
    if not folders:
        raise UserError("give one or more run folders, such as runs/default")
    return folders, words


def evaluate(
    paths: Subjects,
    force: Annotated[bool, typer.Option("--force", help="Evaluate an SAE on another model or hook.")] = False,
    device: Annotated[str, typer.Option(help="auto | cpu | cuda | cuda:N")] = "auto",
    as_json: Json = False,
) -> None:
    """Evaluate finished runs, exported SAEs and those of SAELens, dictionary_learning and sparsify.

    Reconstruction, geometry, cross-entropy with the SAE spliced in; writes eval.json into each folder. Overrides: of
    eval.*, and for SAEs that are no runs of their data (model=gpt2 text=wiki), which else is that of the first run.
    """
    folders, words = folders_and_words(paths)
    from sae_cli.evaluation.evaluate import evaluate_subjects
    from sae_cli.reporting.collect import at
    from sae_cli.runs.subjects import is_sae, open_subjects

    results = evaluate_subjects(open_subjects(folders, words, force), device)
    if as_json:
        emit({result["run"]: result for result in results})
        return
    shown = {name: place for name, place in COLUMNS.items() if any(at(r, place) is not None for r in results)}
    table(["run", *shown], [[r["run"], *(number(at(r, place)) for place in shown.values())] for r in results])
    runs = [folder for folder in folders if not is_sae(folder)]
    if runs and len(results) > 1:
        _show_seeds(runs)
    if runs:
        facts([("next", shlex.join(["sae", "report", *map(str, runs)]))])


def _show_seeds(runs: list[Path]) -> None:
    """Print means and intervals of runs if some differ in their seeds only."""
    from sae_cli.reporting.collect import collect
    from sae_cli.reporting.replicates import replicates
    from sae_cli.reporting.terminal import table as overview

    points = collect(runs)
    if any(len(group) > 1 for group in replicates(points)):
        typer.echo("\n" + overview(points, shutil.get_terminal_size().columns) + "\n")


def compare(
    paths: Annotated[list[Path], typer.Argument(metavar="A B [C]...", help="Run folders; directions of one width D.")],
    force: Annotated[bool, typer.Option("--force", help="Compare although source, model or hook differ.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="The JSON file; default: compare.json in the last run's folder.")
    ] = None,
    sample: Annotated[
        int, typer.Option(min=0, help="Directions per dictionary in the arithmetic test; 0: every alive one.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sample and of the controls.")] = 0,
    device: Annotated[str, typer.Option(help="auto | cpu | cuda | cuda:N")] = "auto",
    as_json: Json = False,
) -> None:
    """Compare dictionaries: what they share, which directions are sums of others, how features split.

    A: the dictionary whose directions may be composites; B: the one that may hold their parts (both ways are tested).
    """
    if out is not None and out.suffix != ".json":
        raise UserError(f"--out {out}: give a file name that ends in .json")
    from sae_cli.comparison.compare import compare as compare_runs

    path, result = compare_runs(paths, out, force, sample, seed, device)
    if as_json:
        emit({"compare": str(path), **result})
        return
    for one in result["dictionaries"]:
        facts([(one["name"], f"{one['run']}  {one['alive']} of {one['latents']} latents alive")])
    pairs = result["similarity"]
    columns = {"MMCS": "mmcs", "random": "random", "unique": "unique"}
    table(
        ["pair", *(f"{name} {side}" for name in columns for side in ("of first", "of second")), "matched"],
        [
            [
                f"{pair['a']} {pair['b']}",
                *(number(pair[f"{key}_{side}"]) for key in columns.values() for side in "ab"),
                number(pair["matched"]),
            ]
            for pair in pairs
        ],
    )
    table(
        ["explained by", "1", "2", "3", "composite", "recovered"],
        [
            [
                f"{test['targets']} on {test['atoms']}, {name.replace('_', ' ')}",
                *map(number, row["mean"]),
                number(row["composite"]),
                number(row.get("recovered")),
            ]
            for test in result["arithmetic"]
            for name, row in test["rows"].items()
        ],
    )
    for level in result["splitting"]:
        words = f"{level['children']} children, {level['split']} latents split, {level['sums']} children are sums"
        facts([(f"{level['narrow']} -> {level['wide']}", words)])
    folder = result["dictionaries"][-1]["run"]
    facts([("written", path), *([] if out else [("next", shlex.join(["sae", "report", folder]))])])
