"""Progress of a stack on stderr: a bar on a terminal, one plain line per log interval otherwise."""

import resource
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import torch


class Progress:
    """Context manager that shows tokens/s, ETA, loss, L0, FVU, dead share and memory; ranges if there are members."""

    def __init__(self, steps: int, batch: int, start: int) -> None:
        self.steps, self.batch = steps, batch
        self.bar = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            self.bar = Bar(*columns, console=Console(stderr=True))
            self.task = self.bar.add_task("starting", total=steps, completed=start)

    def __enter__(self) -> Self:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar:
            self.bar.stop()

    def update(self, step: int, members: Sequence[dict[str, float]]) -> None:
        """Show the newest metrics of all members."""
        line = describe(members)
        if self.bar:
            self.bar.update(self.task, completed=step, description=line)
            return
        seconds = members[0]["seconds"]
        left = seconds / step * (self.steps - step)
        print(f"step {step}/{self.steps}  {left:.0f} s left  {line}", file=sys.stderr, flush=True)


def describe(members: Sequence[dict[str, float]]) -> str:
    """Return one line of metrics; with several members each metric is a range over them."""
    speed = members[0]["tokens_per_second"] * len(members)
    parts = [f"{speed:,.0f} tokens/s"]
    for name, key, factor, digits in (
        ("loss", "loss", 1, 2),
        ("L0", "l0", 1, 1),
        ("FVU", "fvu", 1, 4),
        ("dead %", "dead", 100, 1),
    ):
        values = sorted(member[key] * factor for member in members)
        low, high = f"{values[0]:.{digits}f}", f"{values[-1]:.{digits}f}"
        parts.append(f"{name} {low}" if low == high else f"{name} {low}-{high}")
    return "  ".join([*parts, f"{memory_gigabytes():.1f} GB"])


def memory_gigabytes() -> float:
    """Return peak memory: the process's, or the accelerator's where it is in use. Unit: 10^9 bytes."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
