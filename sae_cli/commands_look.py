"""Commands that show what runs left: report."""

from pathlib import Path
from typing import Annotated

import typer

from sae_cli.commands_run import Json
from sae_cli.console import emit, facts


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
