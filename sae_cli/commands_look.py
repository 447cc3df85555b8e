"""Commands that show what runs left: show, report and dashboard."""

import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from sae_cli.commands_eval import Subjects, folders_and_words
from sae_cli.commands_run import Json
from sae_cli.console import emit, facts
from sae_cli.errors import UserError

Paths = Annotated[list[Path], typer.Argument(metavar="PATH...", help="Runs or folders of runs.")]


def show(
    paths: Paths,
    metrics: Annotated[
        str, typer.Option(metavar="A,B", help="Columns, such as l0,fvu,kl; default: the main ones.")
    ] = "",
    sort: Annotated[str, typer.Option(metavar="METRIC", help="Smallest first; -METRIC: largest first.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="A row per run: no means over seeds.")] = False,
    watch: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Draw again until no run is left.")] = 0,
    ascii_only: Annotated[bool, typer.Option("--ascii", help="Plain ASCII.")] = False,
    as_json: Json = False,
) -> None:
    """Show runs as text: table, frontier, curves.

    One run: its settings, numbers, training curves and histograms. Several: a table with 95 % intervals over seeds.
    """
    from sae_cli.reporting.collect import collect
    from sae_cli.reporting.one_run import show_run
    from sae_cli.reporting.terminal import BUSY, show_sweep

    while True:
        points = collect(paths)
        data, draw = show_run(*points) if len(points) == 1 else show_sweep(points, paths, metrics, sort, everything)
        if as_json:
            emit(data)
        else:
            plain = ascii_only or "utf" not in (sys.stdout.encoding or "").lower()
            clear = "\x1b[H\x1b[J" if watch and sys.stdout.isatty() else ""
            typer.echo(clear + "\n".join(draw(shutil.get_terminal_size().columns, plain)))
        if not watch or all(point.state not in BUSY for point in points):
            return
        time.sleep(watch)


def report(
    paths: Paths,
    out: Annotated[Path | None, typer.Option(help="The HTML file; default: report.html in the first PATH.")] = None,
    wandb: Annotated[bool, typer.Option("--wandb", help="Publish it at Weights & Biases as well.")] = False,
    as_json: Json = False,
) -> None:
    """Write one HTML page about runs.

    The page opens without a network; report.parquet beside it holds the same table.
    """
    from sae_cli.reporting.collect import collect
    from sae_cli.reporting.report import write_report

    result = write_report(paths, out)
    if wandb:
        from sae_cli.runs.publish import publish_report

        result["wandb"] = publish_report(collect(paths), result)
    if as_json:
        emit(result)
        return
    lines = [("report", result["report"]), ("table", result["parquet"])]
    if place := result.get("wandb"):
        lines.append(("wandb", place.get("url") or f"offline; next: {shlex.join(['wandb', 'sync', place['folder']])}"))
    facts(lines)


def dashboard(
    paths: Subjects,
    latents: Annotated[
        str, typer.Option("--latents", "--ids", metavar="IDS", help="Latents such as 0-99,205, or all.")
    ] = "0-99",
    top: Annotated[
        str, typer.Option(metavar="ORDER", help="The --count latents largest in: density | max | nearest.")
    ] = "",
    count: Annotated[int, typer.Option(min=1, help="Latents that --top takes.")] = 100,
    against: Annotated[
        Path | None, typer.Option(metavar="RUN", help="A run of whose directions these may be sums.")
    ] = None,
    split: Annotated[str, typer.Option(help="Part of the cache that is read: train | validation.")] = "train",
    rows: Annotated[int, typer.Option(min=0, help="Rows that are read at most; 0: all.")] = 1_000_000,
    examples: Annotated[int, typer.Option(min=1, help="Strongest examples per latent.")] = 12,
    before: Annotated[int, typer.Option(min=0, help="Tokens shown before the peak.")] = 24,
    after: Annotated[int, typer.Option(min=0, help="Tokens shown after it.")] = 8,
    out: Annotated[Path | None, typer.Option(help="The HTML file; default: dashboard.html in the run.")] = None,
    wandb: Annotated[bool, typer.Option("--wandb", help="Publish it at Weights & Biases as well.")] = False,
    device: Annotated[str, typer.Option(help="auto | cpu | cuda | cuda:N")] = "auto",
    as_json: Json = False,
) -> None:
    """Write feature pages: what each latent fires on.

    One HTML page per SAE, without a network: activating examples, densities, logits, nearest latents, constituents.
    Takes what `sae eval` takes.
    """
    from sae_cli.dashboard.build import Extent
    from sae_cli.dashboard.write import write_dashboards

    folders, words = folders_and_words(paths)
    if split not in ("train", "validation"):
        raise UserError(f"--split {split}: choose train or validation")
    extent = Extent(split, rows, examples, before=before, after=after)  # type: ignore[arg-type]
    chosen = (top, count) if top else latents
    pages = write_dashboards(folders, words, chosen, extent, against, out, device)
    if wandb:
        from sae_cli.reporting.collect import collect
        from sae_cli.runs.publish import publish_files

        for folder, page in pages.items():
            if (folder / "config.yaml").exists():  # only runs have a place there
                publish_files(collect([folder]), "dashboard", {page.name: page}, folder)
    if as_json:
        emit({"pages": list(pages.values())})
    else:
        facts([("page", page) for page in pages.values()])
