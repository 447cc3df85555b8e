"""A sweep: points expanded, all checked before any starts, grouped into stacks, handed to Hydra's launchers."""

import logging
import secrets
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_cli.config.compose import compose, expand
from sae_cli.config.convert import to_dict
from sae_cli.config.schema import Config
from sae_cli.doctor import has_extra
from sae_cli.errors import UserError, suggest
from sae_cli.files import read_json, short_hash, write_json
from sae_cli.runs.grid import find_grid_file, join_grids, key_of, read_grid_file
from sae_cli.runs.launch import multirun, result_path

logger = logging.getLogger(__name__)

LAUNCHERS = {"basic": "", "joblib": "joblib", "ray": "ray", "submitit_local": "slurm", "submitit_slurm": "slurm"}
"""Hydra launchers and the extra that brings each."""

MAX_MEMBERS = 32
"""Members of one stack; larger groups are cut into several stacks."""

LOST = {"state": "failed", "error": "no result: the job was killed, or still runs on its cluster"}


@dataclass
class Row:
    """One point of a sweep, as the table shows it."""

    overrides: list[str]
    run_id: str
    folder: Path
    state: str
    """new | done | failed | interrupted: before the sweep, and after it where it ran."""
    stack: int | None
    """Number of the stack that trains the point, from 0; None: nothing to do."""
    parameters: int | None
    memory_bytes: int | None
    resume_step: int
    error: str = ""


@dataclass
class SweepResult:
    """What a sweep did, or would do (`dry_run`)."""

    rows: list[Row]
    folder: Path
    failed: list[Row] = field(default_factory=list)
    interrupted: bool = False


Stack = list[tuple[Row, Config]]
"""The points of one job."""


def read_points(words: list[str], config_dir: str | None = None) -> list[list[str]]:
    """Return each point's overrides for `[FILE.yaml] key=value ...`; values with commas span a grid.

    A key given on the line replaces the file's. A sweep from a file is named after it unless `name=` is given.
    """
    if not words:
        raise UserError("sweep: give a grid file or overrides with commas, such as sae=relu,prolu_ste")
    if "=" in words[0] or words[0].startswith("~"):
        return expand(words, config_dir)
    path = find_grid_file(words[0])
    points = join_grids(read_grid_file(path), expand(words[1:], config_dir))
    return [p if any(key_of(word) == "name" for word in p) else [f"name={path.stem}", *p] for p in points]


def plan_sweep(
    points: list[list[str]],
    config_dir: str | None = None,
    fresh: bool = False,
    evaluate: bool = True,
    max_members: int = MAX_MEMBERS,
) -> tuple[list[Row], list[Stack]]:
    """Check every point and group those that are not done, or not evaluated, into stacks.

    Raises UserError with the problems of all points. Points with equal run ids count once. Members of a stack share
    their stack key and the step from which they go on.
    """
    from sae_cli.training.execute import plan_point

    problems: dict[str, list[int]] = {}
    rows: dict[str, Row] = {}
    groups: dict[tuple[str, int], Stack] = {}
    for number, overrides in enumerate(points, start=1):
        try:
            config = compose(overrides, config_dir)
            plan = plan_point(config)
        except UserError as problem:
            problems.setdefault(str(problem), []).append(number)
            continue
        if plan.run_id in rows:
            if (other := rows[plan.run_id].folder) != plan.folder:
                raise UserError(f"sweep: {other} and {plan.folder} are one run: give one `name` and one `runs_dir`")
            continue
        step = 0 if fresh else plan.resume_step
        row = Row(overrides, plan.run_id, plan.folder, plan.state, None, plan.parameters, plan.memory_bytes, step)
        rows[plan.run_id] = row
        done = plan.state == "done" and (not evaluate or (plan.folder / "eval.json").exists())
        if fresh or not done:
            groups.setdefault((plan.stack_key, step), []).append((row, config))
    if problems:
        lines = []
        for text, (first, *others) in problems.items():
            more = f" and {len(others)} more" if others else ""
            lines.append(f"point {first} ({' '.join(points[first - 1])}){more}: {text}")
        raise UserError("; ".join(lines))
    stacks = [
        group[start : start + max_members] for group in groups.values() for start in range(0, len(group), max_members)
    ]
    for index, stack in enumerate(stacks):
        for row, _ in stack:
            row.stack = index
    return list(rows.values()), stacks


def run_sweep(
    words: list[str],
    *,
    launcher: str = "basic",
    launcher_options: Sequence[str] = (),
    dry_run: bool = False,
    fresh: bool = False,
    evaluate: bool = True,
    config_dir: str | None = None,
) -> SweepResult:
    """Train, and evaluate, every point of a grid that is not done yet.

    `launcher_options` are Hydra overrides such as `hydra.launcher.timeout_min=60`. A point that fails does not stop
    the others; it is listed in the result, and the next call trains it again. Raises UserError before any work if a
    point, the file or the launcher is wrong.
    """
    check_launcher(launcher, launcher_options)
    rows, stacks = plan_sweep(read_points(words, config_dir), config_dir, fresh, evaluate)
    result = SweepResult(rows, rows[0].folder.parent)
    if dry_run or not stacks:
        return result
    files = [_write_stack(result.folder.absolute() / ".stacks", stack, fresh, evaluate) for stack in stacks]
    # SIGTERM is Ctrl-C while no stack is training; a training stack has its own handler.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        multirun(files, launcher, launcher_options)
    except KeyboardInterrupt:
        result.interrupted = True
        if launcher.startswith("submitit"):
            logger.warning("jobs that were submitted go on; `scancel` stops them, the same command shows their state")
    finally:
        signal.signal(signal.SIGTERM, before)
    _read_results(files, stacks, result)
    return result


def check_launcher(launcher: str, options: Sequence[str]) -> None:
    """Raise UserError if there is no such launcher, if it is not installed, or if an option is not one of its."""
    if launcher not in LAUNCHERS:
        raise UserError(f"--launcher {launcher}: not one of {', '.join(LAUNCHERS)}.{suggest(launcher, LAUNCHERS)}")
    extra = LAUNCHERS[launcher]
    if extra and not has_extra(extra):
        raise UserError(f"--launcher {launcher} needs a plugin: pip install 'sae-cli[{extra}]'")
    for option in options:
        if not key_of(option).startswith("hydra.launcher.") or "=" not in option:
            raise UserError(f"launcher option {option}: write it as hydra.launcher.KEY=VALUE")


def _write_stack(folder: Path, stack: Stack, fresh: bool, evaluate: bool) -> Path:
    points = [{"config": to_dict(config), "overrides": row.overrides} for row, config in stack]
    # Named anew each time: jobs of an earlier command may still be queued.
    path = folder / f"{short_hash([row.run_id for row, _ in stack])}-{secrets.token_hex(3)}.json"
    write_json(path, {"fresh": fresh, "evaluate": evaluate, "points": points})
    return path


def _read_results(files: list[Path], stacks: list[Stack], result: SweepResult) -> None:
    """Put the outcomes that jobs left beside their stack files into the rows."""
    for path, stack in zip(files, stacks, strict=True):
        outcomes: dict[str, Any] = read_json(result_path(path)) if result_path(path).exists() else {}
        for row, _ in stack:
            outcome = outcomes.get(row.run_id) or outcomes.get("") or LOST
            if outcome is LOST and result.interrupted:
                continue
            row.state = "done" if outcome["state"] == "skipped" else outcome["state"]
            row.error = outcome["error"]
            if row.state == "failed":
                result.failed.append(row)
            result.interrupted |= row.state == "interrupted"
