"""From points to finished run directories: plan, lock, resume or start, train, save, evaluate."""

import logging
import os
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from sae_cli.config.identity import run_id, stack_key
from sae_cli.config.schema import Config
from sae_cli.dictionary.artifact import save_sae, save_shares
from sae_cli.errors import UserError
from sae_cli.files import replace_atomically
from sae_cli.ranks import Ranks, joined
from sae_cli.runs.directory import RunDirectory
from sae_cli.runs.tracking import Tracker, open_tracker
from sae_cli.sources import ActivationSource
from sae_cli.sources.normalised import RowNormalised
from sae_cli.sources.registry import open_source, source_fingerprint, source_width
from sae_cli.training.allocator import keep_freed_memory
from sae_cli.training.checkpoint import common_step, drop, saved_steps
from sae_cli.training.memory import describe, training_memory
from sae_cli.training.profile import profiled
from sae_cli.training.progress import TrainingProgress
from sae_cli.training.schedules import total_steps
from sae_cli.training.trainer import Member, StopFlag, Trainer

log = logging.getLogger(__name__)


@dataclass
class PointPlan:
    """What executing a point would do."""

    run_id: str
    folder: Path
    stack_key: str
    state: str
    """new | done | failed | interrupted"""
    resume_step: int
    parameters: int | None
    """None if the width is not known before the activations are cached."""
    memory_bytes: int | None
    """Estimated memory of training the point alone, without the loader's."""


@dataclass
class Outcome:
    """How a point ended."""

    run_id: str
    folder: Path
    state: str
    """done | skipped | failed | interrupted"""
    error: str = ""


def plan_point(config: Config) -> PointPlan:
    """Return a point's identity, state and size without training or loading a language model."""
    fingerprint = source_fingerprint(config)
    identity = run_id(config, fingerprint)
    run = RunDirectory(Path(config.runs_dir) / config.name / identity)
    state = run.status["state"]
    steps = saved_steps(run.checkpoint)
    parameters = memory = None
    if width := source_width(config):
        latents = config.sae.latents
        parameters = 2 * width * latents + latents + width
        memory = training_memory(config, width)
    return PointPlan(
        identity,
        run.path,
        stack_key(config, fingerprint),
        "interrupted" if state == "running" else state,
        steps[-1] if steps else 0,
        parameters,
        memory,
    )


def execute(
    configs: list[Config],
    *,
    fresh: bool = False,
    evaluate: bool = False,
    overrides: list[list[str]] | None = None,
    profile: bool = False,
) -> list[Outcome]:
    """Train the points of one stack, resuming what was begun and skipping what is done.

    Returns one outcome per point, in order. A member that goes non-finite fails alone; any other exception fails the
    members that were training (their checkpoints stay), UserErrors are raised on. SIGTERM and SIGINT end the training
    after the current step with a checkpoint. Under torchrun every process calls it; the first one writes. With
    `profile` the first point's folder gets a profile of a few steps.
    """
    with joined(configs[0]) as (ranks, device):
        plans = ranks.from_first(lambda: [plan_point(config) for config in configs])
        if len({plan.stack_key for plan in plans}) > 1:
            raise ValueError("the points of one stack must share the stack key")
        words = overrides or [[] for _ in configs]
        wanted = [index for index, plan in enumerate(plans) if fresh or plan.state != "done"]
        outcomes = {i: Outcome(plan.run_id, plan.folder, "skipped") for i, plan in enumerate(plans) if i not in wanted}
        if wanted:
            chosen = [(configs[i], plans[i], words[i]) for i in wanted]
            rest = evaluate and ranks.first, profile and ranks.first, ranks, device
            outcomes |= zip(wanted, _train(chosen, fresh, *rest), strict=True)
        if evaluate and ranks.first:
            _evaluate([outcome for outcome in outcomes.values() if outcome.state == "skipped"])
        return [outcomes[index] for index in range(len(configs))]


def _train(
    points: list[tuple[Config, PointPlan, list[str]]],
    fresh: bool,
    evaluate: bool,
    profile: bool,
    ranks: Ranks,
    device: str,
) -> list[Outcome]:
    config = points[0][0]
    if device == "cpu":
        keep_freed_memory()
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with a fixed one
    torch.backends.cuda.matmul.allow_tf32 = config.train.tf32
    torch.use_deterministic_algorithms(config.train.deterministic)
    steps = total_steps(config.train)
    with ExitStack() as stack:
        runs = [RunDirectory(plan.folder) for _, plan, _ in points]
        opened: list[ActivationSource] = []

        def begin() -> int:
            for run in sorted(runs, key=lambda run: run.path):  # of two stacks that share runs one gets all of its own
                stack.enter_context(run.lock())
                stack.enter_context(_log_file(run.path / "log.txt"))
            for run, (point, plan, words) in zip(runs, points, strict=True):
                if fresh:
                    run.clear()
                run.prepare(point, words, source_fingerprint(point), plan.run_id, device, ranks.size)
            start = common_step([run.checkpoint for run in runs])
            for run, (_, plan, _) in zip(runs, points, strict=True):
                run.set_status("running", start, steps, plan.run_id)
            return start

        stop = stack.enter_context(_stop_signals())
        start = ranks.from_first(begin)
        members: list[Member] = []
        try:
            ranks.from_first(lambda: opened.append(open_source(config, device)))  # which may have to write the cache
            source = opened[0] if opened else open_source(config, device)
            if config.sae.input_norm == "row":
                source = RowNormalised(source)
            for run, (point, plan, _) in zip(runs, points, strict=True):
                tracker = Tracker()
                if ranks.first:
                    tracker = open_tracker(point, plan.run_id, run.stamp["attempt"], run.path, start > 0)
                members.append(Member(point, run, plan.run_id, stack.enter_context(tracker)))
            trainer = Trainer(members, source, device, ranks)
            if start:
                log.info("resuming %d member(s) at step %d of %d", len(members), start, steps)
            profiling = profiled(runs[0].path, config.train, start, steps) if profile else nullcontext(lambda: None)
            with TrainingProgress(steps, start) as progress, profiling as after_step:
                stop.training = True
                finished = trainer.run(start, progress, stop, after_step)
                stop.training = False
            outcomes = [_finish(trainer, index, source, finished, stop) for index in range(len(members))]
            if evaluate:
                results = _evaluate([outcome for outcome in outcomes if outcome.state == "done"])
                for member in members:
                    member.tracker.summary(results.get(str(member.run.path), {}))
            return outcomes
        except (Exception, KeyboardInterrupt) as error:
            log.debug("%s", traceback.format_exc())
            own = describe(error, config, runs[0].status["step"])
            message = ranks.fails(own)
            ours = message.endswith(own)
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            for run, (_, plan, _) in zip(runs, points, strict=True):
                with suppress(OSError):  # where nothing may be written it still says "running"
                    if ours and run.status["state"] == "running":
                        run.set_status(state, run.status["step"], steps, plan.run_id, message)
            if isinstance(error, UserError | KeyboardInterrupt):
                raise
            if ours:
                log.error("%s", message)
            return [Outcome(plan.run_id, plan.folder, "failed", message) for _, plan, _ in points]


def _finish(trainer: Trainer, index: int, source: ActivationSource, finished: int, stop: StopFlag) -> Outcome:
    """Write a member's artefact and last status."""
    member, steps, ranks = trainer.members[index], trainer.steps, trainer.ranks
    run = member.run
    outcome = Outcome(member.run_id, run.path, "done")
    if finished < steps:
        outcome = Outcome(member.run_id, run.path, "interrupted", f"stopped by signal {stop.signal} at step {finished}")
    elif member.error:
        outcome = Outcome(member.run_id, run.path, "failed", member.error)
    else:
        sae = trainer.stepper.whole().member(index, source.scale, trainer.artefact_metadata(member))
        if ranks.sharded:
            save_shares(run.path, sae, ranks)
        elif ranks.first:
            save_sae(run.path, sae)
    if not ranks.first:
        return outcome
    if outcome.state == "failed":
        drop([*run.checkpoint.glob("step-*")])  # a frozen member must start over, not resume its end
    if outcome.state == "done":
        if source.true_GD is not None:
            replace_atomically(run.path / "true_features.safetensors", save({"true_GD": source.true_GD}))
        member.tracker.summary({f"final/{key}": value for key, value in member.last.items()})
    run.set_status(outcome.state, finished, steps, member.run_id, member.error)
    return outcome


def _evaluate(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """Evaluate the runs that are not yet; return their numbers by run folder as `eval/<section>/<name>`."""
    from sae_cli.evaluation.evaluate import evaluate

    runs = [RunDirectory(outcome.folder) for outcome in outcomes]
    pending = [run for run in runs if run.evaluation is None]
    return {
        result["run"]: {
            f"eval/{section}/{name}": value
            for section, values in result.items()
            if isinstance(values, dict)
            for name, value in values.items()
            if isinstance(value, int | float)
        }
        for result in (evaluate(pending) if pending else [])
    }


@contextmanager
def _stop_signals() -> Iterator[StopFlag]:
    """Turn SIGTERM and SIGINT into a flag while there are steps; a second one, or one at other times, interrupts."""
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handle(number: int, frame: Any) -> None:
        if flag or not flag.training:
            raise KeyboardInterrupt
        flag.signal = number
        log.warning("stopping after this step; the run resumes from here")

    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Copy the package's log to a run's log.txt."""
    handler = _File(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("sae_cli")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        with suppress(OSError):
            handler.close()


class _File(logging.FileHandler):
    """A log that a full disk cuts short without a word: what else is written there tells of it."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing."""
