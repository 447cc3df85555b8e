"""Commands that show what runs left: report and dashboard."""

from pathlib import Path
from typing import Annotated

import typer

from sae_cli.commands_run import Json
from sae_cli.console import emit, facts
from sae_cli.errors import UserError


def report(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Runs or folders of runs.")],
    out: Annotated[Path | None, typer.Option(help="The HTML file; default: report.html in the first PATH.")] = None,
    as_json: Json = False,
) -> None:
    """Write one HTML page about runs.

    The page opens without a network; report.parquet beside it holds the same table.
    """
    from sae_cli.reporting.report import write_report

    result = write_report(paths, out)
    if as_json:
        emit(result)
    else:
        facts([("report", result["report"]), ("table", result["parquet"])])


def dashboard(
    paths: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs, or folders of runs.")],
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
    device: Annotated[str, typer.Option(help="auto | cpu | cuda | cuda:N")] = "auto",
    as_json: Json = False,
) -> None:
    """Write feature pages: what each latent fires on.

    One HTML page per run, without a network: activating examples, densities, logits, nearest latents, constituents.
    """
    from sae_cli.dashboard.build import Extent
    from sae_cli.dashboard.write import write_dashboards

    if split not in ("train", "validation"):
        raise UserError(f"--split {split}: choose train or validation")
    extent = Extent(split, rows, examples, before=before, after=after)  # type: ignore[arg-type]
    chosen = (top, count) if top else latents
    pages = write_dashboards(paths, chosen, extent, against, out, device)
    if as_json:
        emit({"pages": pages})
    else:
        facts([("page", page) for page in pages])
