"""The `sae` command: options every command shares, error lines and exit codes. Imports nothing heavy."""

import logging
import os
import sys
import time
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sae_cli import (
    __version__,
    commands_bench,
    commands_config,
    commands_eval,
    commands_exchange,
    commands_look,
    commands_run,
)
from sae_cli.errors import UserError, of_system
from sae_cli.torchrun import rank, world_size

FAILED, USAGE, INTERRUPTED = 1, 2, 130
GRACE = 10.0
"""Seconds that other processes of torchrun wait with an error that the first one is about to say."""


class Commands(TyperGroup):
    """Turns what a command raises into one line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; with --debug an error keeps its traceback."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            if rank() == 0:
                typer.echo("interrupted; the same command goes on where it stopped", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            own = hasattr(error, "exit_code") or isinstance(error, typer.Abort | BrokenPipeError)
            if own or ctx.params.get("debug"):
                raise
            if isinstance(error, UserError) or of_system(error):
                if rank():  # torchrun ends this process once the first has ended
                    time.sleep(GRACE)
                typer.echo(f"error: {f'rank {rank()}: ' if rank() else ''}{of_system(error) or error}", err=True)
                raise typer.Exit(USAGE) from None
            line = " ".join(str(error).split())[:500]
            typer.echo(f"error: {type(error).__name__}: {line} (`sae --debug ...` shows where)", err=True)
            raise typer.Exit(FAILED) from None


app = typer.Typer(
    cls=Commands,
    name="sae",
    help="Sparse autoencoder experiments: cache activations, train and sweep, evaluate, report.",
    epilog="Overrides are Hydra's: sae=prolu_ste train.lr=3e-4. `sae config keys` and `sae config ls` list them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sae {__version__}")
        raise typer.Exit


@app.callback()
def shared(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="More lines on stderr.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings on stderr.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Send log lines to stderr; stdout carries results only. Under torchrun one process speaks for all."""
    if world_size() > 1 and context.invoked_subcommand != "train":
        also = " (sweeps scale through --launcher)" if context.invoked_subcommand == "sweep" else ""
        raise UserError(f"torchrun is for `sae train`: run `sae {context.invoked_subcommand}` without it{also}")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    if rank():
        level = logging.ERROR
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (it lasts as long as the process)
    logging.getLogger("sae_cli").setLevel(level)


app.command(name="cache")(commands_run.cache)
app.command(name="train")(commands_run.train)
app.command(name="sweep")(commands_run.sweep)
app.command(name="eval")(commands_eval.evaluate)
app.command(name="compare")(commands_eval.compare)
app.command(name="show")(commands_look.show)
app.command(name="report")(commands_look.report)
app.command(name="dashboard")(commands_look.dashboard)
app.command(name="export")(commands_exchange.export)
app.command(name="import")(commands_exchange.import_)
app.command(name="bench")(commands_bench.bench)
app.command(name="doctor")(commands_config.doctor)
app.add_typer(commands_config.config_app, name="config")


def main() -> None:
    """Entry point of the `sae` script."""
    app(prog_name="sae")
