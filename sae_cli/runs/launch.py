"""The Hydra application whose jobs train: a stack written by `sae sweep`, or one point composed by Hydra itself.

    python -m sae_cli.runs.launch -m model=tiny sae=relu,prolu_ste sparsity.weight=1,2 hydra/launcher=joblib

is a plain Hydra application, one point per job. `sae sweep` hands its stacks to the same application as
`+stack=FILE`; such a job writes FILE.result, also when it fails, and returns normally, so that no job stops another.
What a scheduler sends before it ends a job is Ctrl-C to a stack: it saves a checkpoint, and goes back into SLURM's
queue unless it was cancelled. On Ray, stacks are tasks, set up by the options of Hydra's launcher for Ray: that one
drops its tasks when it is interrupted, and all of them when one worker dies.
"""

import _thread
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf

from sae_cli.config.check import check
from sae_cli.config.compose import VERSION_BASE
from sae_cli.config.convert import from_dict, one_line
from sae_cli.errors import UserError, of_system
from sae_cli.files import read_json, write_json
from sae_cli.runs.tracking import wait_for_uploads

logger = logging.getLogger(__name__)

OPEN = r"^\+*(hydra\.launcher\.(ray\.init|ray\.remote|additional_parameters)\.)"
"""Launcher options without a fixed set of keys, to which Hydra adds new ones by ++ only."""


def result_path(stack: Path) -> Path:
    """Return the file in which the job of a stack file leaves its outcomes."""
    return stack.with_suffix(".result")


def multirun(files: list[Path], launcher: str, options: Sequence[str]) -> None:
    """Run each stack file as one job of a Hydra multirun in this process.

    Raises UserError if Hydra refuses to start, KeyboardInterrupt if it was interrupted.
    """
    settings = [f"hydra/launcher={launcher}", *(re.sub(OPEN, r"++\1", option) for option in options)]
    if launcher == "ray":
        _on_ray(files, settings)
        return
    words = [
        "--multirun",
        "+stack=" + ",".join(map(_quote, files)),
        f"hydra.sweep.dir={_quote(files[0].parent)}",
        "hydra.sweep.subdir=.",
        "hydra.output_subdir=null",
        "hydra/job_logging=none",
        "hydra/hydra_logging=none",
        *settings,
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


def _on_ray(files: list[Path], settings: list[str]) -> None:
    """Run each stack file as a task on a new Ray, or on that of `hydra.launcher.ray.init.address`; see `multirun`.

    A task whose worker died is run again by Ray, from its last checkpoint. Ctrl-C waits until all have saved theirs.
    """
    import ray

    handler = signal.getsignal(signal.SIGTERM)
    try:
        with hydra.initialize_config_module("sae_cli.conf", version_base=VERSION_BASE):
            composed = hydra.compose(overrides=settings, return_hydra_config=True)
        options: Any = OmegaConf.to_container(composed.hydra.launcher.ray, resolve=True)
        task = ray.remote(_ray_task).options(**options["remote"])
        ray.init(**options["init"])
    except Exception as problem:
        raise UserError(f"launcher ray: {one_line(problem)}") from problem
    signal.signal(signal.SIGTERM, handler)  # Ray's own aborts the process
    tasks = [task.remote(path, Path.cwd()) for path in files]
    try:
        ray.wait(tasks, num_returns=len(tasks))
    except KeyboardInterrupt:
        for one in tasks:
            ray.cancel(one)
        ray.wait(tasks, num_returns=len(tasks))
        raise
    finally:
        ray.shutdown()


def _ray_task(path: Path, folder: Path) -> None:
    os.chdir(folder)
    _log_to_stderr()
    run_stack(path)
    wait_for_uploads()  # Ray kills its workers


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
    try:
        # A cluster that puts the job back into its queue runs it again, and must not start over again.
        write_json(path, stack | {"fresh": False})
        with _signals_are_interrupts():
            outcomes = execute(
                [from_dict(point["config"]) for point in stack["points"]],
                fresh=stack["fresh"],
                evaluate=stack["evaluate"],
                overrides=[point["overrides"] for point in stack["points"]],
            )
    except KeyboardInterrupt:
        _leave(path, {"": {"state": "interrupted", "error": ""}})
        return True
    except Exception as problem:
        told = str(problem) if isinstance(problem, UserError) else of_system(problem)
        error = told or f"{type(problem).__name__}: {problem}"
        logger.error("stack %s failed: %s", path.stem, error, exc_info=not told)
        _leave(path, {"": {"state": "failed", "error": error}})
        return False
    for outcome in outcomes:
        if outcome.state == "failed":
            logger.error("point %s failed: %s", outcome.run_id, outcome.error)
    _leave(path, {o.run_id: {"state": o.state, "error": o.error} for o in outcomes})
    return any(outcome.state == "interrupted" for outcome in outcomes)


def _leave(path: Path, outcomes: dict[str, Any]) -> None:
    """Write the outcomes of a stack file; where that cannot be, say why: the next call looks into the runs."""
    try:
        write_json(result_path(path), outcomes)
    except OSError as problem:
        logger.error("%s", of_system(problem) or problem)


@contextmanager
def _signals_are_interrupts() -> Iterator[None]:
    """Turn what schedulers send before they end a job into Ctrl-C, after which training saves a checkpoint."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            before[number] = signal.signal(number, lambda *_: _thread.interrupt_main())
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _requeue(job: str) -> None:
    """Leave this interrupted SLURM job without a result for those who wait for it, if it will run again.

    It will if SLURM put it back into its queue, or if nobody ended it but a signal came (preemption with a grace
    time, the end of its time): then submitit's handler of that signal puts it back. Returns if the job was cancelled
    or is not to be queued again (`max_num_timeout`).
    """
    shown = subprocess.run(["scontrol", "show", "job", "--oneliner", job], capture_output=True, text=True).stdout
    facts = dict(re.findall(r"(\w+)=(\S+)", shown))
    if int(facts.get("Restarts", 0)) > int(os.environ.get("SLURM_RESTART_COUNT", 0)):
        raise SystemExit("SLURM runs this job again")
    if facts.get("JobState") == "RUNNING":
        try:
            (number,) = (n for n in (signal.SIGUSR1, signal.SIGUSR2) if callable(signal.getsignal(n)))
            signal.raise_signal(number)
        except Exception as problem:  # submitit's, or scontrol's
            logger.warning("%s", one_line(problem))


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
    _log_to_stderr()
    stack = composed.get("stack")
    if stack is not None:
        facts = HydraConfig.get()
        launcher = facts.runtime.choices["hydra/launcher"]
        interrupted = run_stack(Path(stack))
        if interrupted and launcher == "basic":
            raise KeyboardInterrupt  # it runs one job after the other in this process: none may start now
        if interrupted and launcher == "submitit_slurm":
            _requeue(facts.job.id)
        return
    overrides = list(HydraConfig.get().overrides.task)
    try:
        run_point(cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True)), overrides)
    except Exception as problem:
        # Hydra's basic launcher runs all jobs and shows the first error only, at the end.
        logger.error("%s: %s", " ".join(overrides), problem)
        raise


def _log_to_stderr() -> None:
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)


if __name__ == "__main__":
    # Imported by its name, so that a job pickled for another process finds `main` there.
    from sae_cli.runs import launch

    launch.main()
