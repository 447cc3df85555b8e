"""`sae config`: what can be set and what a command line resolves to; `sae doctor`: what the machine can do."""

import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sae_cli.commands_run import ConfigDir, Json, Overrides
from sae_cli.config.groups import GROUPS, choices, find, header
from sae_cli.config.keys import by_name, keys
from sae_cli.console import emit, facts, table
from sae_cli.errors import UserError, suggest

PLACES = [*GROUPS, "sweeps"]
config_app = typer.Typer(no_args_is_help=True, help="Show and copy configuration: show, ls, keys, cp.")


@config_app.command()
def show(overrides: Overrides, as_json: Json = False, config_dir: ConfigDir = None) -> None:
    """Print the configuration that overrides resolve to."""
    from sae_cli.config.compose import compose
    from sae_cli.config.convert import to_dict, to_yaml

    config = compose(overrides, config_dir)
    if as_json:
        emit(to_dict(config))
    else:
        typer.echo(to_yaml(config), nl=False)


def shipped() -> list[str]:
    """Return what `sae config cp` copies."""
    return [f"{place}/{choice}" for place in PLACES for choice in choices(place)]


@config_app.command()
def ls(
    group: Annotated[
        str | None, typer.Argument(help="One group, or sweeps; default: all.", autocompletion=lambda: PLACES)
    ] = None,
    as_json: Json = False,
    config_dir: ConfigDir = None,
) -> None:
    """List groups and their choices with a line about each."""
    if group is not None and group not in PLACES:
        raise UserError(f"{group}: no such group.{suggest(group, PLACES)} There are: {', '.join(PLACES)}")
    files = {name: choices(name, config_dir) for name in ([group] if group else PLACES)}
    if as_json:
        emit({name: {choice: header(path) for choice, path in found.items()} for name, found in files.items()})
        return
    rows = [[f"{name}/{choice}", header(path)] for name, found in files.items() for choice, path in found.items()]
    table(["choice", "what it is"], rows)


@config_app.command(name="keys")
def list_keys(
    start: Annotated[
        str,
        typer.Argument(
            metavar="[PREFIX]", help="Only keys that begin so, such as train.", autocompletion=lambda: list(by_name())
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """Print every key with its type, default and meaning."""
    found = [key for key in keys() if key.name.startswith(start)]
    if not found:
        raise UserError(f"{start}: no key begins so.{suggest(start, [key.name for key in keys()])}")
    if as_json:
        emit([asdict(key) for key in found])
    elif sys.stdout.isatty():
        table(["key", "type", "default", "meaning"], [[k.name, k.type, k.shown_default, k.text] for k in found])
    else:
        for key in found:
            typer.echo(f"{key.name} ({key.type}, default {key.shown_default}): {key.text}")


@config_app.command()
def cp(
    name: Annotated[
        str,
        typer.Argument(
            metavar="GROUP/NAME", help="A shipped file, as `sae config ls` shows it.", autocompletion=shipped
        ),
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Your configuration folder.")],
    force: Annotated[bool, typer.Option("--force", help="Replace your file of that name.")] = False,
) -> None:
    """Copy a shipped YAML file into your own configuration folder, to edit it there."""
    source = find(name)
    group = name.rpartition("/")[0]
    target = folder / group / source.name
    if target.exists() and not force:
        raise UserError(f"{target} exists; --force replaces it")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    follow = f"sae sweep {target}" if group == "sweeps" else f"sae train --config-dir {folder}"
    choice = f" {group}={source.stem}" if group in GROUPS else ""
    facts([("copied", target), ("next", follow + choice)])


def doctor(
    paths: Annotated[
        list[Path], typer.Argument(metavar="[PATH]...", default_factory=list, help="Runs, folders of runs, caches.")
    ],
    as_json: Json = False,
) -> None:
    """Check this machine, or what is damaged in runs and caches, with fixes."""
    if paths:
        from sae_cli.runs.recovery import examine_path

        findings = [finding for path in paths for finding in examine_path(path)]
    else:
        from sae_cli.doctor import examine

        findings = examine()
    if as_json:
        emit({finding.name: asdict(finding) for finding in findings})
    else:
        for finding in findings:
            fix = f"  -> {finding.fix}" if finding.fix else ""
            typer.echo(f"{finding.state:<5} {finding.name:<14} {finding.detail}{fix}")
    if any(finding.state == "fail" for finding in findings):
        raise typer.Exit(1)
