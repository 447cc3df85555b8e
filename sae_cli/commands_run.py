"""Commands that compute: cache, train, sweep."""

import shlex
import shutil
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sae_cli.config.complete import complete
from sae_cli.console import count, emit, facts, size, table
from sae_cli.errors import UserError

if TYPE_CHECKING:
    from sae_cli.config.schema import Config

WORDS: dict[str, Any] = {"default_factory": list, "show_default": False, "autocompletion": complete}
Overrides = Annotated[list[str], typer.Argument(help="Hydra overrides: GROUP=CHOICE or KEY=VALUE.", **WORDS)]
Grid = Annotated[
    list[str], typer.Argument(metavar="[FILE] [OVERRIDES]...", help="A grid file, values with commas.", **WORDS)
]
Launcher = Annotated[
    str,
    typer.Option(help="basic | joblib | ray | submitit_local | submitit_slurm; hydra.launcher.KEY=VALUE sets it up."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done and do nothing.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over instead of resuming or skipping.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
ConfigDir = Annotated[
    str | None, typer.Option("--config-dir", metavar="DIR", help="Your own groups; searched before the shipped ones.")
]


def cache(
    overrides: Overrides,
    part: Annotated[
        int | None, typer.Option("--part", metavar="K", help="Write part K only, of cache.parts, counted from 0.")
    ] = None,
    launcher: Launcher = "",
    dry_run: DryRun = False,
    as_json: Json = False,
    config_dir: ConfigDir = None,
) -> None:
    """Store activations on disk, or check them.

    With cache.parts=N, workers write a cache together: `--launcher` starts one job per part, `--part K` is one of them.
    The same command writes what is missing. `sae cache verify DIR...` reads stored caches and compares every hash.
    """
    if overrides[:1] == ["verify"]:
        _verify(overrides[1:], as_json)
        return
    from sae_cli.config.compose import compose
    from sae_cli.sources.registry import cache_folders, ensure_cache, refuse_synthetic, shares_left

    options = [word for word in overrides if word.startswith("hydra.")]
    words = [word for word in overrides if word not in options]
    config = compose(words, config_dir)
    refuse_synthetic(config)
    if part is not None and (launcher or not 0 <= part < config.cache.parts):
        raise UserError(f"--part {part}: give one of 0 to {config.cache.parts - 1} (cache.parts), and no --launcher")
    if dry_run:
        plan = _cache_plan(config)
        emit(plan) if as_json else _print_cache_plan(plan)
        return
    failed: dict[int, str] = {}
    if launcher:
        from sae_cli.runs.shares import launch_shares

        failed = launch_shares(config, launcher, options)
    else:
        ensure_cache(config, part)
    folders, left = list(cache_folders(config).values()), shares_left(config)
    if as_json:
        emit({"folders": folders, "missing_parts": left, "failed": failed})
    else:
        following = ["sae", "train", *words, *(["--config-dir", config_dir] if config_dir else [])]
        missing = f"{', '.join(map(str, left))} of {config.cache.parts} to be written yet"
        lines = [("parts", missing)] if left else [("next", shlex.join(following))]
        lines = [("failed", f"part {index}: {error}") for index, error in failed.items()] + lines
        facts([*(("cache", folder) for folder in folders), *lines])
    _exit(bool(failed), False)


def train(
    overrides: Overrides,
    fresh: Fresh = False,
    dry_run: DryRun = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Also write profile.txt and profile.json: where a step's time goes.")
    ] = False,
    as_json: Json = False,
    config_dir: ConfigDir = None,
) -> None:
    """Train one point.

    Resumes an interrupted run by itself, and returns at once if the run is done.
    """
    from sae_cli.config.compose import compose
    from sae_cli.training.execute import execute, plan_point

    config = compose(overrides, config_dir)
    plan = plan_point(config)
    if dry_run:
        _show_point(config, plan, as_json)
        return
    if not as_json:
        facts([("run", plan.folder)])
    (outcome,) = execute([config], fresh=fresh, overrides=[overrides], profile=profile)
    if as_json:
        emit(asdict(outcome))
    elif outcome.state == "failed":
        facts([("state", "failed"), ("error", outcome.error), ("run", outcome.folder)])
    else:
        following = _same_command() if outcome.state == "interrupted" else f"sae eval {outcome.folder}"
        if outcome.state != "skipped" and profile and (text := outcome.folder / "profile.txt").exists():
            typer.echo(text.read_text())
        state = "done before; --fresh trains it again" if outcome.state == "skipped" else outcome.state
        facts([("state", state), ("next", following), ("run", outcome.folder)])
    _exit(outcome.state == "failed", outcome.state == "interrupted")


def sweep(
    overrides: Grid,
    launcher: Launcher = "basic",
    dry_run: DryRun = False,
    fresh: Fresh = False,
    evaluate: Annotated[bool, typer.Option("--eval/--no-eval", help="Evaluate each point after training.")] = True,
    as_json: Json = False,
    config_dir: ConfigDir = None,
) -> None:
    """Train the points of a grid together.

    Points of equal shape share one read of the data. Points that are done are skipped, failed ones are tried again.
    """
    from sae_cli.runs.sweep import run_sweep

    options = [word for word in overrides if word.lstrip("+").startswith("hydra.")]
    result = run_sweep(
        [word for word in overrides if word not in options],
        launcher=launcher,
        launcher_options=options,
        dry_run=dry_run,
        fresh=fresh,
        evaluate=evaluate,
        config_dir=config_dir,
    )
    if as_json:
        failed = [row.run_id for row in result.failed]
        rows = [asdict(row) for row in result.rows]
        emit({"folder": result.folder, "failed": failed, "interrupted": result.interrupted, "rows": rows})
    else:
        _print_sweep(result, dry_run)
    if not dry_run:
        _exit(bool(result.failed), result.interrupted)


def _print_sweep(result: Any, dry_run: bool) -> None:
    shared = set.intersection(*(set(row.overrides) for row in result.rows)) if len(result.rows) > 1 else set()
    rows = []
    for row in result.rows:
        stack = "-" if row.stack is None else row.stack
        point = " ".join(word for word in row.overrides if word not in shared)
        rows.append([row.run_id, row.state, stack, count(row.parameters), size(row.memory_bytes), point or "-"])
    table(["run", "state", "stack", "parameters", "memory", "point"], rows)
    states = ", ".join(f"{number} {state}" for state, number in Counter(row.state for row in result.rows).items())
    stacks = len({row.stack for row in result.rows} - {None})
    lines = [("points", f"{len(result.rows)} ({states}), {stacks} {'stack' if stacks == 1 else 'stacks'}")]
    lines += [("failed", f"{row.run_id} ({' '.join(row.overrides)}): {row.error}") for row in result.failed]
    again = dry_run or result.failed or result.interrupted
    facts([*lines, ("next", _same_command() if again else f"sae report {result.folder}"), ("runs", result.folder)])


def _show_point(config: "Config", plan: Any, as_json: bool) -> None:
    from sae_cli.config.convert import to_dict, to_yaml

    caches = _cache_plan(config)
    if as_json:
        emit({"config": to_dict(config), **asdict(plan), **caches})
        return
    typer.echo(to_yaml(config))
    memory = f"about {size(plan.memory_bytes)}"
    lines = [("run", plan.folder), ("state", plan.state), ("parameters", count(plan.parameters)), ("memory", memory)]
    facts(lines)
    _print_cache_plan(caches)


def _cache_plan(config: "Config") -> dict[str, Any]:
    """Return the caches of a configuration and the free disk; synthetic sources have none."""
    from sae_cli.sources.registry import SYNTHETIC, plan_cache

    plan = [] if config.source.kind in SYNTHETIC else plan_cache(config)
    folder = Path(config.cache.staging if "://" in config.cache.dir else config.cache.dir).absolute()
    disk = next(part for part in (folder, *folder.parents) if part.exists())
    needed = sum(part["bytes"] for part in plan if part["state"] != "done")
    return {"caches": plan, "needed_bytes": needed, "free_disk_bytes": shutil.disk_usage(disk).free}


def _print_cache_plan(plan: dict[str, Any]) -> None:
    columns = ["folder", "hook", "rows", "bytes", "state"]
    if plan["caches"]:
        table(columns, [[part[column] for column in columns] for part in plan["caches"]])
    facts([("needed", size(plan["needed_bytes"])), ("free disk", size(plan["free_disk_bytes"]))])


def _verify(words: list[str], as_json: bool) -> None:
    from sae_cli.store.find import verify
    from sae_cli.store.remote import place

    if not words:
        raise UserError("sae cache verify: give one or more cache folders")
    folders = {word: sorted((file.parent for file in place(word).glob("**/manifest.json")), key=str) for word in words}
    for word, below in folders.items():
        if not below:
            raise UserError(f"{word}: no finished cache there (no manifest.json in it or below it)")
    found = {str(folder): verify(folder) for below in folders.values() for folder in below}
    if as_json:
        emit(found)
    else:
        for name, problems in found.items():
            facts([("fail" if problems else "ok", name), *(("", problem) for problem in problems)])
    _exit(any(found.values()), False)


def _same_command() -> str:
    return shlex.join(["sae", *(word for word in sys.argv[1:] if word not in ("--dry-run", "--fresh"))])


def _exit(failed: bool, interrupted: bool) -> None:
    if failed or interrupted:
        raise typer.Exit(130 if interrupted else 1)
