"""The Hydra application whose jobs train: a stack written by `sae sweep`, or one point composed by Hydra itself.

    python -m sae_cli.runs.launch -m model=tiny sae=relu,prolu_ste sparsity.weight=1,2 hydra/launcher=joblib

is a plain Hydra application, one point per job. `sae sweep` hands its stacks to the same application as
`+stack=FILE`; such a job writes FILE.result, also when it fails, and returns normally, so that no job stops another.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf

from sae_cli.config.check import check
from sae_cli.config.compose import VERSION_BASE
from sae_cli.config.convert import from_dict
from sae_cli.errors import UserError
from sae_cli.files import read_json, write_json

logger = logging.getLogger(__name__)


def result_path(stack: Path) -> Path:
    """Return the file in which the job of a stack file leaves its outcomes."""
    return stack.with_suffix(".result")


def multirun(files: list[Path], launcher: str, options: Sequence[str]) -> None:
    """Run each stack file as one job of a Hydra multirun in this process.

    Raises UserError if Hydra refuses to start, KeyboardInterrupt if it was interrupted.
    """
    words = [
        "--multirun",
        "+stack=" + ",".join(map(_quote, files)),
        f"hydra/launcher={launcher}",
        f"hydra.sweep.dir={_quote(files[0].parent)}",
        "hydra.sweep.subdir=.",
        "hydra.output_subdir=null",
        "hydra/job_logging=none",
        "hydra/hydra_logging=none",
        *options,
    ]
    GlobalHydra.instance().clear()
    arguments = sys.argv
    sys.argv = [arguments[0], *words]
    try:
        main()
    except SystemExit as end:
        # Hydra has printed why: an option that it does not know, or a job that its launcher lost.
        if end.code and not any(result_path(path).exists() for path in files):
            raise UserError(f"launcher {launcher}: Hydra ran no stack and says why above; check its options") from end
        logger.error("launcher %s stopped before all stacks were done", launcher)
    finally:
        sys.argv = arguments


def _quote(path: Path) -> str:
    return QuotedString(str(path), Quote.single).with_quotes()


def run_stack(path: Path) -> bool:
    """Train the points of a stack file and write their outcomes: {run id: {"state", "error"}}; or write a share.

    An error that hits the whole stack is written under the empty run id. Returns whether the stack was interrupted.
    """
    from sae_cli.training.execute import execute

    stack = read_json(path)
    if "share" in stack:
        from sae_cli.runs.shares import run_share

        run_share(path, stack)
        return False
    # A cluster that puts the job back into its queue runs it again, and must not start over again.
    write_json(path, stack | {"fresh": False})
    try:
        outcomes = execute(
            [from_dict(point["config"]) for point in stack["points"]],
            fresh=stack["fresh"],
            evaluate=stack["evaluate"],
            overrides=[point["overrides"] for point in stack["points"]],
        )
    except Exception as problem:
        logger.error("stack %s failed: %s", path.stem, problem, exc_info=not isinstance(problem, UserError))
        error = str(problem) if isinstance(problem, UserError) else f"{type(problem).__name__}: {problem}"
        write_json(result_path(path), {"": {"state": "failed", "error": error}})
        return False
    for outcome in outcomes:
        if outcome.state == "failed":
            logger.error("point %s failed: %s", outcome.run_id, outcome.error)
    write_json(result_path(path), {o.run_id: {"state": o.state, "error": o.error} for o in outcomes})
    return any(outcome.state == "interrupted" for outcome in outcomes)


def run_point(values: dict[str, Any], overrides: list[str]) -> None:
    """Train and evaluate one point that Hydra composed. Raises UserError, also when the point fails."""
    from sae_cli.training.execute import execute

    config = from_dict(values)
    check(config)
    (outcome,) = execute([config], evaluate=True, overrides=[overrides])
    if outcome.state == "interrupted":
        raise KeyboardInterrupt
    if outcome.state == "failed":
        raise UserError(f"point {outcome.run_id} failed: {outcome.error}")


@hydra.main(version_base=VERSION_BASE, config_path="pkg://sae_cli.conf", config_name="config")
def main(composed: DictConfig) -> None:
    """Run one job of Hydra's: a stack file (`+stack=FILE`) or a point."""
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    stack = composed.get("stack")
    if stack is not None:
        if run_stack(Path(stack)) and HydraConfig.get().runtime.choices["hydra/launcher"] == "basic":
            raise KeyboardInterrupt  # it runs one job after the other in this process: none may start now
        return
    overrides = list(HydraConfig.get().overrides.task)
    try:
        run_point(cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True)), overrides)
    except Exception as problem:
        # Hydra's basic launcher runs all jobs and shows the first error only, at the end.
        logger.error("%s: %s", " ".join(overrides), problem)
        raise


if __name__ == "__main__":
    # Imported by its name, so that a job pickled for another process finds `main` there.
    from sae_cli.runs import launch

    launch.main()
