"""What commands print on stdout: results as tables, lines or one JSON object."""

import json
import sys
from collections.abc import Sequence
from typing import Any

import typer


def emit(value: Any) -> None:
    """Print one JSON object; paths become strings."""
    typer.echo(json.dumps(value, default=str))


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows under their columns: a rich table on a terminal, aligned plain columns otherwise."""
    cells = [[str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        grid = Table(*columns, box=None, header_style="bold", pad_edge=False)
        for row in cells:
            grid.add_row(*(cell.replace("[", r"\[") for cell in row))
        Console().print(grid)
        return
    lines = [list(columns), *cells]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def facts(pairs: Sequence[tuple[str, Any]]) -> None:
    """Print one `name  value` line per pair."""
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        typer.echo(f"{name.ljust(width)}  {value}")


def size(amount: float | None) -> str:
    """Return bytes for people, such as `51.2 MB` (powers of 1000); `unknown` for None."""
    from rich.filesize import decimal

    return "unknown" if amount is None else decimal(int(amount))


def count(amount: int | None) -> str:
    """Return a whole number with separators; `unknown` for None."""
    return "unknown" if amount is None else f"{amount:,}"


def number(value: Any) -> str:
    """Return a metric with four digits; a dash if there is none."""
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
