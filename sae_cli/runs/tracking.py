"""Weights & Biases beside the JSONL file: it may fail in any way, and a run neither stops nor waits for it."""

import base64
import json
import logging
import os
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from sae_cli.config.convert import to_dict
from sae_cli.config.schema import Config

logger = logging.getLogger(__name__)

PROBE_SECONDS = 4
"""Longest wait for the server's first answer, once per process; without one the process writes offline."""
INIT_SECONDS = 6
"""Longest wait of `wandb.init` for an online run; after it the process writes offline."""
FINISH_SECONDS = 10
"""Longest wait for uploads at the end of an online run; all runs of a process wait at the same time."""

THREAD = "wandb-run-"
"""How the names of trackers' threads begin."""
OFFLINE = "writing offline, `wandb sync` sends the runs later"
_answers: list[str] = []
"""Empty until the server was asked; then why it takes no runs, or "". The other members need not wait for it again."""
_said: set[str] = set()
_lock = threading.Lock()
"""Held where a process asks the server and where it says something once."""


class Tracker:
    """Where one run's metrics go beside metrics.jsonl: nowhere (tracker=jsonl). No method of a tracker raises."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record named values at a training step."""

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        """Record the distribution of an array's finite values, in 64 equal bins over their range."""

    def summary(self, values: dict[str, Any]) -> None:
        """Record values that describe the whole run."""

    def state(self) -> dict[str, str]:
        """Return the ids that a checkpoint keeps."""
        return {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End the run; it counts as failed if an exception ended it."""


class WandbTracker(Tracker):
    """One Weights & Biases run, in a thread of its own: training waits neither for the server nor for W&B's client.

    The first call that fails silences it; metrics.jsonl has everything. The interpreter waits for the thread at exit.
    """

    def __init__(self, arguments: dict[str, Any], mode: str) -> None:
        self._id = str(arguments.get("id", ""))
        self._started = threading.Event()
        self._calls: SimpleQueue[Callable[[Any], Any] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, args=(arguments, mode), name=THREAD + self._id)
        self._thread.start()

    def log(self, step: int, values: dict[str, float]) -> None:
        copy = dict(values)
        self._calls.put(lambda run: run.log(copy, step=step))

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        finite = values[np.isfinite(values)].astype(np.float64)

        def call(run: Any) -> None:
            import wandb

            run.log({name: wandb.Histogram(finite, num_bins=64)}, step=step)

        if finite.size:
            self._calls.put(call)

    def summary(self, values: dict[str, Any]) -> None:
        copy = dict(values)
        self._calls.put(lambda run: run.summary.update(copy))

    def state(self) -> dict[str, str]:
        return {"wandb_id": self._id}

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._calls.put(lambda run: _finish(run, 0 if kind is None else 1))
        self._calls.put(None)
        self._started.wait()
        if self._offline:
            self._thread.join()

    def _work(self, arguments: dict[str, Any], mode: str) -> None:
        run = start(arguments, mode, "metrics go to metrics.jsonl alone")
        self._offline = run is None or bool(run.offline)
        self._id = self._id if run is None else str(run.id)
        self._started.set()
        while (call := self._calls.get()) is not None:
            try:
                if run is not None:
                    call(run)
            except Exception as problem:
                logger.warning("wandb: %s; run %s goes on in metrics.jsonl alone", one_line(problem), self._id)
                run = None


def open_tracker(config: Config, run_id: str, attempt_id: str, folder: Path, resume: bool) -> Tracker:
    """Open the tracker that `config.tracker` asks for; it never prompts, raises or waits.

    The id at Weights & Biases is `<run_id>-<attempt_id>`, so a resumed run (`resume`, same attempt) goes on in its
    own curve. Under an agent of `wandb sweep` (WANDB_SWEEP_ID) id, group, project and entity are the agent's.
    An online run that the server does not take is written offline, to be sent later by `wandb sync`.
    """
    if config.tracker.kind != "wandb" or os.environ.get("WANDB_MODE") == "disabled":
        return Tracker()
    return WandbTracker(init_arguments(config, run_id, attempt_id, folder, resume), config.tracker.mode)


def wait_for_uploads() -> None:
    """Wait until every tracker of this process has ended, for processes that are killed when their work is done."""
    for thread in threading.enumerate():
        if thread.name.startswith(THREAD):
            thread.join()


def _finish(run: Any, exit_code: int) -> None:
    """End a run; one line if the server may not have everything. The run's folder has, for `wandb sync`."""
    try:
        run.finish(exit_code=exit_code)
    except TimeoutError:
        reason = f"not all was taken in {FINISH_SECONDS} s"
    else:
        # The client says nothing when a server refuses what it is sent.
        reason = "" if run.offline else _ask(*_server())
    if reason:
        _say(logging.WARNING, f"wandb: {reason}; `wandb sync --include-online RUN/wandb/run-*` sends the rest")


def start(arguments: dict[str, Any], mode: str, otherwise: str) -> Any:
    """Return a W&B run in `mode` (auto | online | offline), None if W&B is disabled or broken (`otherwise` says then).

    It never prompts, raises or waits longer than a few seconds. `arguments` are those of `wandb.init`.
    """
    if os.environ.get("WANDB_MODE") == "disabled":
        return None
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # or it retries its own reports, aloud, without a network
    try:
        with _lock:
            chosen = _choose_mode(mode)
        if chosen == "online":
            try:
                return _init(arguments, "online")
            except Exception as problem:
                with _lock:  # of several at once the first says why
                    if not _answers[0]:
                        _answers[:] = [one_line(problem)]
                        _say(logging.WARNING, f"wandb: {_answers[0]}; {OFFLINE}")
                if "id" in arguments:  # W&B's service holds the id of a run that failed to start
                    arguments["id"] += "-offline"
        return _init(arguments, "offline")
    except Exception as problem:
        _say(logging.WARNING, f"wandb: {one_line(problem)}; {otherwise}")
        return None


def init_arguments(config: Config, run_id: str, attempt_id: str, folder: Path, resume: bool) -> dict[str, Any]:
    """Return the arguments of `wandb.init`, mode and settings apart."""
    arguments: dict[str, Any] = {
        "dir": str(folder),
        "name": f"{config.sae.nonlinearity} {config.sparsity.weight:g} {config.orthogonality.weight:g} {run_id[:6]}",
        "config": {**to_dict(config), "run_id": run_id},
        "reinit": "create_new",
    }
    if os.environ.get("WANDB_SWEEP_ID"):
        return arguments
    return arguments | {
        "id": f"{run_id}-{attempt_id}",
        "resume": "allow" if resume else None,
        "group": config.tracker.group or config.name,
        "project": config.tracker.project,
        "entity": config.tracker.entity or None,
    }


def _choose_mode(mode: str) -> Literal["online", "offline"]:
    """Return online or offline, with one line that says why; asks the server once per process."""
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE", "auto")
    if mode in ("offline", "dryrun"):
        _say(logging.INFO, "wandb: offline, as set; `wandb sync` sends the runs later")
        return "offline"
    server, login = _server()
    if login is None:
        level = logging.WARNING if mode == "online" else logging.INFO
        _say(level, "wandb: no key at hand, writing offline; `wandb login` once for later runs, `wandb sync` for these")
        return "offline"
    if not _answers:
        _answers.append(_ask(server, login))
        if _answers == [""]:
            _say(logging.INFO, f"wandb: online at {server}")
        else:
            _say(logging.WARNING, f"wandb: {server}: {_answers[0]}; {OFFLINE}")
    return "offline" if _answers[0] else "online"


def _server() -> tuple[str, Any]:
    """Return the server's address, and what logs in there or None."""
    import wandb
    from wandb.sdk.lib import wbauth

    server = str(wandb.setup().settings.base_url)
    # `prompt=False`: environment, netrc and settings file are read, and nobody is asked.
    return server, wbauth.authenticate_session(host=server, source="sae", prompt=False, update_session=False)


def _ask(server: str, login: Any) -> str:
    """Return why `server` cannot take runs now, or an empty string.

    Asked before `wandb.init`, which retries for long and whose failed runs keep their ids from being used offline.
    """
    reasons, key = [f"no answer in {PROBE_SECONDS} s"], getattr(login, "api_key", None)

    def ask() -> None:
        headers = {"Content-Type": "application/json"}
        if key:
            headers["Authorization"] = "Basic " + base64.b64encode(f"api:{key}".encode()).decode()
        query = json.dumps({"query": "query Viewer { viewer { id } }"}).encode()
        try:
            request = urllib.request.Request(f"{server.rstrip('/')}/graphql", query, headers)
            with urllib.request.urlopen(request, timeout=PROBE_SECONDS) as answer:
                viewer = (json.load(answer).get("data") or {}).get("viewer")
            reasons[:] = [] if viewer or not key else ["the key is not accepted"]
        except Exception as problem:
            reasons[:] = [one_line(problem)]

    # In a thread, because looking up a name obeys no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS + 1)
    return "".join(reasons)


def _init(arguments: dict[str, Any], mode: Literal["online", "offline"]) -> Any:
    import wandb

    # Machine, git and package facts stand in stamp.json; gathering them again costs 40 ms for every member.
    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        disable_job_creation=True,
        symlink=False,
        init_timeout=INIT_SECONDS,
        finish_timeout=FINISH_SECONDS,
        finish_timeout_raises=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )
    return wandb.init(mode=mode, settings=settings, **arguments)


def one_line(problem: Exception) -> str:
    return (str(problem) or type(problem).__name__).splitlines()[0]


def _say(level: int, text: str) -> None:
    """Log a line once per process: 32 members need it no more often than one."""
    if text not in _said:
        _said.add(text)
        logger.log(level, "%s", text)
