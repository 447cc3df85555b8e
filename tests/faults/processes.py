"""`sae` in processes of its own that start at once: forked from one that has imported everything already."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random

PRELOADED = ["torch", "transformer_lens", "sae_cli.cli", "sae_cli.training.execute", "sae_cli.runs.sweep"]
FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(PRELOADED)


def _main(words: list[str], folder: str, log: str, prepare: Callable[[], None] | None) -> None:
    os.chdir(folder)
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    import torch

    from sae_cli.cli import app

    torch.set_num_threads(1)
    if prepare:
        prepare()
    sys.argv = ["sae", *words]
    app(words, prog_name="sae")


def start(words: list[str], folder: Path, prepare: Callable[[], None] | None = None) -> BaseProcess:
    """Start `sae WORDS` in a folder; its output is added to FOLDER/output.txt. `prepare` runs in it first."""
    process = FORKING.Process(target=_main, args=(words, str(folder), str(folder / "output.txt"), prepare))
    process.start()
    return process


def run(words: list[str], folder: Path, prepare: Callable[[], None] | None = None, timeout: float = 120) -> int:
    """Return the exit code of `sae WORDS` in a folder."""
    process = start(words, folder, prepare)
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
        raise TimeoutError(f"sae {' '.join(words)} did not end in {timeout} s: {output(folder)[-2000:]}")
    return process.exitcode or 0


def output(folder: Path) -> str:
    """Return what the commands in a folder have printed so far."""
    file = folder / "output.txt"
    return file.read_text(errors="replace") if file.exists() else ""


def run_with_kills(words: list[str], folder: Path, seconds: float, kills: int, random: Random) -> int:
    """Run a command to its end, killed at most `kills` times at random moments of its `seconds` and started again.

    Returns how many kills hit it before it was done.
    """
    for hits in range(kills):
        process = start(words, folder)
        process.join(random.uniform(0, seconds))
        if process.is_alive():
            os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        if process.exitcode == 0:
            return hits
        assert process.exitcode == -signal.SIGKILL, output(folder)[-3000:]
    assert run(words, folder) == 0, output(folder)[-3000:]
    return kills


def timed(words: list[str], folder: Path) -> float:
    """Run a command to its end and return the seconds it took."""
    run(["--version"], folder)  # so that everything is imported
    began = time.monotonic()
    assert run(words, folder) == 0, output(folder)[-3000:]
    return time.monotonic() - began


def pause(step: int) -> None:
    """For `prepare`: after logging a step write the file `paused` and go on when there is a file `go`."""
    from sae_cli.runs.directory import RunDirectory

    append = RunDirectory.append_metrics

    def append_and_wait(run: RunDirectory, values: dict[str, float]) -> None:
        append(run, values)
        if values["step"] == step:
            Path("paused").touch()
            wait_for(Path("go"))

    RunDirectory.append_metrics = append_and_wait  # type: ignore[method-assign]


def wait_for(file: Path, seconds: float = 60) -> None:
    """Return when there is a file. Raises TimeoutError after some seconds."""
    end = time.monotonic() + seconds
    while not file.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"no {file} in {seconds} s")
        time.sleep(0.01)
