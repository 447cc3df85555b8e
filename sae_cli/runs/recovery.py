"""What is damaged in runs and caches, and how it is recovered: `sae doctor PATH`."""

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sae_cli.dictionary.artifact import load_sae
from sae_cli.doctor import Finding
from sae_cli.errors import UserError
from sae_cli.runs.directory import RunDirectory, find_runs
from sae_cli.store.find import verify
from sae_cli.store.format import MANIFEST, PROGRESS
from sae_cli.training.checkpoint import checkpoint_file, is_sound, saved_steps, shards_folder

MADE_AGAIN = {"eval.json": "run `sae eval {run}`", "compare.json": "run `sae compare` again"}
"""Records that later commands write, and how they are written again."""


def examine_path(path: Path) -> list[Finding]:
    """Return the findings on the caches and runs at a path and below it; UserError if there is neither."""
    caches = {file.parent for name in (MANIFEST, PROGRESS.format("*")) for file in path.glob(f"**/{name}")}
    findings = [finding for folder in sorted(caches) for finding in examine_cache(folder)]
    if caches and not any(path.glob("**/config.yaml")):
        return findings
    return findings + [finding for run in find_runs(path) for finding in examine_run(run)]


def examine_cache(folder: Path) -> list[Finding]:
    """Return a finding per damaged file of a cache, or one that says it is sound."""
    if not (folder / MANIFEST).exists():
        return [Finding(str(folder), "warn", "not finished", "run the same command again; it goes on where it stopped")]
    fix = f"delete {folder} and run `sae cache` again; it is a copy of what the model gives"
    return [Finding(str(folder), "fail", line, fix) for line in verify(folder)] or [Finding(str(folder), "ok", "sound")]


def examine_run(run: RunDirectory) -> list[Finding]:
    """Return a finding per damaged file of a run, or one that says it is sound."""
    return [*_damages(run)] or [Finding(str(run.path), "ok", "sound")]


def _damages(run: RunDirectory) -> Iterator[Finding]:
    steps = [step for step in saved_steps(run.checkpoint) if is_sound(run.checkpoint, step)]
    again = _command(run)
    problems = {name: problem for name, read in _readers(run).items() if (problem := _problem(read))}
    if "status.json" in problems:  # it holds the hashes of the others: they are examined once it is back
        problems = {"status.json": problems["status.json"]}
    status = {} if "status.json" in problems else run.status
    if status.get("state") == "done" and (problem := _problem(lambda: load_sae(run.path))):
        problems["sae.safetensors"] = problem
    whole = steps and (not status or status["state"] != "done" or steps[-1] == status["step"])
    resume = f"run `{again}`, which goes on from step {steps[-1]}" if whole else f"run `{again} --fresh`"
    for name, problem in problems.items():
        doomed = " and ".join(dict.fromkeys([str(run.path / name), str(run.path / "status.json")]))
        fix = MADE_AGAIN.get(name, f"delete {doomed}, then {resume}").format(run=run.path)
        if name == "metrics.jsonl":
            fix = f"the SAE is sound; for its curves run `{again} --fresh`"
        yield Finding(str(run.path / name), "fail", problem, fix)
    sound = {place(run.checkpoint, step) for step in steps for place in (checkpoint_file, shards_folder)}
    for file in sorted(set(run.checkpoint.glob("step-*")) - sound):
        yield Finding(
            str(file), "fail", "damaged", f"delete it{'' if status.get('state') == 'done' else f'; {resume}'}"
        )


def _readers(run: RunDirectory) -> dict[str, Callable[[], Any]]:
    """Return what reads each record of a run that is there."""
    records: dict[str, Callable[[], Any]] = {
        "status.json": lambda: run.status,
        "config.yaml": lambda: run.config,
        "overrides.txt": lambda: run.check("overrides.txt"),
        "stamp.json": lambda: run.stamp,
        "metrics.jsonl": run.metrics,
        "true_features.safetensors": lambda: run.check("true_features.safetensors"),
        "eval.json": lambda: run.evaluation,
        "compare.json": lambda: run.record("compare.json"),
    }
    return {name: read for name, read in records.items() if (run.path / name).exists()}


def _problem(read: Callable[[], Any]) -> str:
    try:
        read()
    except (UserError, ValueError) as problem:
        return str(problem)
    return ""


def _command(run: RunDirectory) -> str:
    """Return the command that trained a run, as its overrides tell it."""
    return shlex.join(["sae", "train", *(run.overrides or ["..."])])
