"""The `sae` command: options every command shares, error lines and exit codes. Imports nothing heavy."""

import logging
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sae_cli import __version__
from sae_cli.commands import cache, doctor, evaluate, report, sweep, train
from sae_cli.commands_config import config_app
from sae_cli.errors import UserError

FAILED, USAGE, INTERRUPTED = 1, 2, 130


class Commands(TyperGroup):
    """Turns what a command raises into one line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; with --debug errors keep their traceback."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except UserError as error:
            if ctx.params.get("debug"):
                raise
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(USAGE) from None
        except (OSError, ArithmeticError, LookupError, AssertionError, ValueError, TypeError, ImportError) as error:
            self._fail(ctx, error)
        except RuntimeError as error:
            if isinstance(error, typer.Exit | typer.Abort) or type(error).__module__.startswith(("click", "typer")):
                raise
            self._fail(ctx, error)

    def _fail(self, ctx: Any, error: Exception) -> None:
        if ctx.params.get("debug") or isinstance(error, BrokenPipeError):
            raise error
        line = " ".join(str(error).split())[:500]
        typer.echo(f"error: {type(error).__name__}: {line} (`sae --debug ...` shows where)", err=True)
        raise typer.Exit(FAILED) from None
