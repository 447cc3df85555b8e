"""The shares of a cache as jobs of Hydra's launchers: each is written on its own, the last one finishes the cache."""

import logging
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_cli.config.convert import from_dict, to_dict
from sae_cli.config.schema import Config
from sae_cli.errors import UserError
from sae_cli.files import read_json, write_json
from sae_cli.runs.launch import multirun, result_path
from sae_cli.runs.sweep import LOST, check_launcher

logger = logging.getLogger(__name__)


def launch_shares(config: Config, launcher: str, options: Sequence[str]) -> dict[int, str]:
    """Write what is missing of the caches, one job per share; return the errors of those that failed.

    Raises UserError if the launcher is wrong, KeyboardInterrupt if it was interrupted.
    """
    from sae_cli.sources.registry import ensure_cache, shares_left
    from sae_cli.store.remote import is_remote, place

    check_launcher(launcher, options)
    if is_remote(place(config.cache.dir)):
        ensure_cache(config)  # what the workers have written is uploaded; anything else is refused
        return {}
    folder, call = Path(config.cache.dir).absolute() / ".jobs", secrets.token_hex(3)
    # Jobs of an earlier command may still be queued: files are named anew each time.
    files = {share: folder / f"{call}-{share}.json" for share in shares_left(config)}
    for share, path in files.items():
        write_json(path, {"config": to_dict(config), "share": share})
    if files:
        multirun(list(files.values()), launcher, options)
    results = {share: result_path(path) for share, path in files.items()}
    outcomes = {share: read_json(path) if path.exists() else LOST for share, path in results.items()}
    return {share: outcome["error"] for share, outcome in outcomes.items() if outcome["state"] == "failed"}


def run_share(path: Path, job: dict[str, Any]) -> None:
    """Write the share of a job file and leave the outcome beside it; no error passes, so that no job stops another."""
    from sae_cli.sources.registry import ensure_cache

    outcome = {"state": "done", "error": ""}
    try:
        ensure_cache(from_dict(job["config"]), job["share"])
    except Exception as problem:
        error = str(problem) if isinstance(problem, UserError) else f"{type(problem).__name__}: {problem}"
        logger.error("part %s failed: %s", job["share"], error, exc_info=not isinstance(problem, UserError))
        outcome = {"state": "failed", "error": error}
    write_json(result_path(path), outcome)
